"""One run of a recipe: where it lives, on what it runs, and how what it exports appears."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from pipelines.training.schedule import Schedule

AnySchedule = TypeVar("AnySchedule", bound=Schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What decides how a recipe is run, but not what comes out of it.

    Args:
        run_dir: checkpoint, log, prepared data and the model; with several nodes a folder that all of them see.
        steps: overrides the recipe's number of steps; a finished run is extended this way.
        init_from: model to go on from instead of random weights; a later checkpoint in run_dir goes before it.
        num_processes: that share each batch, one GPU each where there are any.
        data_workers: processes that read audio beside each of them; 0 reads in between the steps. Tokens need none.
        threads: of torch in each process; None leaves the default.
        shown: the progress, on stderr.
    """

    run_dir: Path
    steps: int | None = None
    init_from: str | None = None
    num_processes: int = 1
    data_workers: int = 1
    threads: int | None = None
    shown: bool = True

    def schedule(self, recipes: AnySchedule) -> AnySchedule:
        """The recipe's schedule as this run follows it.

        Raises:
            ValueError: so many processes cannot share a batch.
        """
        if self.num_processes < 1 or recipes.batch_size % self.num_processes:
            raise ValueError(f"{self.num_processes} processes cannot share batches of {recipes.batch_size}")
        return recipes if self.steps is None else recipes.lasting(self.steps)

    def settled(self) -> Self:
        """The same run in a directory that exists, named so that every process finds it."""
        run_dir = self.run_dir.resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        return dataclasses.replace(self, run_dir=run_dir)

    def headline(self, name: str, steps: int) -> str:
        """What is about to happen, for people."""
        shared = f" shared by {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{name}: {steps} steps{shared}, in {self.run_dir}"


@contextmanager
def replaced_as_a_whole(directory: Path) -> Iterator[Path]:
    """A fresh directory to write into; afterwards it stands where `directory` did, so that nobody sees half of it."""
    fresh = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
