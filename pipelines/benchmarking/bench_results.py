"""Results of a run of all benchmarks, as a JSON file by machine."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.machine_card import MachineCard
from pipelines.benchmarking.machine_ceilings import Ceilings


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResults:
    """One run on one machine."""

    measured_on: str  # date, UTC
    wall_seconds: float
    command: str  # that made the run
    machine: MachineCard
    ceilings: tuple[Ceilings, ...]  # by threads
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()  # who could not take part, and why

    def to_json(self) -> str:
        """Stable JSON text; numbers keep five digits, more would be noise."""
        return json.dumps(_rounded(dataclasses.asdict(self)), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BenchResults:
        """Parse what `to_json` wrote.

        Raises:
            ValueError: something else.
        """
        try:
            plain = json.loads(text)
            plain["machine"] = MachineCard.from_dict(plain["machine"])
            plain["ceilings"] = tuple(Ceilings(**ceilings) for ceilings in plain["ceilings"])
            plain["rows"] = tuple(map(Row.from_dict, plain["rows"]))
            plain["missing"] = tuple(plain["missing"])
            return cls(**plain)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not results of `quantone bench all`: {type(error).__name__}: {error}") from error


def read_results(folder: Path) -> list[BenchResults]:
    """All runs in a folder, by file name.

    Raises:
        ValueError: a file that is no run.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(BenchResults.from_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
