"""StreamInbox: codes that have come on a stream and not gone to the engine yet."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np
from numpy.typing import NDArray


class StreamInbox:
    """Codes in order, with the ends of utterances between them; bounded, so that a fast writer waits.

    A reset overtakes what waits here: whoever asks for it has no use for the rest.

    Args:
        max_frames: that wait before `put` does; an end counts as one. A single message may be longer.
    """

    def __init__(self, max_frames: int) -> None:
        self._max_frames = max_frames
        self._waiting: deque[NDArray[np.uint16] | None] = deque()
        self._frames = 0
        self._skipped = 0  # ends and resets that a reset not done yet has overtaken, with itself
        self._changed = asyncio.Condition()

    @property
    def empty(self) -> bool:
        """Nothing waits here."""
        return not self._waiting and not self._skipped

    async def put(self, codes: NDArray[np.uint16] | None) -> None:
        """Codes [K, T], or None for the end of an utterance; waits for room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._frames < self._max_frames)
            self._waiting.append(codes)
            self._frames += _length(codes)
            self._changed.notify_all()

    async def put_reset(self) -> None:
        """Drop what waits; `reset_asked` returns, and `get` waits until `take_reset` was called."""
        async with self._changed:
            self._skipped += 1 + sum(codes is None for codes in self._waiting)
            self._waiting.clear()
            self._frames = 0
            self._changed.notify_all()

    async def get(self) -> NDArray[np.uint16] | None:
        """The next codes or end."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting) and not self._skipped)
            codes = self._waiting.popleft()
            self._frames -= _length(codes)
            self._changed.notify_all()
            return codes

    async def reset_asked(self) -> None:
        """Wait for a reset."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._skipped > 0)

    async def take_reset(self) -> int:
        """The reset is being done: how many utterances it ends that were not known to the caller."""
        async with self._changed:
            skipped, self._skipped = self._skipped, 0
            self._changed.notify_all()
            return skipped


def _length(codes: NDArray[np.uint16] | None) -> int:
    return 1 if codes is None else codes.shape[1]
