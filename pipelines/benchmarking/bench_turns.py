"""How speeds are measured beside one another: contenders take turns in one run, and another one begins each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch


def take_turns(
    contenders: Sequence[Callable[[], float]], rounds: int, device: str = "cpu"
) -> tuple[list[float], float | None]:
    """Measure calls against one another.

    Args:
        contenders: each does its work once, and says how much that was.
        rounds: medians are over so many.
        device: waits for it where it is not the CPU.

    Returns:
        Median speed of each, in work per second; and the median of the rounds' ratios of the first to the second, each
        of two runs that followed one another, where there are two.
    """
    return alternate([partial(_measure_speed, contender, device) for contender in contenders], rounds)


def alternate(contenders: Sequence[Callable[[], float]], rounds: int) -> tuple[list[float], float | None]:
    """As `take_turns`, of contenders that do their work once and measure their own speed."""
    speeds: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        order = range(len(contenders)) if turn % 2 == 0 else reversed(range(len(contenders)))
        for index in order:
            speeds[index].append(contenders[index]())
    ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True)) if len(speeds) == 2 else None
    return [statistics.median(values) for values in speeds], ratio


def _measure_speed(contender: Callable[[], float], device: str) -> float:
    begin = time.perf_counter()
    work = contender()
    if device != "cpu":
        torch.cuda.synchronize()
    return work / (time.perf_counter() - begin)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """CPU threads of torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
