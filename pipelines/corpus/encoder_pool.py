"""The encoders of a corpus job on Ray: as many as asked for or as the cluster holds, replaced when they die."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.progress import Progress

# Half a core for an encoder and half for a reader: with fewer than two encoders a core, a reader always finds room.
ENCODER_CPUS = READER_CPUS = 0.5
RECOUNT_S = 5.0  # how often the cluster is asked how large it is now
PATIENCE_S = 30.0  # without any encoder, before the wait is explained


def count_encoders(wanted: int | None, gpus_per_worker: float) -> int:
    """How many encoders the cluster holds now, and no more than are wanted; at least one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    most = int(cpus / ENCODER_CPUS) - 1  # and half a core for a reader
    if gpus_per_worker > 0:
        most = min(most, int(gpus / gpus_per_worker))
    usual = most if gpus_per_worker > 0 else int(cpus)
    return max(1, min(usual if wanted is None else wanted, most))


@dataclass(slots=True)
class EncoderSeconds:
    """What became of the time of all encoders together."""

    starting: float = 0.0
    busy: float = 0.0
    waiting: float = 0.0  # for something to be read
    ending: float = 0.0  # with nothing left to do while others finish

    @property
    def total(self) -> float:
        """All seconds."""
        return self.starting + self.busy + self.waiting + self.ending


class EncoderPool:
    """Encoders that start, work, wait and die.

    Args:
        start: makes one; returns its handle.
        wanted: how many at most; None for as many as the cluster holds, which may grow and shrink.
        gpus_per_worker: GPUs that each takes.
        progress: is told what the job waits for.
    """

    def __init__(
        self, start: Callable[[], Any], wanted: int | None, gpus_per_worker: float, progress: Progress
    ) -> None:
        self._start, self._wanted, self._gpus, self._progress = start, wanted, gpus_per_worker, progress
        self._all: set[Any] = set()  # alive or starting
        self._idle: deque[Any] = deque()
        self._busy: set[Any] = set()
        self._more_comes = True
        self._seconds, self._counted_at = EncoderSeconds(), time.monotonic()
        self._told = EncoderSeconds()  # what `busy_share` has spoken of
        self._target, self._recount_at, self._none_since = 0, 0.0, time.monotonic()
        self._any_ready = self._explained = False
        self._asked_for: int | None = None

    def __len__(self) -> int:
        """How many are alive or starting."""
        return len(self._all)

    @property
    def num_busy(self) -> int:
        """How many are at work."""
        return len(self._busy)

    def start_missing(self) -> list[tuple[Any, Any]]:
        """Start as many as are missing; each with the reference that says that it is ready."""
        now = time.monotonic()
        if now >= self._recount_at:
            self._target, self._recount_at = count_encoders(self._wanted, self._gpus), now + RECOUNT_S
            self._ask_for(self._wanted if self._wanted is not None and self._wanted > self._target else None)
        started = []
        while len(self._all) < self._target:
            encoder = self._start()
            self._count_time()
            self._all.add(encoder)
            started.append((encoder, encoder.ready.remote()))
        self._explain_wait(now)
        return started

    def _ask_for(self, count: int | None) -> None:
        """Tell a cluster that grows by itself how many encoders it should have place for; None: as it is will do.

        Encoders are not started before they have a place: on CPUs they would take that of the readers.
        """
        if count == self._asked_for:
            return
        from ray.autoscaler.sdk import request_resources

        share = {"CPU": ENCODER_CPUS + READER_CPUS} | ({"GPU": self._gpus} if self._gpus else {})
        request_resources(bundles=[share] * (count or 0))
        self._asked_for = count

    def _explain_wait(self, now: float) -> None:
        if self._any_ready or self._explained or now - self._none_since < PATIENCE_S:
            return
        self._explained = True
        gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
        self._progress.say(f"no encoder could start yet: each waits for {ENCODER_CPUS:g} CPUs{gpus} that are free")

    def rest(self, encoder: Any) -> None:
        """One is ready, or has done its work."""
        self._count_time()
        self._any_ready = True
        self._busy.discard(encoder)
        self._idle.append(encoder)

    def take(self) -> Any | None:
        """One that is idle, or None."""
        if not self._idle:
            return None
        self._count_time()
        encoder = self._idle.popleft()
        self._busy.add(encoder)
        return encoder

    def drop(self, encoder: Any) -> None:
        """End one; another takes its place."""
        self._count_time()
        self._busy.discard(encoder)
        if encoder in self._all:
            self._all.discard(encoder)
            ray.kill(encoder)

    def expect(self, *, more: bool) -> None:
        """Whether something is being read that idle ones wait for."""
        self._count_time()
        self._more_comes = more

    def let_go(self, needed: int) -> None:
        """End idle ones that are more than will be needed again: what they hold is free for others."""
        self._target, self._recount_at = min(self._target, max(needed, 1)), float("inf")
        self._count_time()
        while self._idle and len(self._all) > max(needed, 1):
            self.drop(self._idle.popleft())

    def end(self) -> None:
        """End all."""
        self._ask_for(None)
        for encoder in list(self._all):
            self.drop(encoder)

    def seconds(self) -> EncoderSeconds:
        """What became of their time so far."""
        self._count_time()
        return dataclasses.replace(self._seconds)

    def busy_share(self) -> float:
        """Share of the encoders' time that they were at work since the last call."""
        before, self._told = self._told, self.seconds()
        total, busy = self._told.total - before.total, self._told.busy - before.busy
        return busy / total if total > 0 else 0.0

    def _count_time(self) -> None:
        """Before anything changes: what the time since the last change was spent on."""
        now = time.monotonic()
        elapsed, self._counted_at = now - self._counted_at, now
        self._seconds.busy += elapsed * len(self._busy)
        self._seconds.starting += elapsed * (len(self._all) - len(self._busy) - len(self._idle))
        if self._more_comes:
            self._seconds.waiting += elapsed * len(self._idle)
        else:
            self._seconds.ending += elapsed * len(self._idle)
