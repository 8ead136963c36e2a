"""Audio inside Parquet files, as Hugging Face stores it: a column `audio` of structs with `bytes` and `path`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.datasets.listing import SourceFile, listing_from, listing_of, with_extra
from pipelines.inputs.range_stream import open_scattered
from tokenizer.errors import AudioError, DatasetError

AUDIO_COLUMN = "audio"
_BYTES, _PATH = f"{AUDIO_COLUMN}.bytes", f"{AUDIO_COLUMN}.path"


class _DamagedError(Exception):
    """Not a Parquet file, or not any more."""


def is_parquet(uri: str) -> bool:
    """Whether a file goes by the extension of Parquet."""
    return uri.lower().endswith(".parquet")


def holds_audio(uri: str) -> bool:
    """Whether a Parquet file has the column of audio.

    Raises:
        DatasetError: it is damaged.
        OSError: it cannot be opened.
    """
    with open_scattered(uri) as stream:
        try:
            with _judging():
                return _has_audio(pq.read_schema(stream))
        except _DamagedError as error:
            raise DatasetError(f"{uri}: not a Parquet file that can be read: {error}") from error


def index_parquet(name: str, file: storage.StoredFile, *, alone: bool) -> pa.Table | None:
    """List the rows of a Parquet file without reading their audio; of a damaged one, a single input with its name.

    An id is the row's `id` if all are there and unique, else its `audio.path` if so, else its number; the name of the
    file stands before it.

    Args:
        name: id of the file.
        file: the file.
        alone: it is the whole source: its name stands only before a row's number.

    Returns:
        A listing with travelling columns, in the order of the rows; None if there is no audio in it.

    Raises:
        OSError: S3 fails.
    """
    try:
        with open_scattered(file.uri) as stream, _judging():
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
            if not _has_audio(parquet.schema_arrow):
                return None
            return _listing(name, file.uri, parquet, "" if alone else f"{name}/")
    except (_DamagedError, OSError) as error:
        if isinstance(error, OSError) and storage.is_s3(file.uri) and not isinstance(error, PermissionError):
            raise
        return listing_of([SourceFile(name, file.uri)])


class RowGroup:
    """The audio of one row group of a Parquet file, in memory."""

    def __init__(self, uri: str, parquet: pq.ParquetFile, row: int) -> None:
        self.uri = uri
        number, self.first, self.stop = self._find(parquet.metadata, row)
        self._failure: str | None = None
        self._bytes: pa.ChunkedArray | None = None
        try:
            with _judging():
                column = parquet.read_row_group(number, columns=[_BYTES]).column(AUDIO_COLUMN)
                self._bytes = pc.struct_field(column, "bytes")
        except _DamagedError as error:
            self._failure = f"row group {number} is damaged: {error}"  # which its other rows are told too

    def _find(self, metadata: pq.FileMetaData, row: int) -> tuple[int, int, int]:
        """The number of the row group that has a row, its first row, and the one behind its last."""
        first = 0
        for number in range(metadata.num_row_groups):
            stop = first + metadata.row_group(number).num_rows
            if first <= row < stop:
                return number, first, stop
            first = stop
        raise AudioError(f"{self.uri}: row {row} is not in a file of {metadata.num_rows} rows")

    def audio(self, row: int) -> bytes:
        """The bytes of a row's audio file.

        Raises:
            AudioError: there are none, or the row group is damaged.
        """
        if self._bytes is None:
            raise AudioError(f"{self.uri}, row {row}: {self._failure}")
        content: bytes | None = self._bytes[row - self.first].as_py()
        if content is None:
            raise AudioError(f"{self.uri}, row {row}: no bytes in the column {AUDIO_COLUMN}, at most a path")
        return content


def open_parquet(stream: BinaryIO, uri: str) -> pq.ParquetFile:
    """Open a Parquet file with audio to read rows of it.

    Raises:
        AudioError: it is damaged, or has no audio.
    """
    try:
        with _judging():
            parquet = pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=True)
    except _DamagedError as error:
        raise AudioError(f"{uri}: not a Parquet file that can be read: {error}") from error
    if not _has_audio(parquet.schema_arrow):
        raise AudioError(f"{uri}: no column {AUDIO_COLUMN} of structs with bytes")
    return parquet


@contextmanager
def _judging() -> Iterator[None]:
    """Tell damage apart from disks and networks that fail: those raise OSError with a number or a class of its own."""
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        raise _DamagedError(str(error)) from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise _DamagedError(str(error)) from error
        raise


def _has_audio(schema: pa.Schema) -> bool:
    column = schema.field(AUDIO_COLUMN).type if AUDIO_COLUMN in schema.names else None
    if not isinstance(column, pa.StructType) or column.get_field_index("bytes") < 0:
        return False
    kind = column.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _listing(name: str, uri: str, parquet: pq.ParquetFile, prefix: str) -> pa.Table:
    schema = parquet.schema_arrow
    has_path = schema.field(AUDIO_COLUMN).type.get_field_index("path") >= 0
    others = [column for column in schema.names if column != AUDIO_COLUMN]
    wanted = [*others, _PATH] if has_path else others
    table = parquet.read(columns=wanted) if wanted else None
    num_rows = parquet.metadata.num_rows
    extra = {column: table.column(column) for column in others} if table is not None else {}
    paths = pc.struct_field(table.column(AUDIO_COLUMN), "path") if has_path and table is not None else None
    if (ids := _unique(extra.get("id"))) is not None:
        del extra["id"]
    elif (ids := _unique(paths)) is not None:
        paths = None
    if paths is not None and paths.null_count < num_rows:
        extra[f"{AUDIO_COLUMN}_path"] = paths
    ids = [f"{name}/{row}" for row in range(num_rows)] if ids is None else [f"{prefix}{value}" for value in ids]
    listing = listing_from(
        {
            "id": pa.array(ids, pa.string()),
            "uri": pa.repeat(uri, num_rows),
            "size": pa.array(_sizes(parquet.metadata), pa.int64()),
            "offset": pa.array(np.arange(num_rows), pa.int64()),
        }
    )
    return with_extra(listing, pa.table(extra))


def _unique(column: pa.ChunkedArray | None) -> list[str] | None:
    """The values of a column of text or integers as ids, or None if they cannot be ids."""
    if column is None or not (_is_text(column.type) or pa.types.is_integer(column.type)):
        return None
    if column.null_count > 0 or pc.count_distinct(column).as_py() < len(column):
        return None
    return [str(value) for value in column.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _sizes(metadata: pq.FileMetaData) -> list[int]:
    """Bytes of each row's audio, as the average of its row group."""
    sizes: list[int] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        total = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == _BYTES)
        sizes += [total // max(1, group.num_rows)] * group.num_rows
    return sizes
