"""Work that is done ahead in threads: results in order, and never more than a few of them waiting in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ReadAhead:
    """A pool of threads that starts on the next items while the result of an earlier one is in use.

    Args:
        num_threads: that work.
        depth: items begun before their results are asked for; None: as many as there are threads.
    """

    def __init__(self, num_threads: int, depth: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="quantone-ahead")
        self._depth = num_threads if depth is None else depth

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in the order of the items; `items` is advanced by whoever asks for results."""
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) > self._depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def stop(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
