"""The watch over calls on Ray workers: those that are late are stopped, and those that never began are known."""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from pipelines.corpus.heartbeats import FORGOTTEN, BeatSender, Expected, Heartbeats

LOOK_AT_MOST_EVERY_S = 5.0
_ANSWER_S = 10.0
_NO_LIFE = ""  # of heartbeats that died before they were heard of


@dataclass(slots=True)
class WatchedCall:
    """One call of a reader or encoder."""

    name: str
    sender: BeatSender
    lasts_s: float  # at most, all of it
    life: str | None  # of the heartbeats when it was made; None: the first
    stop: Callable[[], None] | None = None


def _driver() -> str:
    """Which driver of which Ray this process is: a Ray that is started again counts its drivers from the beginning."""
    context = ray.get_runtime_context()
    return f"{context.get_node_id()}:{context.get_job_id()}"


@functools.lru_cache(maxsize=1)
def _heartbeats_of(_driver: str) -> Any:
    """One actor for all jobs of a driver, with which it ends: a process more takes seconds to start."""
    return ray.remote(num_cpus=0, max_restarts=-1)(Heartbeats).remote()


class WorkerWatch:
    """Stops calls that are late.

    Args:
        allowed_s: for each position that a call works on.
    """

    def __init__(self, allowed_s: float) -> None:
        self._allowed_s = allowed_s
        self._heartbeats = _heartbeats_of(_driver())
        self._calls: dict[str, WatchedCall] = {}
        self._late: dict[str, int | None] = {}
        self._ended: list[str] = []
        self._first_life = self._heartbeats.life.remote()  # asked now, and looked at when they have had time to start
        self._life: str | None = None  # as they last said
        self._numbers, self._job = itertools.count(), uuid.uuid4().hex
        self._looked_at = time.monotonic()
        self._interval_s = min(LOOK_AT_MOST_EVERY_S, allowed_s / 4)

    def new_call(self, num_positions: int) -> WatchedCall:
        """A name and a sender for a call; `stop` is to be set once it runs."""
        name = f"{self._job}:{next(self._numbers)}"
        sender = BeatSender(self._heartbeats, name, self._allowed_s)
        call = self._calls[name] = WatchedCall(name, sender, (num_positions + 1) * self._allowed_s, self._life)
        return call

    def ended(self, name: str, done: Any) -> tuple[bool, int | None]:
        """A call is over. Whether it had begun its work, and the position at which it was stopped as late, if it was.

        Args:
            name: of the call.
            done: its reference; what it holds decides whether anybody needs to ask.
        """
        call = self._calls.pop(name)
        self._ended.append(name)
        late_at = self._late.pop(name, None)
        try:
            ray.get(done)
        except RayError:
            return late_at is not None or self._has_begun(call), late_at
        return True, None  # late, perhaps, and done after all

    def stop_late_calls(self) -> None:
        """Look, from time to time, for calls that are late, and stop them."""
        if time.monotonic() - self._looked_at < self._interval_s:
            return
        self._looked_at = time.monotonic()
        first = self._find_first_life()
        if first is None:
            return
        running = {name: Expected(call.lasts_s, call.life or first) for name, call in self._calls.items()}
        late: dict[str, int]
        self._life, late = self._ask(lambda: self._heartbeats.late.remote(self._ended, running), (self._life, {}))
        self._ended.clear()
        for name, position in late.items():
            call = self._calls.get(name)
            if call is not None and name not in self._late and call.stop is not None:
                self._late[name] = None if position == FORGOTTEN else position
                call.stop()

    def _has_begun(self, call: WatchedCall) -> bool:
        life = call.life or self._find_first_life() or _NO_LIFE
        begun: bool = self._ask(lambda: self._heartbeats.begun.remote(call.name, life), True)
        return begun

    def _find_first_life(self) -> str | None:
        """Of the heartbeats as they were when this watch began; None if they have not started yet."""
        try:
            life: str = ray.get(self._first_life, timeout=_ANSWER_S)
        except GetTimeoutError:
            return None
        except RayError:
            return _NO_LIFE
        return life

    def _ask(self, call: Callable[[], Any], otherwise: Any) -> Any:
        """An answer, or what to believe while the actor that knows is away (it restarts, and has forgotten all)."""
        try:
            return ray.get(call(), timeout=_ANSWER_S)
        except (RayError, GetTimeoutError):
            return otherwise
