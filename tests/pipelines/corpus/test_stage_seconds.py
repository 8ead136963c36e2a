"""Time of a job's workers, by stage."""

import pytest

from pipelines.corpus.stage_seconds import StageSeconds


@pytest.fixture
def clock(monkeypatch):
    """Time that a test moves."""
    now = [100.0]
    monkeypatch.setattr("pipelines.corpus.stage_seconds.time.perf_counter", lambda: now[0])
    return now


def test_a_stage_around_others_counts_only_what_is_left(clock):
    """So the stages add up to the time that passed."""
    stages = StageSeconds()
    with stages.rest_timed("other"):
        clock[0] += 1.0
        with stages.timed("encoding"):
            clock[0] += 5.0
        clock[0] += 2.0
        stages.resampling += 0.5
    assert (stages.encoding, stages.resampling, stages.other) == (5.0, 0.5, 2.5)
    assert stages.total == 8.0


def test_a_stage_that_fails_is_counted_all_the_same(clock):
    """Time is gone whatever came of it."""
    stages = StageSeconds()

    def fail():
        with stages.timed("reading"):
            clock[0] += 3.0
            raise ValueError("no sound")

    with pytest.raises(ValueError, match="no sound"):
        fail()
    assert stages.reading == 3.0


def test_workers_add_up():
    """Stage by stage."""
    both = StageSeconds(reading=1.0, writing=2.0) + StageSeconds(reading=3.0, encoding=4.0)
    assert both == StageSeconds(reading=4.0, encoding=4.0, writing=2.0)
