"""The callers' side of the board: streams, utterances and other work come in here, and results are taken out.

Callers stand on any number of asyncio loops. What is done with the lock held is short, so a loop may take it. Waiting
is outside of it: callers await futures, which are resolved once per loop and turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from pipelines.decoding.decode_errors import Overloaded, StreamClosed
from pipelines.decoding.decode_steps import StreamStates
from pipelines.decoding.turn_board import TurnBoard
from pipelines.decoding.work_items import CodedRow, Codes, FrameQueue, Item, Outlet


class WorkBoard(TurnBoard):
    """All that is open on one engine. Any thread may call any method of this side.

    Whoever holds something uses it under the name `owner` that it was given: a handle that was closed, or whose stream
    was parked and lives on in another handle, is refused with StreamClosed.
    """

    @property
    def active_streams(self) -> int:
        """Slots that are taken."""
        return self._scheduler.active_streams

    @property
    def queued(self) -> int:
        """Utterances and other work that wait for a place."""
        return self._scheduler.queued

    @property
    def full(self) -> bool:
        """Whether the queue is at its limit."""
        return self._scheduler.full

    @property
    def draining(self) -> bool:
        """Whether only what is open goes on."""
        return self._scheduler.draining

    @property
    def empty(self) -> bool:
        """Whether nothing is open."""
        with self._changed:
            self._reap()
            return self._scheduler.empty

    def open_stream(self, num_codebooks: int, outlet: Outlet) -> CodedRow:
        """A new stream in a slot. Raises Overloaded, Draining, StreamClosed."""
        row = CodedRow(kind="stream", key=0, num_codebooks=num_codebooks, outlet=outlet)
        with self._changed:
            self._restart(row)
            self._enter(row, self._scheduler.open)
        return row

    def resume(self, row: CodedRow) -> None:
        """Give a parked stream a slot again. Raises as `open_stream`; ValueError where it is not parked."""
        with self._changed:
            if not row.parked:
                raise ValueError("this parked stream was resumed already")
            if row.outlet.error is not None:  # its last step failed after it was parked
                raise row.outlet.error.with_traceback(None)
            self._enter(row, self._scheduler.open)
            row.parked, row.blocked = False, row.outlet.full
            key = row.key  # a reset may give it another before this is done
            self._change(lambda states: _resume(states, row, key))

    def submit(self, item: Item) -> None:
        """An utterance, with all its codes, or other work. Raises Overloaded, Draining, StreamClosed."""
        with self._changed:
            if isinstance(item, CodedRow):
                item.key, item.phase = next(self._names), (item.num_codebooks, self._start_phase)
            item.submitted = time.monotonic()
            if self._enter(item, self._scheduler.submit):
                self._observer.queued(0.0)
            self._notify()

    def push(self, row: CodedRow, owner: int, codes: Codes) -> int:
        """Codes [K, n] of the next frames: as many as there is room for.

        Returns:
            Frames taken.

        Raises:
            StreamClosed: closed, parked or finished.
            ServiceError: a step of the stream failed.
        """
        with self._changed:
            self._check(row, owner)
            if row.ended:
                raise StreamClosed("this utterance is finished: reset() starts the next one")
            taken: int = min(codes.shape[1], max(0, self._max_backlog - row.pending))
            if taken:
                row.codes.append(codes[:, :taken])
                self._scheduler.add(row, taken)
                self._notify()
            return taken

    def room(self, row: CodedRow, owner: int) -> asyncio.Future[None] | None:
        """What to await until half of a stream's backlog is free; None where it is."""
        with self._changed:
            self._check(row, owner)
            if row.pending <= self._max_backlog // 2:
                return None
            row.writer = _waiter(row.writer)
            return row.writer

    def finish(self, row: CodedRow, owner: int) -> None:
        """No more codes of this utterance."""
        with self._changed:
            self._check(row, owner)
            if row.ended:
                return
            self._scheduler.end(row)
            self._finish_if_out(row)
            self._notify()
        self._ring()

    def reset(self, row: CodedRow, owner: int) -> None:
        """Start anew in the same slot, with nothing pending or unread."""
        with self._changed:
            self._check(row, owner)
            self._drop_state(row)
            self._restart(row)
            self._wake_writer(row)
        self._ring()

    def close(self, item: Item, owner: int) -> None:
        """Take something out, unless another handle owns it now."""
        with self._changed:
            if item.owner == owner and self._end(item, StreamClosed("the stream was closed")):
                item.outlet.clear()
        self._ring()

    def park(self, row: CodedRow, owner: int) -> None:
        """Take a stream out of its slot with all that it has."""
        with self._changed:
            self._check(row, owner)
            self._scheduler.remove(row)
            self._observer.stream_closed()
            row.owner, row.parked = 0, True
            key = row.key
            self._change(lambda states: _park(states, row, key))
            self._wake_writer(row)
            self._wake_reader(row.outlet)
        self._ring()

    def take(self, item: Item, owner: int) -> tuple[list[Any], asyncio.Future[None] | None]:
        """What there is to read.

        Returns:
            Results, and no future; no results, and a future to await before asking again; or neither: the end.

        Raises:
            StreamClosed, ServiceError: why nothing more comes.
        """
        outlet = item.outlet
        with self._changed:
            if item.owner != owner:
                raise StreamClosed("the stream was parked")
            if outlet.items and (outlet.ended or not outlet.whole):
                if item.blocked:
                    self._scheduler.unblock(item)
                    self._notify()
                return outlet.take(), None
            if outlet.error is not None:
                raise outlet.error.with_traceback(None)
            if outlet.ended:
                return [], None
            outlet.reader = _waiter(outlet.reader)
            return [], outlet.reader

    def expire(self, item: Item) -> None:
        """The deadline has passed while its caller was waiting."""
        with self._changed:
            self._expire(item)
        self._ring()

    def forget(self, item: Item, owner: int) -> None:
        """Close what its caller dropped without closing it. It takes no lock: garbage is collected anywhere."""
        self._forgotten.append((item, owner))

    def drain(self) -> None:
        """Take nothing new; what is open goes on."""
        with self._changed:
            self._scheduler.draining = True

    def _enter(self, item: Item, place: Callable[[Any], Any]) -> Any:
        if self._stopped is not None:
            raise StreamClosed(self._stopped)
        self._reap()
        try:
            placed = place(item)
        except Overloaded:
            self._observer.rejected(item.kind)
            raise
        item.owner = next(self._names)
        if item.kind == "stream":
            self._observer.stream_opened()
        return placed

    def _restart(self, row: CodedRow) -> None:
        row.key = next(self._names)
        row.codes = FrameQueue()
        row.outlet.clear()
        row.outlet.ended = row.in_step = False
        row.owed = 0
        self._scheduler.restart(row, (row.num_codebooks, self._start_phase))

    def _check(self, row: CodedRow, owner: int) -> None:
        if row.outlet.error is not None:
            raise row.outlet.error.with_traceback(None)
        if row.owner != owner:
            raise StreamClosed("the stream was parked")


def _waiter(previous: asyncio.Future[None] | None) -> asyncio.Future[None]:
    if previous is not None and not previous.done():
        raise RuntimeError("another task waits at this end of the stream already")
    return asyncio.get_running_loop().create_future()


def _park(states: StreamStates, row: CodedRow, key: int) -> None:
    row.state = states.park(key)


def _resume(states: StreamStates, row: CodedRow, key: int) -> None:
    if row.state is not None:
        states.resume(key, row.state)
        row.state = None
