"""What the workers of a corpus job spend their time on, in seconds by stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class StageSeconds:
    """Seconds of all workers together: two that are busy for one second have two."""

    reading: float = 0.0  # of files, and decoding
    resampling: float = 0.0
    encoding: float = 0.0
    measuring: float = 0.0  # of levels, speech and hash; with `quality`, decoding and comparing
    compressing: float = 0.0  # with a language model
    writing: float = 0.0  # of parts, records and errors
    other: float = 0.0  # batches put together, rows made

    def __add__(self, other: StageSeconds) -> StageSeconds:
        """Both together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return StageSeconds(*(a + b for a, b in pairs))

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return float(sum(dataclasses.astuple(self)))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count what happens inside the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - begin)

    @contextmanager
    def rest_timed(self, stage: str) -> Iterator[None]:
        """Count what happens inside the block and belongs to no stage that is counted in there."""
        begin, before = time.perf_counter(), self.total
        try:
            yield
        finally:
            inside = self.total - before
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - begin - inside)
