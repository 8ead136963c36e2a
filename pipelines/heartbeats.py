"""Heartbeats of a job's workers: who works on what, and who has been at it for too long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any


class Heartbeats:
    """Keeps the last beat of each call that runs. A Ray actor: workers send, the conductor asks.

    A call that has not begun, for want of a free core, has sent nothing, and so is never late.

    Args:
        clock: seconds; another one for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}  # call -> (when it is late, position)

    def beat(self, call: str, position: int, allowed_s: float) -> None:
        """A call begins to work on a position, and has so long for it."""
        self._last[call] = (self._clock() + allowed_s, position)

    def begun(self, call: str) -> bool:
        """Whether a call has come to its work at all."""
        return call in self._last

    def late(self, ended: list[str]) -> dict[str, int]:
        """Calls that are late, and what each is working on.

        Args:
            ended: calls to forget.
        """
        for call in ended:
            self._last.pop(call, None)
        now = self._clock()
        return {call: position for call, (deadline, position) in self._last.items() if now > deadline}


class BeatSender:
    """What a call takes along to send its beats: picklable. A job goes on without those that get lost."""

    def __init__(self, heartbeats: Any, call: str, allowed_s: float) -> None:
        self._heartbeats, self._call, self._allowed_s = heartbeats, call, allowed_s

    def __call__(self, position: int, more_s: float = 0.0) -> None:
        """Say that the work on a position begins, for which there is the usual time and some more."""
        sent = self._heartbeats.beat.remote(self._call, position, self._allowed_s + more_s)
        if position == 0:  # arrived before the work can kill this process: it tells deaths at work from lost calls
            import ray
            from ray.exceptions import RayError

            with contextlib.suppress(RayError):
                ray.get(sent)
