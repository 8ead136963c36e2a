"""What a training run writes down: log.jsonl for programs, TensorBoard files for people.

run_dir/log.jsonl       one row every few steps; rows of steps that a resumed run makes again are dropped
run_dir/tensorboard/    the same scalars, spectrograms and sound
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from tensorboardX import SummaryWriter
except ImportError as error:  # it comes with Ray Train, and so do the other packages that training needs
    raise ImportError("training needs packages that are missing: pip install 'quantone[train]'") from error

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True)
class Preview:
    """Things to look at and listen to, by name."""

    sounds: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # [S]
    sample_rate: int = 0
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # [height, width, 3]


class TrainingLog:
    """The log of one run.

    Args:
        run_dir: of the run; made where it is missing.
        step: the run goes on from here: what an earlier attempt wrote about later steps is dropped.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(run_dir) if row["step"] <= step]
        temporary = run_dir / f"{LOG}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(run_dir / LOG)
        self._file = (run_dir / LOG).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1 if step else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row: scalars, lists by level, and mappings of scalars."""
        self._file.write(json.dumps({name: _rounded(value) for name, value in row.items()}) + "\n")
        self._file.flush()
        for name, value in _scalars(row):
            self._board.add_scalar(name, value, row["step"])

    def show(self, preview: Preview, step: int) -> None:
        """Put sounds and pictures into TensorBoard."""
        for name, sound in preview.sounds.items():
            self._board.add_audio(name, sound[:, None], step, sample_rate=preview.sample_rate)
        for name, picture in preview.pictures.items():
            self._board.add_image(name, picture, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of a run so far, oldest first; a line that a killed run left unfinished is skipped."""
    path = run_dir / LOG
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", float(inner)) for key, inner in value.items())
        elif isinstance(value, list):
            yield from ((f"{name}/{index:02d}", float(inner)) for index, inner in enumerate(value))
        elif isinstance(value, (int, float)) and name not in ("step", "steps"):
            yield name, float(value)


def _rounded(value: Any) -> Any:
    """Six significant digits: enough to plot, and to compare two runs by."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
