"""OutgoingSound: what waits to be sent on a stream, and what was sent and may not have arrived."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packet:
    """A binary message with samples, or a text message that closes an utterance."""

    utterance: int
    first_sample: int  # of the utterance; where a text stands, all samples are before it
    data: bytes | str


Position = tuple[int, int]  # an utterance, and samples of it


class OutgoingSound:
    """Messages to a listener in order, with a bounded memory of those that have left.

    Args:
        sample_bytes: of one sample of all channels.
        kept_bytes: of sent samples to keep, so that a lost connection can go on where the listener stood.
    """

    def __init__(self, sample_bytes: int, kept_bytes: int) -> None:
        self._sample_bytes, self._limit = sample_bytes, kept_bytes
        self._sent: deque[Packet] = deque()
        self._waiting: deque[Packet] = deque()
        self._kept = 0  # bytes of samples in _sent
        self._start: Position = (0, 0)  # the listener can go back to here
        self.nbytes = 0
        """Bytes of samples held, sent or not."""

    def add_samples(self, utterance: int, first_sample: int, pcm: bytes) -> None:
        """Samples that follow the ones before."""
        self._waiting.append(Packet(utterance, first_sample, pcm))
        self.nbytes += len(pcm)

    def add_close(self, utterance: int, num_samples: int, text: str) -> None:
        """The message that ends an utterance."""
        self._waiting.append(Packet(utterance, num_samples, text))

    def take(self) -> Packet | None:
        """The next message to send, None where nothing waits. From now on it counts as sent."""
        if not self._waiting:
            return None
        packet = self._waiting.popleft()
        self._sent.append(packet)
        self._kept += _num_bytes(packet)
        while self._kept > self._limit and len(self._sent) > 1:
            self._forget()
        return packet

    def forget_all(self, utterance: int) -> None:
        """Everything held belongs to the past: nothing before this utterance will be heard."""
        self._sent.clear()
        self._waiting.clear()
        self._kept = self.nbytes = 0
        self._start = (utterance, 0)

    def rewind(self, utterance: int, received_samples: int) -> bool:
        """Send again what came after a position; False where it is no longer known, or was never sent."""
        position = (utterance, received_samples)
        if not self._start <= position <= self._end():
            return False
        unheard = [packet for packet in self._sent if self._after(packet) > position]
        closing = unheard and unheard[0].utterance == utterance and isinstance(unheard[0].data, str)
        if closing and unheard[0].first_sample < received_samples:
            return False  # more samples than the utterance has
        while len(self._sent) > len(unheard):
            self._forget()
        self._sent.clear()
        self._waiting.extendleft(reversed(unheard))
        if unheard and unheard[0].first_sample < received_samples and unheard[0].utterance == utterance:
            self._cut_front(received_samples)
        self._kept = 0
        self._start = position
        return True

    def _end(self) -> Position:
        """Where a listener stands who has everything that was sent."""
        return self._after(self._sent[-1]) if self._sent else self._start

    def _after(self, packet: Packet) -> Position:
        if isinstance(packet.data, str):
            return packet.utterance + 1, 0
        return packet.utterance, packet.first_sample + len(packet.data) // self._sample_bytes

    def _forget(self) -> None:
        packet = self._sent.popleft()
        self._start = self._after(packet)
        self._kept -= _num_bytes(packet)
        self.nbytes -= _num_bytes(packet)

    def _cut_front(self, received_samples: int) -> None:
        packet = self._waiting.popleft()
        pcm = packet.data[(received_samples - packet.first_sample) * self._sample_bytes :]
        self.nbytes -= len(packet.data) - len(pcm)
        self._waiting.appendleft(Packet(packet.utterance, received_samples, pcm))


def _num_bytes(packet: Packet) -> int:
    return 0 if isinstance(packet.data, str) else len(packet.data)
