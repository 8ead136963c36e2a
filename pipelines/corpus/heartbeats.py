"""Heartbeats of a job's workers: who works on what, and who has been at it for too long."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

EXPECTED, FORGOTTEN = -1, -2  # in the place of a position
APART = 0.01
"""Beats that would move a deadline by a smaller part of the time allowed are not sent: each costs a millisecond."""


class Heartbeats:
    """Keeps the last beat of each call that runs. A Ray actor: workers send, the conductor asks.

    A call that has not begun, for want of a free core, has sent nothing, and so is never late. Where this actor had to
    start anew it has forgotten all: such a call is believed to be at work, and late when all of it should be over.

    Args:
        clock: seconds; another one for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}  # call -> (when it is late, position)

    def expect(self, call: str) -> None:
        """A call is on its way."""
        self._last.setdefault(call, (math.inf, EXPECTED))

    def beat(self, call: str, position: int, allowed_s: float) -> None:
        """A call begins to work on a position, and has so long for it."""
        self._last[call] = (self._clock() + allowed_s, position)

    def begun(self, call: str) -> bool:
        """Whether a call has come to its work at all, as far as anybody can tell."""
        return self._last.get(call, (0.0, FORGOTTEN))[1] != EXPECTED

    def late(self, ended: list[str], running: dict[str, float]) -> dict[str, int]:
        """Calls that are late, and what each is working on, or FORGOTTEN.

        Args:
            ended: calls to forget.
            running: the others, and the seconds that all of each may take.
        """
        for call in ended:
            self._last.pop(call, None)
        now = self._clock()
        for call, lasts_s in running.items():
            self._last.setdefault(call, (now + lasts_s, FORGOTTEN))
        return {call: position for call, (deadline, position) in self._last.items() if now > deadline}


class BeatSender:
    """What a call takes along to send its beats: picklable. A job goes on without those that get lost."""

    def __init__(self, heartbeats: Any, call: str, allowed_s: float) -> None:
        self._heartbeats, self._call, self._allowed_s = heartbeats, call, allowed_s
        self._deadline = -math.inf  # that was sent last

    def __call__(self, position: int, more_s: float = 0.0) -> None:
        """Say that the work on a position begins, for which there is the usual time and some more.

        Where positions follow one another within a hundredth of the time allowed, only the first of them is heard of.
        """
        deadline = time.monotonic() + self._allowed_s + more_s
        if position > 0 and deadline < self._deadline + APART * self._allowed_s:
            return
        self._deadline = deadline
        sent = self._heartbeats.beat.remote(self._call, position, self._allowed_s + more_s)
        if position == 0:  # arrived before the work can kill this process: it tells deaths at work from lost calls
            from ray.exceptions import RayError

            with contextlib.suppress(RayError):
                sent.future().result()  # ray.get would give this task's cores to another one, in a new process
