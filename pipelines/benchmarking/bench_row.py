"""A row of the benchmarks: what was measured, as plain numbers that can be stored and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One contender of a row."""

    contender: str
    value: float  # median of the rounds, in the unit of the row
    rounds: tuple[float, ...]  # values
    ratio: float | None = None  # to the baseline: median of the rounds' ratios, each of neighbours in time
    limit: float | None = None  # the value that this machine's ceilings allow for the counted work

    @property
    def gap(self) -> float | None:
        """How many times faster the limit is."""
        return None if self.limit is None else self.limit / self.value


@dataclass(frozen=True, slots=True)
class Row:
    """Contenders that did the same work in turns."""

    key: str  # what `quantone bench all --only` takes
    work: str
    unit: str  # of the values
    results: tuple[Result, ...]
    baseline: str | None = None  # whose values the ratios are to

    @property
    def command(self) -> str:
        """What measures this row again."""
        return f"quantone bench all --only {self.key}"

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Row:
        """From JSON types, as `dataclasses.asdict` gives them."""
        results = tuple(Result(**{**result, "rounds": tuple(result["rounds"])}) for result in plain["results"])
        return cls(**{**plain, "results": results})
