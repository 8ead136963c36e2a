"""The heap of a process that computes: memory that was freed is kept for what comes next."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt, as in malloc.h of glibc
_MOST = 2**31 - 1


def keep_heap() -> None:
    """Keep freed memory of up to 2 GiB in this process, where its C library is glibc.

    Left alone, glibc hands every block above 32 MB back to the kernel, which clears it page by page when the next layer
    asks for the same: 10 to 15 % of the time of a codec on a CPU, with batches of 120 s. The peak is the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return
    mallopt(_MMAP_THRESHOLD, _MOST)
    mallopt(_TRIM_THRESHOLD, _MOST)
