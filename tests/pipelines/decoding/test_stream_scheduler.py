"""Who takes part in the next step: nobody is starved, nobody twice, and nothing late reaches the networks."""

import math
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.decoding.decode_errors import Draining, Overloaded
from pipelines.decoding.stream_scheduler import (
    UTTERANCE_PATIENCE,
    UTTERANCES_AT_ONCE,
    WORK_AT_ONCE,
    Place,
    Row,
    Step,
    StreamScheduler,
    next_step,
)


def stream(pending=0, **facts):
    return Row(kind="stream", pending=pending, **facts)


def utterance(pending, **facts):
    return Row(kind="utterance", pending=pending, ended=True, **facts)


def scheduler(*, max_streams=4, max_queued=3, max_step_frames=32, max_step_total=128):
    return StreamScheduler(max_streams, max_queued, max_step_frames, max_step_total)


def take(plan, seconds=0.01):
    """The next turn, taken."""
    turn = plan.next_turn()
    if turn is not None:
        plan.began(turn)
        plan.took(turn, seconds)
    return turn


def test_it_needs_neither_networks_nor_ray():
    """Decisions are plain Python: importing them loads neither torch nor Ray nor numpy."""
    program = "import sys, pipelines.decoding.stream_scheduler; print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("pending", "frames", "taking"),
    [
        ([1, 1, 1], 1, 3),
        ([5], 5, 1),
        ([100], 32, 1),
        ([1, 100], 1, 2),
        ([100, 1], 32, 1),
        ([25, 24, 24, 24], 24, 4),
        ([3, 25, 25], 3, 3),
        ([25, 25, 3], 25, 2),
        ([32] * 8, 16, 8),
        ([32] * 5, 32, 4),
    ],
    ids=str,
)
def test_who_waits_longest_takes_the_fullest_step(pending, frames, taking):
    """The first row is always in; of its possible steps the one with the most frames in all is taken."""
    rows = [stream(count, since=turn) for turn, count in enumerate(pending)]
    step = next_step(rows, 32, 128)
    assert (step.frames, len(step.rows)) == (frames, taking)
    assert rows[0] in step.rows


def test_rows_of_different_phases_do_not_share_a_step():
    """Streams that hold back different amounts go in turns, whoever waits longer first."""
    rows = [stream(4, phase="start", since=2), stream(4, phase="later", since=1), stream(4, phase="later", since=3)]
    assert next_step(rows, 32, 128).rows == (rows[1], rows[2])


def test_a_stream_that_ended_gives_its_rest_in_a_step_without_frames():
    """After the last frame comes one step of zero frames, once, and none before `end`."""
    plan, row = scheduler(), stream()
    plan.open(row)
    plan.add(row, 3)
    assert take(plan).frames == 3
    assert plan.next_turn() is None
    plan.end(row)
    assert take(plan) == Step((row,), 0)
    assert plan.next_turn() is None


def test_utterances_give_way_to_streams_but_are_not_starved():
    """While streams always have work of another phase, an utterance still gets every so many turns."""
    plan = scheduler()
    rows = [stream(phase=index) for index in range(2)]
    for row in rows:
        plan.open(row)
        plan.add(row, 10**6)
    long = utterance(1000, phase="alone")
    plan.submit(long)
    turns = [take(plan).rows[0] for _ in range(60)]
    share = turns.count(long) / len(turns)
    assert 1 / (2 + 2 * UTTERANCE_PATIENCE) < share < 1 / 3


def test_a_reader_that_is_behind_stops_its_own_row_only():
    """A blocked row takes no part until it is unblocked; its neighbours go on."""
    plan, slow, quick = scheduler(), stream(), stream()
    for row in (slow, quick):
        plan.open(row)
        plan.add(row, 2)
    slow.blocked = True
    assert take(plan).rows == (quick,)
    assert plan.next_turn() is None
    plan.unblock(slow)
    assert take(plan).rows == (slow,)


def test_other_work_gets_half_of_the_time_where_streams_are_waiting():
    """A long piece of work is paid back to the streams before the next one."""
    plan, row, work = scheduler(), stream(), Place(kind="work")
    plan.open(row)
    plan.add(row, 10**6)
    plan.submit(work)
    turns = []
    for _ in range(36):
        turn = plan.next_turn()
        plan.began(turn)
        plan.took(turn, 1 / 8 if turn is work else 1 / 64)
        turns.append(turn)
    assert [index for index, turn in enumerate(turns) if turn is work] == [0, 9, 18, 27]


