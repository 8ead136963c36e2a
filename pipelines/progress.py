"""How far a job is: a live bar on a terminal, plain lines every few seconds elsewhere; on stderr either way."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL_S = 5.0


class Progress:
    """Counts files, seconds of audio and errors, and shows rate and time left.

    Args:
        title: what is being done, one word or two.
        total_files: how many there will be; None if nobody knows.
        total_seconds: of audio; None if nobody knows. The time left follows the files then.
        shown: False keeps quiet.
    """

    def __init__(
        self, title: str, total_files: int | None = None, total_seconds: float | None = None, *, shown: bool = True
    ) -> None:
        self.title, self.total_files, self.total_seconds, self.shown = title, total_files, total_seconds, shown
        self.files, self.seconds, self.errors = 0, 0.0, 0
        self._printed_files = -1
        self._started = self._last_line = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        """Start the clock and, on a terminal, the bar."""
        self._started = self._last_line = time.monotonic()
        if self.shown and self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bar = RichProgress(*columns, TextColumn("{task.fields[status]}"), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total_files, status="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
        elif self.shown and kind is None and self.files != self._printed_files:
            self._print_line()

    def advance(self, files: int = 0, seconds: float = 0.0, errors: int = 0) -> None:
        """Count what has just been done."""
        self.files += files
        self.seconds += seconds
        self.errors += errors
        if self._bar is not None:
            self._bar.update(self._task, completed=self.files, status=self.status())
        elif self.shown and time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._print_line()

    def say(self, message: str) -> None:
        """A line between the others."""
        if self._bar is not None:
            self._bar.console.print(f"{self.title}: {message}", markup=False)
        elif self.shown:
            sys.stderr.write(f"{self.title}: {message}\n")
            sys.stderr.flush()

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio a second, so far."""
        return self.seconds / max(time.monotonic() - self._started, 1e-6)

    def status(self) -> str:
        """Hours done, times real time, errors and time left, for people."""
        elapsed = max(time.monotonic() - self._started, 1e-6)
        parts = [f"{self.seconds / 3600:.2f} h", f"{self.real_time_factor:.0f}x real time"]
        if self.errors:
            parts.append(f"{self.errors} error{'s' if self.errors > 1 else ''}")
        share = self._share_done()
        if 0 < share < 1:
            parts.append(f"{_clock(elapsed * (1 - share) / share)} left")
        return ", ".join(parts)

    def _share_done(self) -> float:
        if self.total_seconds:
            return min(1.0, self.seconds / self.total_seconds)
        return self.files / self.total_files if self.total_files else 0.0

    def _print_line(self) -> None:
        self._last_line, self._printed_files = time.monotonic(), self.files
        of_total = "" if self.total_files is None else f"/{self.total_files}"
        sys.stderr.write(f"{self.title}: {self.files}{of_total} files, {self.status()}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
