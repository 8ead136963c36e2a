"""A contest: contenders that do the same work take turns, and how fast they were becomes a row of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.benchmarking.bench_row import Result, Row


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who does the work."""

    name: str
    call: Callable[[], float]  # does it once, and says how much that was


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The same work for everybody."""

    key: str
    work: str
    unit: str  # work per second
    contenders: Sequence[Contender]
    baseline: str | None = None  # a contender's name


@dataclass(frozen=True, slots=True)
class Turns:
    """How often contenders take their turn."""

    rounds: int = 3
    patience_s: float = 75.0  # no further round begins after it


def hold(contest: Contest, turns: Turns) -> Row:
    """Let all contenders do the work once to warm up, and then in turns, another one first in each round.

    Raises:
        ValueError: the baseline is not one of the contenders.
    """
    contenders = contest.contenders
    names = [contender.name for contender in contenders]
    if contest.baseline is not None and contest.baseline not in names:
        raise ValueError(f"{contest.key}: the baseline {contest.baseline!r} is not one of {', '.join(names)}")
    begin = time.perf_counter()
    for contender in contenders:
        contender.call()
    speeds: list[list[float]] = [[] for _ in contenders]
    for turn in range(turns.rounds):
        order = range(len(contenders)) if turn % 2 == 0 else reversed(range(len(contenders)))
        for index in order:
            speeds[index].append(_speed(contenders[index]))
        if time.perf_counter() - begin > turns.patience_s:
            break
    base = None if contest.baseline is None else speeds[names.index(contest.baseline)]
    results = tuple(
        Result(contender.name, statistics.median(own), tuple(own), _ratio(own, base))
        for contender, own in zip(contenders, speeds, strict=True)
    )
    return Row(contest.key, contest.work, contest.unit, results, contest.baseline)


def _speed(contender: Contender) -> float:
    begin = time.perf_counter()
    work = contender.call()
    return work / (time.perf_counter() - begin)


def _ratio(own: Sequence[float], base: Sequence[float] | None) -> float | None:
    return None if base is None else statistics.median(a / b for a, b in zip(own, base, strict=True))
