"""What callers of an engine hold: a stream of codes in a slot, a parked one, and the blocks of an utterance."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.decoding.decode_door import checked_codes
from pipelines.decoding.work_board import WorkBoard
from pipelines.decoding.work_items import CodedRow, Item
from tokenizer import CodecSpec

Samples = NDArray[np.float32]


class _Handle:
    """What a caller owns on a board until it is closed."""

    def __init__(self, board: WorkBoard, item: Item) -> None:
        self._board, self._item, self._owner = board, item, item.owner

    def __del__(self) -> None:
        self._board.forget(self._item, self._owner)

    def close(self) -> None:
        """Give the place up at once, also while a step runs. A second time does nothing."""
        self._board.close(self._item, self._owner)

    async def results(self) -> list[Any]:
        """What came out since the last call, at least one result; none at the end."""
        return await read_results(self._board, self._item, self._owner)


class UtteranceBlocks(_Handle):
    """The waveform of one utterance, [C, n] at a time, as it becomes known: an async iterator and context manager."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        blocks = await self.results()
        if not blocks:
            raise StopAsyncIteration
        return joined(blocks)

    async def aclose(self) -> None:
        """Stop: the place of the utterance is free at once."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ParkedStream:
    """A stream without a slot: its network state, codes not decoded and samples not read, all in main memory.

    `DecodeEngine.resume` goes on exactly where it stood. Dropping it frees everything.
    """

    def __init__(self, board: WorkBoard, row: CodedRow) -> None:
        self.board, self.row = board, row

    @property
    def num_codebooks(self) -> int:
        """Levels of its codes."""
        return self.row.num_codebooks

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps; the network state counts as soon as the model thread has handed it out."""
        state = 0 if self.row.state is None else self.row.state.nbytes
        unread = sum(int(block.nbytes) for block in self.row.outlet.items)
        return self.row.codes.nbytes + unread + state


class DecodeStream(_Handle):
    """One stream of codes in a slot: codes are pushed in, samples are iterated out.

    One task may push and one may read at a time, on any loops. Leaving its `async with` block closes it.
    """

    def __init__(self, board: WorkBoard, row: CodedRow, spec: CodecSpec) -> None:
        super().__init__(board, row)
        self._row, self._spec = row, spec

    @property
    def num_codebooks(self) -> int:
        """Levels of its codes."""
        return self._row.num_codebooks

    async def push(self, codes: NDArray[np.integer]) -> None:
        """Hand in the next frames; waits while the backlog is full.

        Where it is cancelled while it waits, the first of the frames may be in already.

        Args:
            codes: [K, T] of any integer type, K as the stream was opened for, T at least 1 and as large as you like.

        Raises:
            CodesError: codes that the codec cannot mean; the stream goes on without them.
            StreamClosed: the stream was closed or parked, or the utterance is finished.
            ServiceError: a step of this stream failed.
        """
        left: NDArray[np.integer] = checked_codes(codes, self._spec, num_codebooks=self.num_codebooks)
        while True:
            taken = self._board.push(self._row, self._owner, left)
            left = left[:, taken:]
            if left.shape[1] == 0:
                return
            room = self._board.room(self._row, self._owner)
            if room is not None:
                await room

    def finish(self) -> None:
        """No more codes of this utterance: the iterator ends when all of its samples came out.

        Raises:
            StreamClosed, ServiceError: as in `push`.
        """
        self._board.finish(self._row, self._owner)

    def reset(self) -> None:
        """Start a new utterance in the same slot, at any time: codes that wait and samples not read are dropped.

        Raises:
            StreamClosed, ServiceError: as in `push`.
        """
        self._board.reset(self._row, self._owner)

    def park(self) -> ParkedStream:
        """Give the slot up and keep the stream. This handle is closed by it.

        Raises:
            StreamClosed, ServiceError: as in `push`.
        """
        self._board.park(self._row, self._owner)
        return ParkedStream(self._board, self._row)

    async def read(self) -> Samples | None:
        """All samples [C, n] since the last read, as soon as there are any; None when the utterance is at its end.

        Raises:
            StreamClosed, ServiceError: as in `push`.
        """
        blocks = await self.results()
        return joined(blocks) if blocks else None

    async def __aiter__(self) -> AsyncIterator[Samples]:
        """What `read` gives, to the end of the utterance: it comes after `finish`, with the last sample."""
        while (samples := await self.read()) is not None:
            yield samples

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def read_results(board: WorkBoard, item: Item, owner: int) -> list[Any]:
    """Wait for results: at least one, or none at the end.

    Raises:
        DeadlineExceeded: the deadline of the item passed; it is out.
        StreamClosed, ServiceError: why nothing more comes.
    """
    while True:
        results, waiter = board.take(item, owner)
        if waiter is None:
            return results
        try:
            left = None if math.isinf(item.deadline) else item.deadline - time.monotonic()
            async with asyncio.timeout(left):
                await waiter
        except TimeoutError:
            board.expire(item)


def joined(blocks: list[Samples]) -> Samples:
    """Blocks [C, n] of a waveform as one."""
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
