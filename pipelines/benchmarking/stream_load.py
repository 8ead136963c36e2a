"""Load over WebSockets: listeners in real time, and how soon somebody who begins to speak is heard."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pipelines.benchmarking.load_connections import StreamConnection
from pipelines.serving.playout_clock import PlayoutClock
from pipelines.serving.stream_protocol import END_OF_UTTERANCE, codes_message
from tokenizer import QuantoneError

_ANSWER_S = 20.0  # for any one answer: far more than a service that still works needs
_PAUSE_S = (0.01, 0.03)  # between utterances of the one whose first packets are timed
_SILENCE_S = 0.2  # after the last stream was opened
_WITHOUT_END = 10**9  # chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOutcome:
    """One listener in real time."""

    first_packet_s: float  # from its first codes to its first sound
    underruns: int  # times that it ran out of sound although its codes were there
    late_s: float  # by how much its codes were sent too late at most: what the load generator itself lacks
    whole: bool  # as many samples as the service counted, of all frames


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenCodes:
    """What every stream of a load says, and to whom.

    Args:
        address: host and port.
        num_codebooks: K.
        codebook_size: V; codes are random, which costs what others cost.
        chunk_frames: in each message.
        frame_rate: frames per second.
    """

    address: tuple[str, int]
    num_codebooks: int
    codebook_size: int
    chunk_frames: int
    frame_rate: float

    @property
    def chunk_s(self) -> float:
        """Sound of one message."""
        return self.chunk_frames / self.frame_rate

    def message(self) -> bytes:
        """One chunk."""
        codes = np.random.default_rng(0).integers(0, self.codebook_size, (self.num_codebooks, self.chunk_frames))
        return codes_message(codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeLoad:
    """Streams whose codes come as fast as they are played, each from another moment on.

    Args:
        codes: what they say.
        streams: at once.
        seconds: of sound in each.
        buffer_s: that a player waits after its first packet before it plays.
    """

    codes: SpokenCodes
    streams: int
    seconds: float
    buffer_s: float

    def run(self) -> list[ListenerOutcome]:
        """One outcome for each stream.

        Raises:
            QuantoneError: the service refused a stream, or ended one.
        """
        return asyncio.run(self._run())

    async def _run(self) -> list[ListenerOutcome]:
        source = random.Random(0)  # noqa: S311 - no secret
        chunks = max(1, round(self.seconds / self.codes.chunk_s))
        async with _speakers(self.codes, self.streams, self.buffer_s) as speakers:
            begin = time.monotonic() + _SILENCE_S
            return await asyncio.gather(
                *(one.speak(begin + source.random() * self.codes.chunk_s, chunks) for one in speakers)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPacketLoad:
    """One stream that says one chunk after the other, each as an utterance of its own, beside others in real time.

    Args:
        codes: what all of them say.
        beside: the others.
        count: utterances.
    """

    codes: SpokenCodes
    beside: int
    count: int

    def run(self) -> list[float]:
        """Seconds from the first codes of an utterance to its first sound, of each.

        Raises:
            QuantoneError: as `RealTimeLoad.run`.
        """
        return asyncio.run(self._run())

    async def _run(self) -> list[float]:
        source = random.Random(0)  # noqa: S311
        seconds = []
        async with _speakers(self.codes, 1 + self.beside, 0.0) as (timed, *others):
            begin = time.monotonic()
            talking = [
                asyncio.create_task(one.speak(begin + source.random() * self.codes.chunk_s, _WITHOUT_END))
                for one in others
            ]
            for _ in range(self.count):
                await asyncio.sleep(source.uniform(*_PAUSE_S))
                seconds.append((await timed.speak(time.monotonic(), 1)).first_packet_s)
            for task in talking:
                if task.done():
                    task.result()
                task.cancel()
            await asyncio.gather(*talking, return_exceptions=True)
        return seconds


@asynccontextmanager
async def _speakers(codes: SpokenCodes, count: int, buffer_s: float) -> AsyncIterator[list[_Speaker]]:
    speakers: list[_Speaker] = []
    try:
        for _ in range(count):
            speakers.append(await _Speaker.open(codes, buffer_s))  # noqa: PERF401 - each is left, also if one fails
        yield speakers
    finally:
        for speaker in speakers:
            speaker.leave()


class _Speaker:
    """One stream, from codes to the sound that is heard of them."""

    def __init__(self, codes: SpokenCodes, buffer_s: float) -> None:
        self._codes, self._buffer_s = codes, buffer_s
        self._message = codes.message()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._connection: StreamConnection | None = None
        self._clock = PlayoutClock(1, 1)
        self._spec: dict[str, Any] = {}
        self._underruns = 0

    @classmethod
    async def open(cls, codes: SpokenCodes, buffer_s: float) -> Self:
        speaker = cls(codes, buffer_s)
        speaker._connection = await StreamConnection.open(
            codes.address, {"num_codebooks": codes.num_codebooks}, speaker._heard
        )
        speaker._spec = await speaker._answer("started")
        return speaker

    async def speak(self, begin: float, chunks: int) -> ListenerOutcome:
        """One utterance, its codes in real time."""
        connection = self._opened
        self._clock = clock = PlayoutClock(int(self._spec["sample_rate"]), int(self._spec["hop_length"]))
        self._underruns, late_s = 0, 0.0
        for chunk in range(chunks):
            due = begin + chunk * self._codes.chunk_s
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            now = time.monotonic()
            late_s = max(late_s, now - due)
            clock.took(self._codes.chunk_frames, now)
            connection.send(self._message)
        connection.send(END_OF_UTTERANCE)
        end = await self._answer("end")
        first_codes_at = clock.first_codes_at or begin
        return ListenerOutcome(
            first_packet_s=(clock.first_sound_at or first_codes_at) - first_codes_at,
            underruns=self._underruns,
            late_s=late_s,
            whole=end["num_samples"] == clock.samples and end["num_frames"] == chunks * self._codes.chunk_frames,
        )

    @property
    def _opened(self) -> StreamConnection:
        if self._connection is None:
            raise QuantoneError("a listener that was never opened cannot speak")
        return self._connection

    def leave(self) -> None:
        """End the connection; the slot is free again."""
        if self._connection is not None:
            self._connection.close()

    def _heard(self, message: Any, now: float) -> None:
        if not isinstance(message, bytes):
            self._answers.put_nowait(message)
            return
        # Playing begins so long after the first packet: whatever comes later has that much more time.
        heard_at = now if self._clock.first_sound_at is None else now - self._buffer_s
        self._underruns += self._clock.sent(len(message) // (2 * int(self._spec["channels"])), heard_at)

    async def _answer(self, kind: str) -> dict[str, Any]:
        """The next message in words, which must be of a kind."""
        answer: asyncio.Future[Any] = asyncio.ensure_future(self._answers.get())
        either: list[asyncio.Future[Any]] = [answer, self._opened.ended]
        await asyncio.wait(either, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise QuantoneError(f"a stream ended, or fell silent, before {kind!r}")
        message: dict[str, Any] = answer.result()
        if message.get("type") != kind:
            raise QuantoneError(f"a stream was answered {json.dumps(message)} instead of {kind!r}")
        return message
