"""The model thread's side of the board: what it does next, and what becomes of what it did."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pipelines.decoding.decode_errors import DeadlineExceeded, ServiceError, StreamClosed
from pipelines.decoding.decode_steps import Samples, StreamStates
from pipelines.decoding.engine_settings import EngineObserver
from pipelines.decoding.stream_scheduler import Step, StreamScheduler
from pipelines.decoding.work_items import CodedRow, Codes, Item, OtherWork, Outlet, as_item, as_row

StateChange = Callable[[StreamStates], None]


@dataclass(frozen=True, slots=True)
class StepTask:
    """One batched step, with the codes of each row that takes part."""

    step: Step
    codes: Mapping[int, Codes]  # [K, frames] by key
    rows: Mapping[int, CodedRow]  # by the key that each had when the step began


@dataclass(frozen=True, slots=True)
class Task:
    """What the model thread does next: changes to network states, and then at most one turn."""

    changes: list[StateChange]
    turn: StepTask | OtherWork | None


class TurnBoard:
    """One lock, who has a place, who is to be woken, and what the model thread is to do."""

    def __init__(
        self, scheduler: StreamScheduler, observer: EngineObserver, *, start_phase: Hashable, max_backlog: int
    ) -> None:
        """Begin with nothing.

        Args:
            scheduler: decides; only the board uses it.
            observer: hears what happens.
            start_phase: of streams that nothing has been decoded of.
            max_backlog: frames that may wait in one stream.
        """
        self._scheduler, self._observer = scheduler, observer
        self._start_phase, self._max_backlog = start_phase, max_backlog
        self._changed = threading.Condition(threading.Lock())
        self._changes: list[StateChange] = []
        self._wakes: deque[asyncio.Future[None]] = deque()
        self._forgotten: deque[tuple[Item, int]] = deque()
        self._names = itertools.count(1)
        self._idle = False
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """Why nothing is taken any more, or None."""
        return self._stopped

    def next_task(self) -> Task | None:
        """Wait until there is something to do; None after the end."""
        with self._changed:
            while True:
                if self._stopped is not None:
                    return None
                self._tidy()
                turn = self._scheduler.next_turn()
                if turn is not None or self._changes or self._wakes:
                    break
                deadline = self._scheduler.next_deadline()
                self._idle = True
                self._changed.wait(None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()))
                self._idle = False
            changes, self._changes = self._changes, []
            begun: StepTask | OtherWork | None = None
            if turn is not None:
                self._scheduler.began(turn)
                begun = self._with_codes(turn) if isinstance(turn, Step) else cast("OtherWork", turn)
        self._ring()
        return Task(changes, begun)

    def stepped(self, task: StepTask, samples: Mapping[int, Samples], phase: Hashable, *, owed: int) -> None:
        """A step gave samples [C, n] by key; `owed` more are held back, in networks of that phase."""
        with self._changed:
            for key, row in task.rows.items():
                if row.key == key:  # else it was closed or reset while the step ran
                    row.phase, row.owed, row.in_step = (row.num_codebooks, phase), owed, False
                    self._put(row, samples[key])
                    self._finish_if_out(row)
        self._ring()

    def worked(self, work: OtherWork, item: Any, size: int, *, ended: bool) -> None:
        """Other work gave one more result, or came to its end."""
        with self._changed:
            if work.outlet.error is None:
                if ended:
                    self._scheduler.remove(work)
                    work.outlet.ended = True
                else:
                    work.outlet.put(item, size)
                    work.blocked = work.outlet.full
                if ended or not work.outlet.whole:
                    self._wake_reader(work.outlet)
        self._ring()

    def failed(self, turn: StepTask | OtherWork, error: Exception) -> None:
        """A turn raised: those who took part are told why, nobody else notices."""
        with self._changed:
            if isinstance(turn, OtherWork):
                self._end(turn, error)
            else:
                for key, row in turn.rows.items():
                    if row.key == key:
                        self._end(row, _told(error))
        self._ring()

    def took(self, turn: StepTask | OtherWork, seconds: float) -> None:
        """A turn took so long."""
        with self._changed:
            self._scheduler.took(turn.step if isinstance(turn, StepTask) else turn, seconds)

    def stop(self, reason: str) -> None:
        """End everything that is open, and the model thread after its turn."""
        with self._changed:
            self._stopped = self._stopped or reason
            for place in self._scheduler.places():
                self._end(as_item(place), StreamClosed(self._stopped))
            self._changed.notify_all()
        self._ring()

    # What follows is called with the lock held, but for _ring.

    def _reap(self) -> None:
        """Close what was dropped without being closed."""
        while self._forgotten:
            item, owner = self._forgotten.popleft()
            if item.owner == owner:
                self._end(item, StreamClosed("the stream was dropped without being closed"))

    def _tidy(self) -> None:
        """Drop what nobody waits for any more, and give its places to those who do."""
        self._reap()
        now = time.monotonic()
        for late in self._scheduler.expired(now):
            self._expire(as_item(late))
        for entered in self._scheduler.admit():
            self._observer.queued(now - as_item(entered).submitted)

    def _with_codes(self, step: Step) -> StepTask:
        rows = {row.key: row for row in map(as_row, step.rows)}
        codes = {key: row.codes.take(step.frames) for key, row in rows.items()} if step.frames else {}
        for row in rows.values():
            row.in_step = True
            if row.pending <= self._max_backlog // 2:
                self._wake_writer(row)
        return StepTask(step, codes, rows)

    def _put(self, row: CodedRow, samples: Samples) -> None:
        if row.left is not None:
            samples = samples[:, : row.left]
            row.left -= samples.shape[1]
        if samples.shape[1]:
            row.outlet.put(samples, samples.shape[1])
            row.blocked = row.outlet.full
            if not row.outlet.whole:
                self._wake_reader(row.outlet)

    def _finish_if_out(self, row: CodedRow) -> None:
        """The end of an utterance, once all of its samples came out. A stream keeps its slot for the next one."""
        if row.in_step or not row.ended or row.pending or (row.owed and not row.finished):
            return
        row.finished = row.outlet.ended = True
        self._wake_reader(row.outlet)
        self._drop_state(row)
        if row.kind == "utterance":
            self._scheduler.remove(row)

    def _end(self, item: Item, error: Exception) -> bool:
        """Take something out before its time; False where it had come to its end already."""
        outlet = item.outlet
        if outlet.error is not None or (outlet.ended and item.kind != "stream"):
            return False
        outlet.error = error
        self._wake_reader(outlet)
        self._scheduler.remove(item)
        if isinstance(item, CodedRow):
            self._drop_state(item)
            self._wake_writer(item)
            if item.kind == "stream" and not item.parked:
                self._observer.stream_closed()
        return True

    def _expire(self, item: Item) -> None:
        if self._end(item, DeadlineExceeded("the deadline passed before the work was done")):
            self._observer.expired(item.kind)

    def _drop_state(self, row: CodedRow) -> None:
        """Give a row's network state up; a step that runs now brings it nothing."""
        key, row.key = row.key, next(self._names)
        self._change(lambda states: states.drop([key]))

    def _change(self, change: StateChange) -> None:
        self._changes.append(change)
        self._notify()

    def _notify(self) -> None:
        if self._idle:
            self._idle = False
            self._changed.notify()

    def _wake_reader(self, outlet: Outlet) -> None:
        if outlet.reader is not None:
            self._wakes.append(outlet.reader)
            outlet.reader = None

    def _wake_writer(self, row: CodedRow) -> None:
        if row.writer is not None:
            self._wakes.append(row.writer)
            row.writer = None

    def _ring(self) -> None:
        """Wake those who are to be woken: one call for each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        with contextlib.suppress(IndexError):
            while True:
                waiter = self._wakes.popleft()
                by_loop.setdefault(waiter.get_loop(), []).append(waiter)
        for loop, waiters in by_loop.items():
            with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody waiting
                loop.call_soon_threadsafe(_resolve, waiters)


def _told(error: Exception) -> Exception:
    """What the streams of a step hear, each an error of its own."""
    told = ServiceError(f"a decoding step failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