def test_other_work_alone_has_all_the_time():
    """Nobody waits: pieces of several works take turns, without a pause."""
    plan, works = scheduler(), [Place(kind="work") for _ in range(3)]
    for work in works:
        plan.submit(work)
    assert [take(plan) for _ in range(6)] == works * 2


def test_slots_and_queue_are_bounded():
    """One stream more than slots, one request more than the queue holds: Overloaded, which says when to come again."""
    plan = scheduler(max_streams=2, max_queued=1)
    first = stream()
    plan.open(first)
    plan.open(stream())
    with pytest.raises(Overloaded, match="all 2 stream slots") as refused:
        plan.open(stream())
    assert refused.value.retry_after_s > 0
    plan.remove(first)
    plan.open(stream())
    for _ in range(UTTERANCES_AT_ONCE):
        assert plan.submit(utterance(1))
    assert not plan.submit(utterance(1))
    with pytest.raises(Overloaded, match="queue is full"):
        plan.submit(utterance(1))


def test_whoever_waits_enters_when_a_place_is_free():
    """First come, first served; work and utterances have places of their own."""
    plan = scheduler(max_queued=9)
    running = [utterance(1) for _ in range(UTTERANCES_AT_ONCE)]
    waiting = [utterance(1), utterance(1)]
    for row in (*running, *waiting):
        plan.submit(row)
    assert plan.admit() == []
    assert plan.queued == 2
    plan.remove(running[3])
    assert plan.admit() == [waiting[0]]
    for work in [Place(kind="work") for _ in range(WORK_AT_ONCE)]:
        plan.submit(work)
    assert plan.queued == 1 + WORK_AT_ONCE
    assert len(plan.admit()) == WORK_AT_ONCE


@pytest.mark.parametrize(
    ("make", "places"), [(lambda: utterance(1), UTTERANCES_AT_ONCE), (lambda: Place(kind="work"), WORK_AT_ONCE)]
)
def test_readers_that_are_behind_take_no_place_from_others(make, places):
    """However many answers wait to be read, whoever waits for a place gets one; but their number is bounded."""
    plan = scheduler(max_queued=2)
    behind = [make() for _ in range(places)]
    for place in behind:
        plan.submit(place)
    waiting = make()
    assert not plan.submit(waiting)
    behind[0].blocked = True
    assert plan.admit() == [waiting]
    waiting.blocked = True
    while sum(place.blocked for place in plan.places()) < 2 + UTTERANCES_AT_ONCE:
        another = make()
        assert plan.submit(another)
        another.blocked = True
    with pytest.raises(Overloaded, match="10 answers wait to be read"):
        plan.submit(make())
    plan.unblock(waiting)
    plan.remove(waiting)
    assert plan.submit(make())


def test_draining_takes_nothing_new_and_ends_what_runs():
    """Draining is an Overloaded of its own: another replica can take the work."""
    plan, row = scheduler(), stream()
    plan.open(row)
    plan.draining = True
    for refused in (lambda: plan.open(stream()), lambda: plan.submit(utterance(1))):
        with pytest.raises(Draining):
            refused()
    plan.add(row, 1)
    assert take(plan).rows == (row,)
    plan.remove(row)
    assert plan.empty


def test_what_is_late_never_takes_a_turn():
    """At its deadline it is out, wherever it stands, and is named once."""
    plan = scheduler()
    running, work = utterance(5, deadline=1.0), Place(kind="work", deadline=2.0)
    queued = [utterance(5, deadline=1.5 + index) for index in range(UTTERANCES_AT_ONCE)]
    for place in (running, work, *queued):
        plan.submit(place)
    assert plan.next_deadline() == 1.0
    assert plan.expired(0.99) == []
    assert plan.expired(2.0) == [running, queued[0], work]
    assert plan.expired(2.0) == []
    plan.admit()
    assert take(plan).rows == tuple(queued[1:])


