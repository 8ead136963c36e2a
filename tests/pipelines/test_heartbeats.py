"""Heartbeats: late is who began and does not get done, never who waits for its turn."""

from pipelines.heartbeats import FORGOTTEN, Heartbeats


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_call_is_late_at_the_position_of_its_last_beat():
    """Each beat gives it time anew."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("7", 0, 10.0)
    clock.now = 9.0
    hearts.beat("7", 1, 10.0)
    clock.now = 15.0
    assert hearts.late([], {}) == {}
    clock.now = 19.5
    assert hearts.late([], {}) == {"7": 1}


def test_calls_that_ended_or_never_began_are_not_late():
    """A call that waits for a free core has sent nothing."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("1", 0, 1.0)
    hearts.beat("2", 3, 1.0)
    assert hearts.begun("2")
    hearts.expect("3")
    assert not hearts.begun("3")
    clock.now = 5.0
    assert hearts.late(["1"], {}) == {"2": 3}
    hearts.expect("3")
    assert not hearts.begun("3")


def test_what_was_forgotten_is_believed_to_be_at_work():
    """Where the actor had to start anew: such a call is late when all of it should be over, at nobody knows what."""
    clock = Clock()
    hearts = Heartbeats(clock)
    assert hearts.late([], {"old": 30.0}) == {}
    assert hearts.begun("old")
    clock.now = 29.0
    assert hearts.late([], {"old": 30.0}) == {}
    clock.now = 31.0
    assert hearts.late([], {"old": 30.0}) == {"old": FORGOTTEN}


def test_longer_work_may_take_longer():
    """Each beat brings its own allowance."""
    clock = Clock()
    hearts = Heartbeats(clock)
    hearts.beat("1", 0, 5.0)
    hearts.beat("2", 0, 500.0)
    clock.now = 100.0
    assert hearts.late([], {}) == {"1": 0}
