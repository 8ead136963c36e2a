"""What stands on the board between callers and the model thread: codes that wait, and results that wait to be read."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.decoding.decode_steps import ParkedState
from pipelines.decoding.stream_scheduler import Place, Row

Codes = NDArray[np.integer]


class FrameQueue:
    """Frames of codes [K, n], in pieces as they came."""

    def __init__(self) -> None:
        self._pieces: deque[Codes] = deque()

    def append(self, codes: Codes) -> None:
        """Codes [K, n] of the next frames, n at least 1. They are kept, not copied."""
        self._pieces.append(codes)

    def take(self, frames: int) -> Codes:
        """The next frames, [K, frames]; there must be as many."""
        taken: list[Codes] = []
        while frames:
            piece = self._pieces.popleft()
            if piece.shape[1] > frames:
                self._pieces.appendleft(piece[:, frames:])
                piece = piece[:, :frames]
            taken.append(piece)
            frames -= piece.shape[1]
        return taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1)

    @property
    def nbytes(self) -> int:
        """Of all pieces."""
        return sum(piece.nbytes for piece in self._pieces)


@dataclass(slots=True, eq=False, kw_only=True)
class Outlet:
    """Results of one reader."""

    limit: float = math.inf  # of what may lie here unread, in samples
    whole: bool = False  # the reader wants everything at once, at the end
    items: deque[Any] = field(default_factory=deque)
    unread: int = 0  # samples
    ended: bool = False
    error: Exception | None = None  # why nothing more comes
    reader: asyncio.Future[None] | None = None  # who waits for the next result

    def put(self, item: Any, size: int) -> None:
        """One more result."""
        self.items.append(item)
        self.unread += size

    def take(self) -> list[Any]:
        """All that is here."""
        items = list(self.items)
        self.clear()
        return items

    def clear(self) -> None:
        """Drop what is here."""
        self.items.clear()
        self.unread = 0

    @property
    def full(self) -> bool:
        """Whether the reader is too far behind."""
        return self.unread >= self.limit


@dataclass(slots=True, eq=False, kw_only=True)
class CodedRow(Row):
    """A stream or an utterance with its codes."""

    key: int = 0  # names its network state; a reset gives it a new one
    num_codebooks: int
    outlet: Outlet
    codes: FrameQueue = field(default_factory=FrameQueue)
    in_step: bool = False  # some of its frames are in the step that runs now
    owed: int = 0  # samples that the networks hold back
    left: int | None = None  # samples of an utterance still to come
    submitted: float = 0.0  # when
    owner: int = 0  # the handle that may use it: a parked stream has another one when it is resumed
    writer: asyncio.Future[None] | None = None  # who waits for room in the backlog
    parked: bool = False
    state: ParkedState | None = None  # of a parked stream


@dataclass(slots=True, eq=False, kw_only=True)
class OtherWork(Place):
    """An iterator whose next() is called between steps."""

    steps: Iterator[Any]
    size_of: Callable[[Any], int]  # samples in a result
    outlet: Outlet
    submitted: float = 0.0  # when
    owner: int = 0


Item: TypeAlias = CodedRow | OtherWork


def as_item(place: Place) -> Item:
    """A place of the scheduler as what the board put there."""
    return cast("Item", place)


def as_row(row: Row) -> CodedRow:
    """A row of the scheduler as what the board put there."""
    return cast("CodedRow", row)
