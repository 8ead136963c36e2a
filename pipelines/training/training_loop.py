"""The training loop, whatever learns in it: batches in; a log, checkpoints and an export out.

One process or many: each runs this loop over its slice of the batches, and the first writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines.training.schedule import Schedule
from pipelines.training.training_checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipelines.training.training_log import Preview, TrainingLog

CHECKPOINT = "checkpoint.pt"


Batch_contra = TypeVar("Batch_contra", contravariant=True)
Batch_co = TypeVar("Batch_co", covariant=True)
Batch = TypeVar("Batch")


class Learner(Protocol[Batch_contra]):
    """What learns: a codec with its adversary, a token model."""

    fingerprint: str  # two learners with the same one can exchange checkpoints
    export_name: str  # folder of the run directory that `export` makes

    def step(self, batch: Batch_contra, step: int, rate_factor: float) -> Mapping[str, float]:
        """Train on one batch; scalars by name. Raises FloatingPointError where one is not finite."""

    def details(self) -> Mapping[str, Any]:
        """More about the last step than is worth computing after each: scalars, lists by level, shares by name."""

    def preview(self) -> Preview:
        """What people look at and listen to."""

    def export(self, directory: Path) -> None:
        """Write what inference needs, as a whole or not at all."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class Batches(Protocol[Batch_co]):
    """Training data by step."""

    wait_seconds: float  # that the consumer has spent waiting, in total

    def from_step(self, step: int) -> Iterator[Batch_co]:
        """This process's slices of the batches, from that of `step` on."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Where a run lives, and what one step is worth."""

    run_dir: Path
    schedule: Schedule
    amount_per_step: float  # of data, in `unit`
    unit: str  # "audio s", "frames"
    first: bool = True  # of the processes: the one that writes


def train(learner: Learner[Batch], batches: Batches[Batch], settings: LoopSettings) -> None:
    """Run the schedule to its end, from the last checkpoint where there is one.

    Raises:
        CheckpointError: the run directory holds the checkpoint of another recipe.
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    path, schedule = settings.run_dir / CHECKPOINT, settings.schedule
    begin = load_checkpoint(path, learner.fingerprint)
    step, seconds = (begin.step, begin.seconds) if begin else (0, 0.0)
    if begin:
        learner.load_state_dict(begin.learner)
    del begin  # as large as the model and its optimizers
    with closing(TrainingLog(settings.run_dir, step) if settings.first else _Silence()) as log:
        meter = _Meter(settings, batches, seconds)
        for batch in batches.from_step(step):
            if step >= schedule.steps:
                break
            meter.add(learner.step(batch, step, schedule.rate_factor(step)))
            step += 1
            last = step == schedule.steps
            if step % schedule.log_every == 0 or last:
                log.write(meter.row(step) | dict(learner.details()))
            if (step % schedule.checkpoint_every == 0 or last) and settings.first:
                save_checkpoint(path, Checkpoint(learner.fingerprint, step, meter.seconds, learner.state_dict()))
                learner.export(settings.run_dir / learner.export_name)
                log.show(learner.preview(), step)
            if last:
                break


class _Silence:
    """The log of a process that is not the first."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def show(self, preview: Preview, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Meter:
    """Means of the scalars and rates since the last row of the log."""

    def __init__(self, settings: LoopSettings, batches: Batches[Any], seconds: float) -> None:
        self.settings, self.batches, self.seconds = settings, batches, seconds
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps, self._since, self._waited = 0, time.monotonic(), batches.wait_seconds

    def add(self, scalars: Mapping[str, float]) -> None:
        """Count one step. A scalar may be missing in some of them: its mean is over the others."""
        self._steps += 1
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def row(self, step: int) -> dict[str, Any]:
        """What the log says about the steps up to this one; starts over."""
        now, waited, settings = time.monotonic(), self.batches.wait_seconds, self.settings
        elapsed = max(now - self._since, 1e-9)
        self.seconds += elapsed
        rate = self._steps / elapsed
        row = {
            "step": step,
            "steps": settings.schedule.steps,
            **{name: total / self._counts[name] for name, total in self._sums.items()},
            "rate_factor": settings.schedule.rate_factor(step - 1),
            "steps_per_s": rate,
            "per_s": rate * settings.amount_per_step,
            "unit": settings.unit,
            "seen": step * settings.amount_per_step,
            "wait_share": (waited - self._waited) / elapsed,
            "minutes": self.seconds / 60,
        }
        self._sums, self._counts = {}, {}
        self._steps, self._since, self._waited = 0, now, waited
        return row
