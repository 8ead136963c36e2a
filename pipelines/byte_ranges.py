"""Parts of files: some stretches of a file's bytes, on a local disk or in S3, without what lies between."""

from __future__ import annotations

import io
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipelines import s3_server, storage

_MERGED_GAP = 256 * 1024  # bytes between two stretches that S3 sends for less than another request costs


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes [start, stop) of a file for each range, fewer where the file ends before.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not ranges:
        return []
    if storage.is_s3(uri):
        return _from_s3(uri, ranges)
    with Path(uri).open("rb", buffering=0) as stream:
        return [_read_range(stream, start, stop) for start, stop in ranges]


def _read_range(stream: io.FileIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    content = stream.read(stop - start)
    while len(content) < stop - start:  # a read may be short, above all one of more than 2 GiB
        more = stream.read(stop - start - len(content))
        if not more:
            break
        content += more
    return content


def _from_s3(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    filesystem: Any = s3_server.filesystem()
    merged = _merge(ranges)
    starts, stops = [start for start, _ in merged], [stop for _, stop in merged]
    try:
        found = filesystem.cat_ranges([uri] * len(merged), starts, stops, on_error="raise")
    except OSError as error:
        if s3_server.status_of(error) != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return [b""] * len(ranges)  # it ends before one of them: shorter than it was when it was written
    contents = dict(zip(merged, found, strict=True))
    return [_cut(contents, start, stop) for start, stop in ranges]


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewer, longer ranges in which all of these lie."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= _MERGED_GAP:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _cut(contents: dict[tuple[int, int], bytes], start: int, stop: int) -> bytes:
    begin, content = next(
        (begin, content) for (begin, end), content in contents.items() if begin <= start and stop <= end
    )
    return content[start - begin : stop - begin]
