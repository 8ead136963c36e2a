"""Opens the inputs of a listing: files, members of tar shards, rows of Parquet files, each as a stream of its own."""

from __future__ import annotations

import io
from contextlib import ExitStack
from types import TracebackType
from typing import Any, BinaryIO, Self

from pipelines import storage
from pipelines.datasets.listing import SourceFile
from pipelines.inputs.parquet_audio import RowGroup, is_parquet, open_parquet
from pipelines.inputs.range_stream import open_range, open_scattered
from pipelines.inputs.tar_index import is_tar, raise_damage
from tokenizer.errors import AudioError


class _NamedBytes(io.BytesIO):
    """Bytes that know where they came from, for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class SourceReader:
    """Opens inputs one after another; the Parquet file and the row group used last stay open for the next one."""

    def __init__(self) -> None:
        self._uri: str | None = None  # of the open Parquet file
        self._parquet: Any = None
        self._group: RowGroup | None = None
        self._open = ExitStack()

    def open(self, file: SourceFile) -> BinaryIO:
        """An input as a seekable stream from 0 to its size; closing it is the caller's.

        Raises:
            AudioError: the archive is damaged here, or has no such member or row.
            OSError: a file is not there, or cannot be read.
        """
        if file.member is not None:
            return _open_member(file)
        if is_tar(file.uri):
            raise_damage(file)
        if file.offset is not None or is_parquet(file.uri):
            return _NamedBytes(self._row(file.uri, file.offset), f"{file.uri}, row {file.offset}")
        return storage.open_input(file.uri, file.size)

    def close(self) -> None:
        """Close what was kept open."""
        self._open.close()
        self._uri = self._parquet = self._group = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _row(self, uri: str, row: int | None) -> bytes:
        if self._uri != uri:
            self.close()
            stream = self._open.enter_context(open_scattered(uri))
            self._parquet = open_parquet(stream, uri)
            self._uri = uri
        if row is None:
            raise AudioError(f"{uri}: could not be read when it was listed, but now; make a new dataset to read it")
        if self._group is None or not self._group.first <= row < self._group.stop:
            self._group = RowGroup(uri, self._parquet, row)
        return self._group.audio(row)


def _open_member(file: SourceFile) -> BinaryIO:
    name = f"{file.uri}, member {file.member}"
    if file.offset is None or file.size is None:
        raise AudioError(f"{name}: a link or a sparse file, of which the archive does not hold all bytes")
    stream = open_range(file.uri, file.offset, file.size, name)
    present = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if present < file.size:
        stream.close()
        raise AudioError(f"{name}: the archive ends after {present} of its {file.size} bytes")
    return stream
