"""DecodeActor: a Ray actor around a decode engine. Codes come in as arrays, waveforms go out as arrays."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pipelines.decoding.decode_engine import DecodeEngine, DecodeStream, EngineSettings
from pipelines.decoding.decode_errors import Draining, Overloaded, StreamClosed
from tokenizer import Codec, CodesError, QuantoneError, load_codec
from tokenizer.engine import Precision

BATCH_AT_ONCE = 16  # utterances of all decode_batch calls inside the engine: the rest of its queue is for single calls
_RETRY_S = 0.05

Samples = NDArray[np.float32]


@dataclass(slots=True)
class _Held:
    """A stream that callers know by its id."""

    stream: DecodeStream
    calls: int = 0  # in work
    last_call: float = 0.0  # when one ended


class CodecDecoder:
    """What a DecodeActor is inside: an engine, and its streams by id. Every method but the constructor is awaited."""

    def __init__(
        self,
        codec: Codec | str,
        *,
        sha256: str | None = None,
        device: str = "cpu",
        precision: Precision = "exact",
        settings: EngineSettings | None = None,
        idle_timeout_s: float = 60.0,
    ) -> None:
        """Take the codec, or load it, and start an engine.

        Args:
            codec: the codec (a reference of one in Ray's object store reaches machines that lack its files), or a name
                or directory that `load_codec` finds on the actor's machine.
            sha256: the identity that this codec must have, None to take any.
            device: where to decode, as torch names it.
            precision: how to compute on CPUs, as in `Codec.with_precision`.
            settings: limits of the engine; None for the usual ones.
            idle_timeout_s: a stream that nobody calls for so long is closed.

        Raises:
            CheckpointError: no such codec.
            QuantoneError: the codec found on this machine has another identity.
        """
        loaded = (load_codec(codec) if isinstance(codec, str) else codec).to(device).with_precision(precision)
        if sha256 is not None and loaded.sha256 != sha256:
            name = codec if isinstance(codec, str) else codec.name
            raise QuantoneError(f"codec {name!r} on this machine has sha256 {loaded.sha256}, expected {sha256}")
        self._idle_timeout_s = idle_timeout_s
        self._streams: dict[str, _Held] = {}
        self._batch_places = asyncio.Semaphore(BATCH_AT_ONCE)
        self._watch: asyncio.Task[None] | None = None  # closes abandoned streams while there are any streams
        self._engine = DecodeEngine(loaded, settings or EngineSettings())
        self._engine.start()

    async def ready(self) -> bool:
        """True, once the codec is loaded: what a caller waits for before it counts time."""
        return True

    async def decode(
        self,
        codes: NDArray[np.integer],
        num_samples: int | None = None,
        scales: NDArray[np.floating] | None = None,
        deadline_s: float | None = None,
    ) -> Samples:
        """Decode one utterance: see `DecodeEngine.decode`."""
        return await self._engine.decode(codes, num_samples=num_samples, scales=scales, deadline_s=deadline_s)

    async def decode_batch(
        self,
        codes: Sequence[NDArray[np.integer]],
        num_samples: Sequence[int | None],
        scales: Sequence[NDArray[np.floating] | None] | None = None,
    ) -> list[Samples | CodesError]:
        """Decode several utterances of any lengths; bad codes give their error in place.

        A full queue does not turn them away: they wait.

        Args:
            codes: one [K, T_i] per utterance.
            num_samples: one length per utterance.
            scales: one [N_i] per utterance; None for codecs without.
        """
        columns = zip(codes, num_samples, scales or [None] * len(codes), strict=True)
        return await asyncio.gather(*(self._decode_patiently(*row) for row in columns))

    async def open_stream(self, num_codebooks: int) -> str:
        """Take a slot; returns the id under which the stream is called. Raises as `DecodeEngine.open_stream`."""
        held = _Held(self._engine.open_stream(num_codebooks=num_codebooks), last_call=time.monotonic())
        name = uuid.uuid4().hex
        self._streams[name] = held
        if self._watch is None:
            self._watch = asyncio.create_task(self._close_abandoned())
        return name

    async def push(self, stream: str, codes: NDArray[np.integer] | None, last: bool = False) -> None:
        """The next frames [K, T] of a stream; waits while its backlog is full.

        Wait for one before the next: Ray starts the calls of an actor that runs several at once in any order.

        Args:
            stream: its id.
            codes: None where there are none left to say that these were the last.
            last: whether the utterance ends here.

        Raises:
            CodesError, StreamClosed, ServiceError: as `DecodeStream.push`; StreamClosed for unknown ids too.
        """
        async with self._called(stream) as called:
            if codes is not None:
                await called.push(codes)
            if last:
                called.finish()

    async def read(self, stream: str) -> Samples | None:
        """All samples [C, n] since the last read, as soon as there are any; None at the end of the utterance.

        Raises:
            StreamClosed, ServiceError: as `push`.
        """
        async with self._called(stream) as called:
            return await called.read()

    async def reset(self, stream: str) -> None:
        """Begin a new utterance in the same slot: what waits and what was not read is dropped. Raises as `push`."""
        async with self._called(stream) as called:
            called.reset()

    async def close(self, stream: str) -> None:
        """Free the slot at once. An id that is not known, or no longer, is no error."""
        held = self._streams.pop(stream, None)
        if held is not None:
            held.stream.close()

    async def stats(self) -> dict[str, Any]:
        """What `DecodeEngine.health` says, as plain types."""
        return dataclasses.asdict(self._engine.health())

    @asynccontextmanager
    async def _called(self, name: str) -> AsyncIterator[DecodeStream]:
        held = self._streams.get(name)
        if held is None:
            raise StreamClosed(f"no stream {name!r}: it was closed, or nobody called it for {self._idle_timeout_s:g} s")
        held.calls += 1
        try:
            yield held.stream
        finally:
            held.calls -= 1
            held.last_call = time.monotonic()

    async def _decode_patiently(
        self, codes: NDArray[np.integer], num_samples: int | None, scales: NDArray[np.floating] | None
    ) -> Samples | CodesError:
        async with self._batch_places:
            while True:
                try:
                    return await self._engine.decode(codes, num_samples=num_samples, scales=scales)
                except CodesError as error:
                    return error
                except Draining:
                    raise
                except Overloaded:
                    await asyncio.sleep(_RETRY_S)

    async def _close_abandoned(self) -> None:
        while self._streams:
            await asyncio.sleep(self._idle_timeout_s / 4)
            longest = time.monotonic() - self._idle_timeout_s
            for name, held in list(self._streams.items()):
                if not held.calls and held.last_call < longest:
                    await self.close(name)
        self._watch = None


DecodeActor = ray.remote(CodecDecoder)
