"""HeldBytes: what all requests together may hold in memory, counted before they take it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from pipelines.decoding.decode_errors import Overloaded
from pipelines.serving.service_settings import MIB


class HeldBytes:
    """A number of bytes that requests share; from any thread.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes in use."""
        return self._held

    def share(self) -> HeldShare:
        """What one request holds: nothing yet. Leaving it as a context gives everything back."""
        return HeldShare(self)

    def _take(self, count: int) -> None:
        with self._lock:
            if self._held + count > self._limit:
                raise Overloaded(
                    f"requests hold {self._held / MIB:.0f} MiB of memory, the limit is {self._limit / MIB:.0f} MiB",
                    retry_after_s=1.0,
                )
            self._held += count

    def _give(self, count: int) -> None:
        with self._lock:
            self._held -= count


class HeldShare:
    """What one request holds of a `HeldBytes`."""

    def __init__(self, whole: HeldBytes) -> None:
        self._whole, self._count, self._closed = whole, 0, False
        self.refused = False  # whether there was no room once

    def add(self, count: int) -> None:
        """Take so many bytes more.

        Raises:
            Overloaded: all requests together would hold too much.
        """
        if self._closed:  # a thread that outlived its request: nobody waits for what it makes
            return
        try:
            self._whole._take(count)  # noqa: SLF001 - two classes of one room
        except Overloaded:
            self.refused = True
            raise
        self._count += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._whole._give(self._count)  # noqa: SLF001
        self._count = 0
