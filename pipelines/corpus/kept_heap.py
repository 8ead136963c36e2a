"""The heap of a process that computes: memory that was freed is kept for what comes next."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt, as in malloc.h of glibc
_MOST = 2**31 - 1


def keep_heap(most: int = _MOST) -> None:
    """Keep freed memory in this process for what comes next, where its C library is glibc.

    Left alone, glibc hands large blocks back to the kernel, which clears them page by page when the next layer or file
    asks for the same: 10 to 15 % of the time of a codec on a CPU, with batches of 120 s, and as much of a reader's with
    short files. The peak is the same.

    Args:
        most: bytes; larger blocks, and free memory beyond so much, still go back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return
    mallopt(_MMAP_THRESHOLD, most)
    mallopt(_TRIM_THRESHOLD, most)
