"""Progress: what a person or a log file gets to see of a job."""

import pytest
from rich.console import Console

from pipelines import progress as room
from pipelines.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(room, "time", clock)
    return clock


def test_without_a_terminal_lines_come_every_few_seconds(clock, capsys):
    """On stderr, so that stdout stays for results; the last line has the totals."""
    with Progress("tokenizing", total_files=10, total_seconds=7200.0) as progress:
        progress.advance(files=1, seconds=720)
        assert capsys.readouterr().err == ""
        clock.now += 60
        progress.advance(files=4, seconds=2880, errors=2)
        line = capsys.readouterr().err
        assert line == "tokenizing: 5/10 files, 1.00 h, 60x real time, 2 errors, 1:00 left\n"
        progress.advance(files=5, seconds=3600)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "tokenizing: 10/10 files, 2.00 h, 120x real time, 2 errors\n"


def test_time_left_follows_the_files_where_the_length_is_unknown(clock):
    """Three of four files took three minutes: one minute is left."""
    with Progress("tokenizing", total_files=4, shown=False) as progress:
        clock.now += 180
        progress.advance(files=3, seconds=10)
        assert progress.status().endswith("1:00 left")


def test_a_quiet_progress_counts_and_says_nothing(clock, capsys):
    """For callers that show their own."""
    with Progress("tokenizing", total_files=2, shown=False) as progress:
        clock.now += 60
        progress.advance(files=2, seconds=5, errors=1)
    assert (progress.files, progress.seconds, progress.errors) == (2, 5, 1)
    assert capsys.readouterr().err == ""


def test_a_failed_job_ends_without_a_last_line(clock, capsys):
    """The error is the last thing that a reader sees."""
    with pytest.raises(RuntimeError), Progress("tokenizing", total_files=2):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    """Title, percentage and status on one live line."""
    monkeypatch.setattr(room, "Console", lambda **settings: Console(**settings, force_terminal=True, width=120))
    with Progress("tokenizing", total_files=4) as progress:
        progress.advance(files=4, seconds=3600)
    shown = capsys.readouterr().err
    assert "tokenizing" in shown
    assert "100%" in shown
    assert "1.00 h" in shown
