"""DecodeEngine: one codec, one model thread, and any number of callers whose streams share its steps.

    async with engine.open_stream(num_codebooks=8) as stream:      waveform = await engine.decode(codes)
        await stream.push(codes)          # [K, T]                 async for block in engine.decode_blocks(codes): ...
        stream.finish()                                            await engine.run(steps)
        async for samples in stream: ...  # [C, n]

Callers may stand on several asyncio loops. Each stream gets exactly what offline decoding would give it, whatever its
neighbours do. It is plain Python: `pipelines.decoding.decode_actor` puts it in a Ray actor, `pipelines.serving.service`
on the web.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.decoding.decode_door import checked_codes, checked_length, checked_loudness
from pipelines.decoding.decode_errors import ServiceError, StreamClosed
from pipelines.decoding.decode_steps import StreamStates
from pipelines.decoding.decode_stream import DecodeStream, ParkedStream, Samples, UtteranceBlocks, joined, read_results
from pipelines.decoding.engine_settings import EngineHealth, EngineObserver, EngineSettings
from pipelines.decoding.model_thread import ModelThread
from pipelines.decoding.stream_scheduler import StreamScheduler
from pipelines.decoding.work_board import WorkBoard
from pipelines.decoding.work_items import CodedRow, Item, OtherWork, Outlet
from tokenizer import Codec, CodesError, Encoded, QuantoneError

__all__ = [
    "DecodeEngine",
    "DecodeStream",
    "EngineHealth",
    "EngineObserver",
    "EngineSettings",
    "ParkedStream",
    "UtteranceBlocks",
]

T = TypeVar("T")

STEP_FRAMES = {"cpu": 256}
"""Frames of all rows in one step. A CPU gains little from larger ones, and whoever comes next waits for it to end."""


class DecodeEngine:
    """A codec that serves many callers at once. It runs between `start` and `stop`, or inside a `with` block."""

    def __init__(
        self,
        codec: Codec,
        settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
        observer: EngineObserver | None = None,
    ) -> None:
        """Take a codec, where it is: on the CPU or on an accelerator.

        Args:
            codec: used by nobody else while the engine runs.
            settings: what bounds it.
            observer: hears what it does.
        """
        self.codec, self.settings = codec, settings
        self._observer = observer or EngineObserver()
        self._board: WorkBoard | None = None
        self._thread: ModelThread | None = None

    def start(self) -> None:
        """Start the model thread.

        Raises:
            RuntimeError: it runs already.
        """
        if self._thread is not None and self._thread.alive:
            raise RuntimeError("the engine runs already")
        spec, settings = self.codec.spec, self.settings
        states = StreamStates(self.codec)
        scheduler = StreamScheduler(
            max_streams=settings.max_streams,
            max_queued=settings.max_queued,
            max_step_frames=settings.max_step_frames,
            max_step_total=STEP_FRAMES.get(states.device.type, settings.max_streams * settings.max_step_frames),
        )
        self._board = WorkBoard(
            scheduler,
            self._observer,
            start_phase=states.start_phase if self.codec.streamable else None,
            max_backlog=max(1, math.ceil(settings.max_backlog_s * spec.frame_rate)),
        )
        self._thread = ModelThread(
            self._board, states, self._observer, slots=settings.max_streams, num_threads=torch.get_num_threads()
        )
        self._thread.start()

    def stop(self) -> None:
        """End the model thread; whatever is still open gets StreamClosed.

        A thread that is stuck in a step is left behind after `stuck_after_s`.
        """
        if self._board is not None and self._thread is not None:
            self._board.stop("the engine has stopped")
            self._thread.join(self.settings.stuck_after_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def decode(
        self,
        codes: NDArray[np.integer],
        *,
        num_samples: int | None = None,
        scales: NDArray[np.floating] | None = None,
        deadline_s: float | None = None,
    ) -> Samples:
        """Decode one utterance, beside whatever else runs.

        Args:
            codes: [K, T] of any integer type, K from 1 to the codec's number of codebooks.
            num_samples: length of the result; T frames must be just enough for it. None for all that T frames give.
            scales: [N], one of each segment; None for codecs without.
            deadline_s: seconds from now after which nobody wants it any more.

        Returns:
            [C, num_samples] float32 at the codec's sample rate.

        Raises:
            CodesError: the codes or scales do not fit the codec, or each other.
            Overloaded, Draining: it was not taken; another attempt is worth making later, or elsewhere.
            DeadlineExceeded: it was not done in time; what had not begun by then was never computed.
            StreamClosed: the engine is not running, or stopped meanwhile.
            ServiceError: a step that it took part in failed.
        """
        item = self._submitted(codes, num_samples, scales, deadline_s, Outlet(whole=True))
        return joined(await self._results(item))

    def decode_blocks(
        self,
        codes: NDArray[np.integer],
        *,
        num_samples: int | None = None,
        scales: NDArray[np.floating] | None = None,
        deadline_s: float | None = None,
    ) -> UtteranceBlocks:
        """What `decode` gives, [C, n] at a time, the first as soon as it is known.

        A reader that falls behind by `max_backlog_s` of sound is waited for, and holds up nobody else. Closing the
        iterator frees its place at once.

        Raises:
            CodesError, Overloaded, Draining, StreamClosed: as in `decode`, from this call. The others come from the
                iterator.
        """
        outlet = Outlet(limit=self._unread_limit)
        return UtteranceBlocks(self._running(), self._submitted(codes, num_samples, scales, deadline_s, outlet))

    async def run(self, steps: Iterator[T], *, deadline_s: float | None = None) -> list[T]:
        """Other work on the codec, such as encoding: `next(steps)` is called between the steps of streams.

        It is called on the model thread, in torch.inference_mode. Streams wait while it runs: keep each piece short.

        Returns:
            What `steps` gave.

        Raises:
            Overloaded, Draining, DeadlineExceeded, StreamClosed: as in `decode`.
            Exception: whatever `steps` raises.
        """
        work = OtherWork(
            kind="work", steps=steps, size_of=lambda _: 0, outlet=Outlet(whole=True), deadline=_deadline(deadline_s)
        )
        self._running().submit(work)
        return await self._results(work)

    def open_stream(self, *, num_codebooks: int) -> DecodeStream:
        """Take a slot for a stream of codes with so many levels, at once or not at all.

        Raises:
            CodesError: the codec does not have so many levels.
            ValueError: the codec has no streams.
            Overloaded, Draining: no slot is free, or no new streams are taken.
            StreamClosed: the engine is not running.
        """
        spec = self.codec.spec
        if not self.codec.streamable:
            raise ValueError(f"codec {self.codec.name!r} has no streams: use decode")
        if not 1 <= num_codebooks <= spec.num_codebooks:
            raise CodesError(f"num_codebooks must be 1 to {spec.num_codebooks}, not {num_codebooks}")
        board = self._running()
        return DecodeStream(board, board.open_stream(num_codebooks, Outlet(limit=self._unread_limit)), spec)

    def resume(self, parked: ParkedStream) -> DecodeStream:
        """Give a parked stream a slot again: it goes on exactly where it stood.

        Raises:
            ValueError: it was parked by another engine, or before this one was stopped, or was resumed already.
            Overloaded, Draining, StreamClosed: as in `open_stream`; it stays parked.
        """
        board = self._running()
        if parked.board is not board:
            raise ValueError("this stream was parked by another engine")
        board.resume(parked.row)
        return DecodeStream(board, parked.row, self.codec.spec)

    def health(self) -> EngineHealth:
        """Whether the model thread lives and gets on, and how much is open."""
        thread, board = self._thread, self._board
        if thread is None or board is None:
            return EngineHealth(ok=False, reason="the engine was not started", active_streams=0, queued=0)
        at_it = thread.step_seconds()
        reason = board.stopped or ""  # a thread that dies stops the board
        if not reason and at_it is not None and at_it > self.settings.stuck_after_s:
            reason = f"the model thread is stuck in one step for {at_it:.1f} s"
        return EngineHealth(
            ok=not reason,
            reason=reason,
            active_streams=board.active_streams,
            queued=board.queued,
            last_step_age_s=thread.idle_seconds() if at_it is None else at_it,
        )

    @property
    def full(self) -> bool:
        """Whether the queue is at its limit: utterances and other work are refused now."""
        return self._board is not None and self._board.full

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._board is not None and self._board.draining

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, and let what is open go to its end.

        Returns:
            Whether all of it did within the time.
        """
        board = self._running()
        board.drain()
        end = time.monotonic() + timeout_s
        while not board.empty:
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(min(0.02, timeout_s))
        return True

    @property
    def _unread_limit(self) -> float:
        return max(1.0, self.settings.max_backlog_s * self.codec.spec.sample_rate)

    def _running(self) -> WorkBoard:
        if self._board is None:
            raise StreamClosed("the engine is not running")
        return self._board

    async def _results(self, item: Item) -> list[Any]:
        board = self._running()
        try:
            return await read_results(board, item, item.owner)
        finally:
            board.close(item, item.owner)

    def _submitted(
        self,
        codes: NDArray[np.integer],
        num_samples: int | None,
        scales: NDArray[np.floating] | None,
        deadline_s: float | None,
        outlet: Outlet,
    ) -> Item:
        spec = self.codec.spec
        checked = checked_codes(codes, spec)
        length = checked_length(checked.shape[1], num_samples, spec)
        loudness = checked_loudness(scales, length, spec)
        item: Item
        if self.codec.streamable:
            item = CodedRow(kind="utterance", num_codebooks=checked.shape[0], outlet=outlet, left=length)
            item.codes.append(checked)
            item.pending, item.ended = checked.shape[1], True
        else:
            batch = torch.from_numpy(checked.astype(np.int64))[None]
            steps = _decoded_blocks(self.codec, Encoded(batch, loudness, length))
            item = OtherWork(kind="utterance", steps=steps, size_of=lambda block: block.shape[1], outlet=outlet)
        item.deadline = _deadline(deadline_s)
        self._running().submit(item)
        return item


def _decoded_blocks(codec: Codec, encoded: Encoded) -> Iterator[Samples]:
    try:
        for block in codec.decode_blocks(encoded):
            yield block[0].float().cpu().numpy()
    except QuantoneError:
        raise
    except Exception as error:
        raise ServiceError(f"decoding failed: {type(error).__name__}: {error}") from error


def _deadline(deadline_s: float | None) -> float:
    return math.inf if deadline_s is None else time.monotonic() + deadline_s
