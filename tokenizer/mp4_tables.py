"""Tables of MP4 files that claim more samples than the file has bytes: FFmpeg would build gigabytes of index for them.

A sample in the sense of MP4 is a packet (or one PCM sample) and takes at least a byte. But a count in a header takes
four, whatever it counts, and a kilobyte of file can claim billions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np

from tokenizer.watched_stream import WatchedStream

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # bytes into the box where its one count stands
_RUNS = {b"stts", b"ctts"}  # boxes of (count, value) pairs
_MAX_DEPTH = 8
_PIECE_BYTES = 2**20


def oversized_table(watched: WatchedStream, size: int) -> str | None:
    """What is wrong with the tables of an MP4 file of so many bytes, in words; None if nothing is."""
    for name, start, end in _boxes(watched, 0, size, 0):
        if name == b"cmov":
            return "its tables are compressed, which is not supported"
        count = _count(watched, name, start, end)
        if count > size:
            return f"damaged: a table of {count} samples in a file of {size} bytes"
    return None


def _boxes(watched: WatchedStream, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the content of every box, those inside others too."""
    while start + 8 <= end:
        header = _read_at(watched, start, 16)
        if len(header) < 8:
            return
        length, name = struct.unpack(">I4s", header[:8])
        begin = start + 8
        if length == 1 and len(header) == 16:
            length, begin = struct.unpack(">Q", header[8:])[0], start + 16
        stop = end if length == 0 else min(end, start + length)  # 0: to the end
        if stop < begin:
            return
        yield name, begin, stop
        if name in _PARENTS and depth < _MAX_DEPTH:
            yield from _boxes(watched, begin, stop, depth + 1)
        start = stop


def _count(watched: WatchedStream, name: bytes, start: int, end: int) -> int:
    if name in _COUNT_AT:
        field = _read_at(watched, start + _COUNT_AT[name], 4)
        return int(struct.unpack(">I", field)[0]) if len(field) == 4 else 0
    if name in _RUNS:
        pieces = (_read_at(watched, at, min(_PIECE_BYTES, end - at)) for at in range(start + 8, end, _PIECE_BYTES))
        return sum(
            int(np.frombuffer(piece[: len(piece) // 8 * 8], ">u4")[::2].sum(dtype=np.uint64)) for piece in pieces
        )
    return 0


def _read_at(watched: WatchedStream, position: int, size: int) -> bytes:
    watched.seek(position, os.SEEK_SET)
    return watched.read(max(0, size))
