"""ParkedStreams: streams whose connection was lost, kept for a while and within bounds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Parkable(Protocol):
    """What can be kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds; it may become known, and change, while it is kept."""


T = TypeVar("T", bound=Parkable)


class ParkedStreams(Generic[T]):
    """Streams by their resume token; where room runs out, the one that was parked first goes first.

    Args:
        window_s: seconds that a stream stays.
        max_streams: that stay at once.
        max_bytes: that they hold together; a stream larger than that is not kept.
        clock: seconds, never running backwards.
    """

    def __init__(
        self,
        window_s: float,
        *,
        max_streams: int = 256,
        max_bytes: int = 256 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.window_s = window_s
        self._max_streams, self._max_bytes, self._clock = max_streams, max_bytes, clock
        self._streams: OrderedDict[str, tuple[T, float]] = OrderedDict()  # and when they leave, the next one first

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def nbytes(self) -> int:
        """Bytes that the streams here hold."""
        return sum(stream.nbytes for stream, _ in self._streams.values())

    def park(self, token: str, stream: T) -> bool:
        """Keep a stream; False where there is no room for it at all."""
        self.tidy()
        if self.window_s <= 0 or stream.nbytes > self._max_bytes:
            return False
        self._streams[token] = stream, self._clock() + self.window_s
        self._streams.move_to_end(token)
        self.tidy()
        return token in self._streams

    def find(self, token: str) -> T | None:
        """A stream, which stays; None for one that is not here (any more)."""
        self.tidy()
        stream, _ = self._streams.get(token, (None, 0.0))
        return stream

    def drop(self, token: str) -> None:
        """Forget a stream: it goes on, or never will."""
        self._streams.pop(token, None)

    def tidy(self) -> None:
        """Drop the streams whose time is over, and the first ones where there are too many or too large ones."""
        now = self._clock()
        nbytes = self.nbytes
        for token, (stream, leaves_at) in list(self._streams.items()):
            if leaves_at > now and len(self._streams) <= self._max_streams and nbytes <= self._max_bytes:
                return
            nbytes -= stream.nbytes
            del self._streams[token]
