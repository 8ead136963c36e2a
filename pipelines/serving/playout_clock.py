"""PlayoutClock: when a listener who plays as samples come would run out of them."""

from __future__ import annotations

from collections import deque


class PlayoutClock:
    """One utterance at one listener: sound sent against the time since its first packet.

    The listener begins with the first packet and plays in real time. A packet that comes after everything before it has
    been played is late; the listener waits for it and goes on. A late packet is an underrun of the service where its
    codes had come in time, before the listener ran out: waiting for the model that makes the codes is not.

    Args:
        sample_rate: Hz.
        hop_length: samples per frame.
    """

    def __init__(self, sample_rate: int, hop_length: int) -> None:
        self._sample_rate, self._hop_length = sample_rate, hop_length
        self._taken: deque[tuple[int, float]] = deque()  # frames up to here, and when the last of them came
        self._frames = self._samples = 0
        self._dry_at = 0.0  # when everything sent so far has been played
        self.first_codes_at: float | None = None
        self.first_sound_at: float | None = None
        self.last_sound_at: float | None = None

    @property
    def samples(self) -> int:
        """Sent so far."""
        return self._samples

    def took(self, frames: int, now: float) -> None:
        """Codes have come."""
        if self.first_codes_at is None:
            self.first_codes_at = now
        self._frames += frames
        self._taken.append((self._frames, now))

    def sent(self, samples: int, now: float) -> bool:
        """A packet leaves; whether the listener had run out although its codes were there."""
        codes_at = self._codes_at(self._samples // self._hop_length)
        underrun = False
        if self.first_sound_at is None:
            self.first_sound_at = self._dry_at = now
        elif now > self._dry_at:
            underrun = codes_at is not None and codes_at <= self._dry_at
            self._dry_at = now
        self._samples += samples
        self._dry_at += samples / self._sample_rate
        self.last_sound_at = now
        return underrun

    def _codes_at(self, frame: int) -> float | None:
        """When a frame came; None for one that is not known, as after a resume."""
        while self._taken and self._taken[0][0] <= frame:
            self._taken.popleft()
        return self._taken[0][1] if self._taken else None
