"""Streams over parts of files: a stretch of a file as a stream of its own, and files that are read here and there."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

from pipelines import s3_server, storage
from pipelines.byte_ranges import read_ranges

# Bytes of one request for a few headers: what arrives in the time that a request takes to begin. Less would be slower
# for shards of short clips, and more would fetch most of the data between the headers of long ones.
_BLOCK = 2 * 2**20
_WHOLE_BYTES = 64 * 2**20  # up to this size one GET is cheaper than several


class ByteRange(io.RawIOBase):
    """A seekable view of bytes `start` to `start + size` of a stream; nothing outside of them can be read.

    Closing it leaves the stream open unless `owned`.
    """

    def __init__(self, stream: BinaryIO, start: int, size: int, name: str, *, owned: bool = False) -> None:
        self._stream, self._start, self._size, self.name = stream, start, size, name
        self._position = 0
        self._owned = owned

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the start of the range."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the range, or behind its end, where nothing is read; never before its start."""
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise ValueError(f"{self.name}: position {position} is before the start")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the range goes."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._stream.seek(self._start + self._position)
        content = self._stream.read(wanted) if wanted else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Close the view, and the stream below where it is owned."""
        if self._owned and not self.closed:
            self._stream.close()
        super().close()


def open_scattered(uri: str) -> BinaryIO:
    """Open a file of which little is read, here and there.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not storage.is_s3(uri):
        return storage.open_input(uri)
    stream: BinaryIO = s3_server.filesystem().open(uri, "rb", block_size=_BLOCK)
    return stream


def open_range(uri: str, start: int, size: int, name: str) -> BinaryIO:
    """A stretch of a file as a stream from 0 to `size`; shorter where the file ends before.

    Raises:
        OSError: the file is not there or cannot be read.
    """
    if storage.is_s3(uri) and size <= _WHOLE_BYTES:
        content = read_ranges(uri, [(start, start + size)])[0] if size else b""
        view = ByteRange(io.BytesIO(content), 0, len(content), name)
    else:
        stream = storage.open_input(uri)
        present = max(0, min(size, stream.seek(0, os.SEEK_END) - start))
        view = ByteRange(stream, start, present, name, owned=True)
    return cast("BinaryIO", io.BufferedReader(view))
