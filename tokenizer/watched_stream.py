"""File objects under libsndfile: what fails in them is kept, and raised where Python can see it."""

from __future__ import annotations

from typing import Any, BinaryIO

from tokenizer.errors import AudioError


class WatchedStream:
    """A file object that remembers why it failed.

    libsndfile reads and writes through C callbacks, and an exception raised there is printed and dropped: a lost
    connection would look like the end of the file and give a shorter, wrong waveform, and a full disk would give a
    shorter file. Here the failure is kept, the codec sees an end of file or a success, and `check` raises afterwards.

    Args:
        stream: a seekable binary file object.
        path: name of the file where its failures are faults of the audio, as with files that the caller named; None
            raises them as they are.
    """

    def __init__(self, stream: BinaryIO, path: str | None = None) -> None:
        self.stream, self.path = stream, path
        self.failure: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Bytes, none after a failure."""
        return self._guarded(self.stream.read, size) or b""

    def write(self, content: bytes) -> int:
        """All is written, as far as libsndfile is told."""
        self._guarded(self.stream.write, content)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position, 0 after a failure."""
        return self._guarded(self.stream.seek, offset, whence) or 0

    def tell(self) -> int:
        """The position, 0 after a failure."""
        return self._guarded(self.stream.tell) or 0

    def check(self) -> None:
        """Raise what failed, if anything did.

        Raises:
            AudioError: for an OSError, where a path was given; other failures are raised as they are.
        """
        if isinstance(self.failure, OSError) and self.path is not None:
            raise AudioError(f"{self.path}: {self.failure.strerror or self.failure}") from self.failure
        if self.failure is not None:
            raise self.failure

    def _guarded(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001 - any failure is kept, and raised by check()
            self.failure = self.failure or error
            return None


class AmendedStream:
    """A watched stream as a codec is to see it: some header bytes replaced, or longer than it is.

    Args:
        watched: the real stream.
        size: its bytes.
        replaced: a position, and the bytes to be read there; None for none.
        claimed_size: bytes that it is said to have; None for the true number. Its last 4 KiB, where codecs look for
            tags, are zeros; everything else behind the true end is an end of file.
    """

    def __init__(
        self,
        watched: WatchedStream,
        size: int,
        *,
        replaced: tuple[int, bytes] | None = None,
        claimed_size: int | None = None,
    ) -> None:
        self._watched, self._size, self._replaced = watched, size, replaced
        self._claimed_size = size if claimed_size is None else claimed_size
        self._position = watched.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Bytes, none at the end and after a failure."""
        start = self._position
        if start <= self._size:
            content = self._watched.read(size)
        else:
            content = bytes(max(0, min(size, self._claimed_size - start))) if start >= self._tail else b""
        self._position += len(content)
        return content if self._replaced is None else _with(content, start, *self._replaced)

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position."""
        self._position = (0, self._position, self._claimed_size)[whence] + offset
        if self._position <= self._size:
            self._position = self._watched.seek(self._position)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    @property
    def _tail(self) -> int:
        return max(self._size + 1, self._claimed_size - 4096)


def _with(content: bytes, start: int, position: int, replacement: bytes) -> bytes:
    """The bytes from `start` on, with others at a position of the file."""
    first, last = max(start, position), min(start + len(content), position + len(replacement))
    if first >= last:
        return content
    return content[: first - start] + replacement[first - position : last - position] + content[last - start :]
