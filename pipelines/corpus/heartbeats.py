"""Heartbeats of a job's workers: who works on what, and who has been at it for too long."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORGOTTEN = -1  # in the place of a position
APART = 0.01
"""Beats that would move a deadline by a smaller part of the time allowed are not sent: each costs a millisecond."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A call that runs, as whoever made it knows it."""

    lasts_s: float  # at most, all of it
    life: str  # of the heartbeats' actor when the call was made


class Heartbeats:
    """Keeps the last beat of each call that runs. A Ray actor: workers send, the conductor asks.

    A call that has not begun, for want of a free core, has sent nothing, and so is never late. Where this actor had to
    start anew, which shows by its `life`, it has forgotten all: calls from before are believed to be at work, and late
    when all of each should be over.

    Args:
        clock: seconds; another one for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._life = clock, uuid.uuid4().hex  # another one after a restart
        self._last: dict[str, tuple[float, int]] = {}  # call -> (when it is late, position)

    def life(self) -> str:
        """What tells this actor from the one that it was before a restart."""
        return self._life

    def beat(self, call: str, position: int, allowed_s: float) -> None:
        """A call begins to work on a position, and has so long for it."""
        self._last[call] = (self._clock() + allowed_s, position)

    def begun(self, call: str, life: str) -> bool:
        """Whether a call, made in such a life, has come to its work at all, as far as anybody can tell."""
        return call in self._last or life != self._life

    def late(self, ended: Sequence[str], running: Mapping[str, Expected]) -> tuple[str, dict[str, int]]:
        """Calls that are late, and what each is working on, or FORGOTTEN.

        Args:
            ended: calls to forget.
            running: the others.

        Returns:
            This actor's life, and the calls.
        """
        for call in ended:
            self._last.pop(call, None)
        now = self._clock()
        for call, expected in running.items():
            if expected.life != self._life:
                self._last.setdefault(call, (now + expected.lasts_s, FORGOTTEN))
        return self._life, {call: position for call, (deadline, position) in self._last.items() if now > deadline}


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
