"""Rows of a batch shared out among threads: the kernels hold no lock of Python's while they run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

Part = Callable[[int, int], int]


def in_threads(part: Part, count: int) -> list[int]:
    """Results of `part(begin, end)` for nearly equal parts of `count` rows, in as many threads as torch has."""
    num_parts = max(1, min(torch.get_num_threads(), count))
    if num_parts == 1:
        return [part(0, count)]
    bounds = [count * index // num_parts for index in range(num_parts + 1)]
    others = _pool(os.getpid(), num_parts - 1).map(part, bounds[1:-1], bounds[2:])
    return [part(0, bounds[1]), *others]


@functools.cache
def _pool(process: int, num_threads: int) -> ThreadPoolExecutor:  # noqa: ARG001 - threads do not survive a fork
    """Threads that stay, as each keeps the memory that its networks need."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="quantone-engine")
