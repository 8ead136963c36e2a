"""Heartbeats: late is who began and does not get done, never who waits for its turn."""

import pytest

from pipelines.corpus import heartbeats
from pipelines.corpus.heartbeats import FORGOTTEN, BeatSender, Expected, Heartbeats


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def late(hearts, ended=(), running=None):
    """The calls that are late, as the actor that lives tells it."""
    life, calls = hearts.late(ended, running or {})
    assert life == hearts.life()
    return calls


def test_a_call_is_late_at_the_position_of_its_last_beat():
    """Each beat gives it time anew."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("7", 0, 10.0)
    clock.now = 9.0
    hearts.beat("7", 1, 10.0)
    clock.now = 15.0
    assert late(hearts) == {}
    clock.now = 19.5
    assert late(hearts) == {"7": 1}


def test_calls_that_ended_or_never_began_are_not_late():
    """A call that waits for a free core has sent nothing."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("1", 0, 1.0)
    hearts.beat("2", 3, 1.0)
    assert hearts.begun("2", hearts.life())
    clock.now = 5.0
    assert late(hearts, ended=["1"], running={"2": Expected(2.0, hearts.life())}) == {"2": 3}
    waiting = {"3": Expected(1.0, hearts.life())}
    assert late(hearts, running=waiting) == {"2": 3}
    clock.now = 50.0
    assert late(hearts, running=waiting) == {"2": 3}
    assert not hearts.begun("3", hearts.life())


def test_what_was_forgotten_is_believed_to_be_at_work():
    """Where the actor had to start anew: such a call is late when all of it should be over, at nobody knows what."""
    clock = Clock()
    old, hearts = Heartbeats(clock), Heartbeats(clock)
    from_before = {"old": Expected(30.0, old.life())}
    assert hearts.begun("old", old.life())
    assert late(hearts, running=from_before) == {}
    clock.now = 29.0
    assert late(hearts, running=from_before) == {}
    clock.now = 31.0
    assert late(hearts, running=from_before) == {"old": FORGOTTEN}
    hearts.beat("old", 4, 30.0)  # it lives, and says so
    assert late(hearts, running=from_before) == {}


def test_longer_work_may_take_longer():
    """Each beat brings its own allowance."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("1", 0, 5.0)
    hearts.beat("2", 0, 500.0)
    clock.now = 100.0
    assert late(hearts) == {"1": 0}


class Recorder:
    """In the place of the actor: notes each beat; an answer is there at once."""

    def __init__(self):
        self.beats, self.beat = [], self

    def remote(self, _call, position, allowed_s):
        self.beats.append((position, allowed_s))
        return self

    def future(self):
        return self

    def result(self):
        return None


@pytest.fixture
def clock(monkeypatch):
    """The time of `heartbeats`, in the hands of the test."""
    clock = Clock()
    monkeypatch.setattr(heartbeats.time, "monotonic", clock)
    return clock


def test_positions_that_follow_one_another_quickly_send_one_beat(clock):
    """A beat costs as much as reading a short clip; the first of a call is always sent."""
    recorder = Recorder()
    sender = BeatSender(recorder, "7", 25.0)
    for position in range(11):
        sender(position)
        clock.now += 0.1
    assert recorder.beats == [(0, 25.0), (3, 25.0), (6, 25.0), (9, 25.0)]


def test_work_that_may_take_longer_is_told_at_once(clock):
    """Else it would be late by the allowance of what came before it."""
    recorder = Recorder()
    sender = BeatSender(recorder, "7", 25.0)
    for position, more_s in enumerate([1.0, 60.0, 1.0, 60.1]):
        sender(position, more_s)
    assert recorder.beats == [(0, 26.0), (1, 85.0)]
