"""Which rows take how many frames in the next step, and what waits: decisions without networks, threads or clocks.

A row is a stream, or a whole utterance that is decoded beside the streams. One step gives equally many frames of every
row that takes part to the networks. Who waits longest leads: its step is the one with the most frames in all among
those that it can take part in, so a row with one frame is neither held up by a neighbour with a hundred nor alone.
Utterances count as if they had come some turns later than streams; so they give way and are never starved.

Other work (encoding, codecs that cannot stream) runs between steps. Where it competes with rows, both get half of the
time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.decoding.decode_errors import Draining, Overloaded

UTTERANCES_AT_ONCE = 8  # rows beside the streams: enough to fill a step, few enough to end soon
WORK_AT_ONCE = 4
UTTERANCE_PATIENCE = 4  # turns that an utterance gives way to streams


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """What has a place in the scheduler, or waits for one."""

    kind: str  # "stream", "utterance" or "work"
    deadline: float = math.inf  # on the caller's clock
    blocked: bool = False  # its reader has no room for more
    since: int = 0  # turn in which it became ready, or was last served


@dataclass(slots=True, eq=False, kw_only=True)
class Row(Place):
    """A stream, or an utterance decoded like one."""

    pending: int = 0  # frames that wait
    ended: bool = False  # no more frames come: after the last one, what the networks hold back is due
    finished: bool = False  # that is out too
    phase: Hashable = None  # rows of one phase may share a step

    @property
    def ready(self) -> bool:
        """Whether it can take part in a step."""
        return not self.blocked and (self.pending > 0 or (self.ended and not self.finished))


@dataclass(frozen=True, slots=True)
class Step:
    """Rows that go through the networks together."""

    rows: tuple[Row, ...]
    frames: int  # of each; 0: the rows end, and what the networks hold back comes out


Turn: TypeAlias = Step | Place  # a Place is other work whose next piece is due


def next_step(rows: Iterable[Row], max_frames: int, max_total: int) -> Step | None:
    """The step to take now.

    Args:
        rows: all that have a place.
        max_frames: that one row takes in one step.
        max_total: frames of all rows in one step; a step with one frame of each row may have more.

    Returns:
        None where no row is ready.
    """
    ready = sorted((row for row in rows if row.ready), key=_precedence)
    if not ready:
        return None
    head = ready[0]
    beside = [row for row in ready if row.phase == head.phase and (row.pending == 0) == (head.pending == 0)]
    if head.pending == 0:
        return Step(tuple(beside), 0)
    frames = _common_frames(beside, min(head.pending, max_frames), max_total)
    taking = [row for row in beside if row.pending >= frames]
    return Step(tuple(taking[: max(1, max_total // frames)] if frames > 1 else taking), frames)


def _precedence(row: Row) -> tuple[int, bool]:
    gives_way = row.kind == "utterance"
    return row.since + UTTERANCE_PATIENCE * gives_way, gives_way


def _common_frames(rows: Sequence[Row], most: int, max_total: int) -> int:
    """Frames per row, at most `most`, for the step with the most frames in all; the shorter one of two equals."""
    best, best_total = 1, 0
    pending = sorted((min(row.pending, most) for row in rows), reverse=True)
    for count, frames in enumerate(pending, start=1):
        shorter = min(frames, max(1, max_total // count))
        if shorter * count >= best_total:
            best, best_total = shorter, shorter * count
    return best


@dataclass(slots=True)
class StreamScheduler:
    """Who has a place, who waits for one, and whose turn it is.

    Times are what the caller's clock says; nothing here looks at one.
    """

    max_streams: int
    max_queued: int
    max_step_frames: int
    max_step_total: int  # frames of all rows in one step
    draining: bool = False
    turn: int = 0
    _rows: dict[Row, None] = field(default_factory=dict)
    _work: deque[Place] = field(default_factory=deque)
    _waiting: dict[Place, None] = field(default_factory=dict)
    _streams: int = 0
    _debt: float = 0.0  # seconds that other work took while rows were waiting

    @property
    def active_streams(self) -> int:
        """Slots that are taken."""
        return self._streams

    @property
    def queued(self) -> int:
        """Utterances and other work without a place yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the queue is at its limit: what comes now is refused."""
        return 0 < self.max_queued <= self.queued

    @property
    def empty(self) -> bool:
        """Whether nobody has a place or waits for one."""
        return not (self._rows or self._work or self._waiting)

    def places(self) -> list[Place]:
        """All who have a place or wait for one."""
        return [*self._rows, *self._work, *self._waiting]

    def open(self, stream: Row) -> None:
        """Give a stream a slot.

        Raises:
            Draining, Overloaded: no new streams, or no slot.
        """
        self._check_open()
        if self._streams >= self.max_streams:
            raise Overloaded(f"all {self.max_streams} stream slots are taken")
        self._streams += 1
        stream.since = self.turn
        self._rows[stream] = None

    def submit(self, place: Place) -> bool:
        """Take an utterance or other work in: it gets a place, or waits for one.

        Returns:
            Whether it has its place.

        Raises:
            Draining, Overloaded: nothing new is taken, or the queue is full.
        """
        self._check_open()
        waits = self.queued > 0 or not self._has_room_for(place)
        if waits and self.queued >= self.max_queued:
            raise Overloaded(f"the queue is full: {self.queued} requests wait already, {self.max_queued} may")
        unread = sum(other.blocked and other.kind != "stream" for other in self.places())
        if unread >= self.max_queued + UTTERANCES_AT_ONCE:
            raise Overloaded(f"{unread} answers wait to be read: no more are begun")
        if waits:
            self._waiting[place] = None
        else:
            self._enter(place)
        return not waits

    def remove(self, place: Place) -> None:
        """Take a stream, an utterance or other work out, wherever it is; nothing happens where it is not here."""
        if isinstance(place, Row) and place in self._rows:
            del self._rows[place]
            self._streams -= place.kind == "stream"
        elif place in self._work:
            self._work.remove(place)
        self._waiting.pop(place, None)

    def add(self, row: Row, frames: int) -> None:
        """More frames of a row have come."""
        self._became_ready(row)
        row.pending += frames

    def end(self, row: Row) -> None:
        """No more frames of a row come."""
        self._became_ready(row)
        row.ended = True

    def restart(self, row: Row, phase: Hashable) -> None:
        """A row begins anew, with nothing pending."""
        row.pending, row.ended, row.finished, row.blocked, row.phase = 0, False, False, False, phase

    def unblock(self, place: Place) -> None:
        """The reader has room again."""
        if isinstance(place, Row):
            self._became_ready(place)
        place.blocked = False

    def admit(self) -> list[Place]:
        """Give places to those who wait, first come, first served; returns who got one."""
        entered = []
        for place in list(self._waiting):
            if self._has_room_for(place):
                del self._waiting[place]
                self._enter(place)
                entered.append(place)
        return entered

    def expired(self, now: float) -> list[Place]:
        """Whose deadline has passed. They are out of the scheduler, so their codes never reach the networks."""
        late = [place for place in self.places() if place.deadline <= now]
        for place in late:
            self.remove(place)
        return late

    def next_deadline(self) -> float:
        """When `expired` has something to say next; infinity where nobody has a deadline."""
        return min((place.deadline for place in self.places()), default=math.inf)

    def next_turn(self) -> Turn | None:
        """A step, or other work whose next piece is due; None where nothing can be done now."""
        step = next_step(self._rows, self.max_step_frames, self.max_step_total)
        work = next((place for place in self._work if not place.blocked), None)
        if step is None:
            self._debt = 0.0
            return work
        return step if work is None or self._debt > 0 else work

    def began(self, turn: Turn) -> None:
        """The turn is being taken: its frames are no longer pending, and its rows stand at the end of the line."""
        self.turn += 1
        if not isinstance(turn, Step):
            self._work.remove(turn)
            self._work.append(turn)
            return
        for row in turn.rows:
            row.pending -= turn.frames
            row.finished = turn.frames == 0
            row.since = self.turn

    def took(self, turn: Turn, seconds: float) -> None:
        """A turn was taken, and so long it took."""
        if isinstance(turn, Step):
            self._debt = max(0.0, self._debt - seconds)
        elif any(row.ready for row in self._rows):
            self._debt += seconds

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("the service is shutting down and takes no new work")

    def _became_ready(self, row: Row) -> None:
        if not row.ready:
            row.since = self.turn

    def _has_room_for(self, place: Place) -> bool:
        # Those whose readers are behind cost memory only, and so they take no place from others.
        if not isinstance(place, Row):
            return sum(not work.blocked for work in self._work) < WORK_AT_ONCE
        return sum(row.kind == "utterance" and not row.blocked for row in self._rows) < UTTERANCES_AT_ONCE

    def _enter(self, place: Place) -> None:
        place.since = self.turn
        if isinstance(place, Row):
            self._rows[place] = None
        else:
            self._work.append(place)
