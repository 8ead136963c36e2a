"""Work shared out among threads: the kernels hold no lock of Python's while they run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import torch

Part = Callable[[int, int], int]
_LEAST_CONTEXTS = 3  # that a piece of a stream is long: at most a quarter is computed twice


class Piece(NamedTuple):
    """Some streams of a chunk, or a stretch of one of them."""

    first_stream: int
    end_stream: int
    begin: int  # input rows
    end: int
    heard: int  # rows before them that are computed once more, and dropped: what the first layers make of them is heard


def pieces_for_threads(streams: int, rows: int, unit: int, context: int | None) -> list[Piece]:
    """One for each thread of torch: of all streams, or of parts of streams where those are fewer than threads.

    Args:
        streams: in the chunk.
        rows: of each.
        unit: rows of a frame, which is never cut.
        context: rows before a frame, beyond which it hears nothing; None where streams cannot be cut.
    """
    threads = torch.get_num_threads()
    longest = max(1, (context or 0) // unit) * _LEAST_CONTEXTS
    parts = 1 if context is None or streams == 0 else min(threads // streams, rows // unit // longest)
    if parts < 2:
        count = max(1, min(threads, streams))
        bounds = [streams * number // count for number in range(count + 1)]
        return [Piece(begin, end, 0, rows, 0) for begin, end in pairwise(bounds)]
    cuts = [rows // unit * number // parts * unit for number in range(parts)] + [rows]
    return [
        Piece(stream, stream + 1, begin, end, context or 0 if begin else 0)
        for stream in range(streams)
        for begin, end in pairwise(cuts)
    ]


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
