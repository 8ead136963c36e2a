"""LiveStream: one listener's stream, over however many connections: codes in, messages out, and where both stand."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.decoding.decode_stream import DecodeStream, ParkedStream
from pipelines.serving.first_of import first_of
from pipelines.serving.outgoing_sound import OutgoingSound
from pipelines.serving.playout_clock import PlayoutClock
from pipelines.serving.stream_inbox import StreamInbox
from pipelines.serving.stream_protocol import (
    PCM_TYPES,
    PcmFormat,
    StreamStarted,
    end_message,
    pcm_message,
    reset_message,
)

_MESSAGE_S = 0.5  # of sound in one message at most: what is cut is small, and a slow reader is seen soon

Send = Callable[[bytes | str], Awaitable[None]]


class Listening(Protocol):
    """Who hears how well listeners are served: ServiceMetrics, or nobody."""

    def first_audio(self, codec: str, seconds: float) -> None:
        """The first samples of an utterance left, so long after its first codes came."""

    def underrun(self, codec: str) -> None:
        """A listener ran out of sound although its codes were there."""


class LiveStream:
    """A stream that outlives its connection: `park` gives its slot back, `resume` goes on in another one.

    Utterances are counted by the ends and resets that the client has sent. Codes of the next utterance wait until the
    last sample of the one before has been taken from the engine.

    Args:
        name: of the codec, as the service calls it.
        engine: where it is decoded.
        num_codebooks: levels of its codes.
        pcm: how samples travel.
        kept_s: seconds of sent sound to keep for a resume.
        listening: told of first packets and underruns; None for nobody.

    Raises:
        Overloaded: no slot is free.
        Draining: the engine takes no new streams.
    """

    def __init__(
        self,
        name: str,
        engine: DecodeEngine,
        *,
        num_codebooks: int,
        pcm: PcmFormat,
        kept_s: float,
        listening: Listening | None = None,
    ) -> None:
        self.name, self.num_codebooks, self.pcm = name, num_codebooks, pcm
        self.spec = engine.codec.spec
        self.stream_id, self.resume_token = secrets.token_hex(4), secrets.token_urlsafe(24)
        self._engine, self._listening = engine, listening
        self._decoding: DecodeStream = engine.open_stream(num_codebooks=num_codebooks)
        self._parked: ParkedStream | None = None
        sample_bytes = PCM_TYPES[pcm].itemsize * self.spec.channels
        self._out = OutgoingSound(sample_bytes, round(kept_s * self.spec.sample_rate) * sample_bytes)
        self._utterance = self._frames = 0  # of the codes that come next
        self._spoken_frames = self._samples = 0  # of the utterance that is being spoken
        self._speaking = 0
        self._all_spoken = asyncio.Event()  # clear from the end of an utterance to its last sample
        self._all_spoken.set()
        self._blocks: AsyncIterator[NDArray[np.float32]] = aiter(self._decoding)
        self._clock = PlayoutClock(self.spec.sample_rate, self.spec.hop_length)
        self.active_at = time.monotonic()
        """When the client last said something, or sound last left."""
        self._audio_s = self._busy_s = 0.0

    @property
    def resting(self) -> bool:
        """Between two utterances: nothing has begun."""
        return self._frames == 0 and self._all_spoken.is_set()

    @property
    def received(self) -> tuple[int, int]:
        """The utterance of the codes that come next, and how many frames of it the engine has."""
        return self._utterance, self._frames

    @property
    def draining(self) -> bool:
        """Whether the engine takes no new streams and waits for this one to end."""
        return self._engine.draining

    def touch(self) -> None:
        """The client is there."""
        self.active_at = time.monotonic()

    def started(self, *, resumed: bool) -> StreamStarted:
        """The first message to the client."""
        return StreamStarted(
            codec=self.name,
            sample_rate=self.spec.sample_rate,
            channels=self.spec.channels,
            hop_length=self.spec.hop_length,
            frame_rate=float(self.spec.frame_rate),
            num_codebooks=self.num_codebooks,
            codebook_size=self.spec.codebook_size,
            pcm=self.pcm,
            stream=self.stream_id,
            resume_token=self.resume_token,
            resumed=resumed,
            utterance=self._utterance,
            received_frames=self._frames,
        )

    async def converse(self, inbox: StreamInbox, send: Send) -> None:
        """Decode what comes and send what comes out, until cancelled.

        Raises:
            CodesError: codes that the codec cannot take.
            ServiceError: the engine ends the stream.
            Exception: whatever `send` raises.
        """
        while True:
            await first_of(inbox.reset_asked(), self._speak(send), self._listen(inbox))
            self._reset(await inbox.take_reset())

    @property
    def nbytes(self) -> int:
        """Bytes that the stream holds while it is parked."""
        return self._out.nbytes + (0 if self._parked is None else self._parked.nbytes)

    def park(self) -> None:
        """Give the slot back and keep everything else."""
        self._parked = self._decoding.park()

    def resume(self, utterance: int, received_samples: int) -> bool:
        """Go on after what the client has; False where that is no longer known.

        Args:
            utterance: ends and resets that the client has received.
            received_samples: samples of the utterance after those.

        Raises:
            Overloaded: no slot is free; the stream stays parked.
        """
        if self._parked is None or not self._out.rewind(utterance, received_samples):
            return False
        self._decoding = self._engine.resume(self._parked)
        self._parked = None
        self._blocks = aiter(self._decoding)
        self._clock = PlayoutClock(self.spec.sample_rate, self.spec.hop_length)
        self.touch()
        return True

    def close(self) -> None:
        """Give the slot back for good."""
        self._decoding.close()

    def take_times(self) -> tuple[float, float]:
        """Seconds from first codes to last sound, and seconds of sound sent, of all utterances since the last call."""
        self._note_times()
        times = self._busy_s, self._audio_s
        self._busy_s = self._audio_s = 0.0
        return times

    async def _listen(self, inbox: StreamInbox) -> None:
        """Codes to the engine. What it has taken counts as received; what still waits is lost with a connection."""
        while True:
            await self._all_spoken.wait()
            codes = await inbox.get()
            if codes is None:
                self._finish()
                continue
            now, start = time.monotonic(), 0
            while start < codes.shape[1]:
                piece = codes[:, start : start + self._room()].astype(np.int64)
                await self._decoding.push(piece)
                self._clock.took(piece.shape[1], now)
                self._frames += piece.shape[1]
                start += piece.shape[1]

    def _room(self) -> int:
        """Frames that the engine takes at once, or else 1.

        Either way a push is all or nothing, so that a stream which is cut in the middle of one knows where it stands.
        """
        backlog = math.ceil(self._engine.settings.max_backlog_s * self.spec.frame_rate)
        undecoded = self._frames - self._samples // self.spec.hop_length  # or more: the engine may be further
        return max(1, backlog - undecoded)

    def _finish(self) -> None:
        self._decoding.finish()
        self._all_spoken.clear()
        self._spoken_frames, self._frames = self._frames, 0
        self._utterance += 1

    async def _speak(self, send: Send) -> None:
        """Samples from the engine to the client. They are noted before they are sent: what is cancelled is not lost."""
        while True:
            while (packet := self._out.take()) is not None:
                await send(packet.data)
                self._note_sent(packet.first_sample, packet.data)
            try:
                block = await anext(self._blocks)
            except StopAsyncIteration:
                self._end_utterance()
            else:
                self._add(block)

    def _add(self, block: NDArray[np.float32]) -> None:
        longest = max(1, round(_MESSAGE_S * self.spec.sample_rate))
        for start in range(0, block.shape[-1], longest):
            piece = block[:, start : start + longest]
            self._out.add_samples(self._speaking, self._samples, pcm_message(piece, self.pcm))
            self._samples += piece.shape[-1]

    def _end_utterance(self) -> None:
        self._out.add_close(
            self._speaking, self._samples, end_message(self._speaking, self._samples, self._spoken_frames)
        )
        self._begin()

    def _reset(self, skipped: int) -> None:
        self._utterance += skipped
        self._frames = 0
        self._out.forget_all(self._utterance)
        self._out.add_close(self._utterance - 1, 0, reset_message(self._utterance))
        self._begin()

    def _begin(self) -> None:
        """The next utterance, in the same slot."""
        self._note_times()
        self._decoding.reset()
        self._blocks = aiter(self._decoding)
        self._clock = PlayoutClock(self.spec.sample_rate, self.spec.hop_length)
        self._speaking, self._samples = self._utterance, 0
        self._all_spoken.set()

    def _note_sent(self, first_sample: int, data: bytes | str) -> None:
        self.active_at = now = time.monotonic()
        if isinstance(data, str):
            return
        samples = len(data) // (PCM_TYPES[self.pcm].itemsize * self.spec.channels)
        clock, began = self._clock, self._clock.first_codes_at
        late = clock.sent(samples, now)
        self._audio_s += samples / self.spec.sample_rate
        if self._listening is None:
            return
        if late:
            self._listening.underrun(self.name)
        if first_sample == 0 and began is not None:
            self._listening.first_audio(self.name, now - began)

    def _note_times(self) -> None:
        clock = self._clock
        if clock.first_codes_at is not None and clock.last_sound_at is not None:
            self._busy_s += clock.last_sound_at - clock.first_codes_at