class Traffic(RuleBasedStateMachine):
    """Streams, utterances and work that come, pause, reset, expire and leave in any order."""

    @initialize(
        total=st.integers(1, 40),
        frames=st.integers(1, 9),
        warm=st.integers(0, 3),
        seconds=st.floats(0.001, 0.1),
    )
    def begin(self, total, frames, warm, seconds):
        self.plan = scheduler(max_streams=5, max_queued=2, max_step_frames=frames, max_step_total=total)
        self.warm, self.seconds, self.now = warm, seconds, 0.0
        self.places, self.given, self.taken, self.waited = [], {}, {}, {}

    def row(self, index):
        rows = [place for place in self.places if isinstance(place, Row)]
        return rows[index % len(rows)] if rows else None

    def running(self):
        return [place for place in self.places if place not in self.plan._waiting]

    def phase(self, row):
        return min(self.taken[row], self.warm)

    def enter(self, place, enter):
        try:
            enter(place)
        except Overloaded:
            return
        self.places.append(place)
        self.given[place], self.taken[place], self.waited[place] = getattr(place, "pending", 0), 0, 0
        if isinstance(place, Row):
            place.phase = 0

    @rule()
    def open(self):
        self.enter(stream(), self.plan.open)

    @rule(pending=st.integers(1, 40), patience=st.sampled_from([math.inf, 1.0, 4.0]))
    def submit(self, pending, patience):
        self.enter(utterance(pending, deadline=self.now + patience), self.plan.submit)

    @rule(patience=st.sampled_from([math.inf, 1.0]))
    def submit_work(self, patience):
        self.enter(Place(kind="work", deadline=self.now + patience), self.plan.submit)

    @rule(index=st.integers(0, 20), frames=st.integers(1, 30))
    def push(self, index, frames):
        row = self.row(index)
        if row is not None and not row.ended:
            self.plan.add(row, frames)
            self.given[row] += frames

    @rule(index=st.integers(0, 20))
    def finish(self, index):
        row = self.row(index)
        if row is not None:
            self.plan.end(row)

    @rule(index=st.integers(0, 20))
    def reset(self, index):
        row = self.row(index)
        if row is not None and row.kind == "stream":
            self.plan.restart(row, 0)
            self.given[row] = self.taken[row] = self.waited[row] = 0

    @rule(index=st.integers(0, 20))
    def leave(self, index):
        if self.places:
            self.plan.remove(self.places.pop(index % len(self.places)))

    @rule(index=st.integers(0, 20))
    def read_or_not(self, index):
        row = self.row(index)
        if row is not None and row.blocked:
            self.plan.unblock(row)
        elif row is not None:
            row.blocked = True
            self.waited[row] = 0

    @rule(seconds=st.floats(0.1, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @precondition(lambda self: hasattr(self, "plan"))
    @rule(turns=st.integers(1, 12))
    def turns(self, turns):
        for _ in range(turns):
            for place in self.plan.expired(self.now):
                assert place.deadline <= self.now
                self.places.remove(place)
            self.plan.admit()
            turn = self.plan.next_turn()
            if turn is None:
                assert not any(isinstance(place, Row) and place.ready for place in self.running()), "idle beside work"
                return
            self.plan.began(turn)
            self.plan.took(turn, self.seconds)
            if isinstance(turn, Step):
                self.check_step(turn)

    def check_step(self, step):
        assert step.rows
        assert len(set(step.rows)) == len(step.rows)
        assert len({row.phase for row in step.rows}) == 1
        assert step.frames <= self.plan.max_step_frames
        assert step.frames <= 1 or step.frames * len(step.rows) <= self.plan.max_step_total
        for row in step.rows:
            assert row in self.places, "a row that left, or that is late, takes part"
            assert not row.blocked
            assert row.deadline > self.now
            self.taken[row] += step.frames
            assert self.taken[row] + row.pending == self.given[row], "a frame was lost or decoded twice"
            assert (step.frames == 0) == row.finished
            row.phase = self.phase(row)
            self.waited[row] = 0
            if row.finished and row.kind == "utterance":
                self.plan.remove(row)
                self.places.remove(row)
        for place in self.running():
            in_line = isinstance(place, Row) and place.ready and place not in step.rows
            self.waited[place] = self.waited[place] + 1 if in_line else 0
            most_rows = 5 + 2 * UTTERANCES_AT_ONCE + 2
            assert self.waited[place] <= most_rows + UTTERANCE_PATIENCE, "a row is starved"

    @invariant()
    def bounds_hold(self):
        if hasattr(self, "plan"):
            assert self.plan.active_streams == sum(place.kind == "stream" for place in self.places) <= 5
            assert self.plan.queued <= 2
            assert sorted(map(id, self.plan.places())) == sorted(map(id, self.places))


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
