"""Parts as readers open them: no byte of one is used that has not been checked against its commit record.

Parquet's own page checksums do not cover the footer and the page headers, where a flipped bit can move or resize what
is read; the record's checksums of the footer and of each column chunk do. Of parts without a record (written before
there were records) the pages alone are checked.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.byte_ranges import read_ranges
from pipelines.datasets.commit_record import DIRECTORY, CommitRecord, PartRecord, list_records, read_record
from tokenizer.errors import DatasetError


@dataclass(frozen=True, slots=True)
class PartFile:
    """A file of parts/ or errors/ and where its records are; nothing is read before it is opened."""

    dataset: str
    kind: str  # parts or errors
    uri: str
    record_uris: tuple[str, ...]  # of its unit: usually one
    recorded: bool  # whether the dataset has records, so that this part must have one

    def open(self) -> CheckedPart:
        """Find the record that the file matches and read the footer.

        Raises:
            DatasetError: the file is damaged, has no record though others do, or cannot be read.
        """
        with _explained(self):
            if not self.recorded:
                return CheckedPart(self, _source(self.uri))
            records = list(self._records())
            if not records:
                raise _DamageError("it has no commit record, so it is not of this job, or its record is lost")
            return self._open_errors(records) if self.kind == "errors" else self._open_part(records)

    def _records(self) -> Iterator[CommitRecord]:
        """Those that can be read, as long as one can: a damaged one may be of another job that lost a race."""
        failure, found = None, False
        for uri in self.record_uris:
            try:
                record = read_record(uri)
            except DatasetError as error:
                failure = error
                continue
            found = True
            yield record
        if failure is not None and not found:
            raise failure

    def _open_part(self, records: Sequence[CommitRecord]) -> CheckedPart:
        for record in records:
            part = record.part
            footer_start = part.num_bytes - part.footer_bytes
            footer = read_ranges(self.uri, [(footer_start, part.num_bytes)])[0]
            if hashlib.sha256(footer).hexdigest() == part.footer_sha256:
                content = np.zeros(part.num_bytes, np.uint8)  # pages that are never filled take no memory
                content[footer_start:] = np.frombuffer(footer, np.uint8)
                return CheckedPart(self, content, part)
        raise _DamageError("its footer is not the one that was written")

    def _open_errors(self, records: Sequence[CommitRecord]) -> CheckedPart:
        content = storage.read_bytes(self.uri)  # small: it is read whole whatever a query needs
        found = hashlib.sha256(content).hexdigest()
        if all(record.errors is None or record.errors.sha256 != found for record in records):
            raise _DamageError("it is not the file that was written")
        return CheckedPart(self, io.BytesIO(content))


class CheckedPart:
    """An open part; made by `PartFile.open`.

    Args:
        file: that was opened.
        content: the file as a stream; or room for all its bytes, of which the footer is there already.
        record: of the part, where `content` is to be filled and checked column by column.
    """

    def __init__(self, file: PartFile, content: object, record: PartRecord | None = None) -> None:
        self._file, self._content, self._record = file, content, record
        self._filled: set[str] = set()
        with _explained(file):
            source = pa.BufferReader(pa.py_buffer(content)) if isinstance(content, np.ndarray) else content
            self._parquet = pq.ParquetFile(source, page_checksum_verification=True)
            self._schema = self._parquet.schema_arrow
            if len(set(self._schema.names)) < len(self._schema.names):
                raise _DamageError("it has two columns of one name")

    @property
    def uri(self) -> str:
        """Of the file."""
        return self._file.uri

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata."""
        return self._schema

    @property
    def metadata(self) -> pq.FileMetaData:
        """What the footer says."""
        return self._parquet.metadata

    def read(self, columns: Sequence[str]) -> pa.Table:
        """These columns of all rows, in this order.

        Raises:
            DatasetError: their bytes are not those that were written, or the part lacks one of them.
        """
        self._require(columns)
        with _explained(self._file):
            self._fill(columns)
            return self._parquet.read(list(columns), use_threads=False).select(list(columns))

    def batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        """These columns, at most `num_rows` rows at a time.

        Raises:
            DatasetError: as `read`.
        """
        self._require(columns)
        with _explained(self._file):
            self._fill(columns)
            batches = self._parquet.iter_batches(num_rows, columns=list(columns))
        while True:  # nothing is yielded inside: an error of whoever consumes the rows is not one of the part
            with _explained(self._file):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _require(self, columns: Sequence[str]) -> None:
        missing = [name for name in columns if name not in self.schema.names]
        if missing:  # Arrow would leave them out without a word
            raise DatasetError(f"{self.uri}: lacks {', '.join(missing)}")

    def _fill(self, columns: Sequence[str]) -> None:
        """Read the column chunks that are not there yet, and check every one."""
        if self._record is None or not isinstance(self._content, np.ndarray):
            return
        wanted = [name for name in columns if name not in self._filled]
        chunks = [(name, chunk) for name in wanted for chunk in self._record.chunks[name]]
        ranges = [(chunk.offset, chunk.offset + chunk.num_bytes) for _, chunk in chunks]
        for (name, chunk), content in zip(chunks, read_ranges(self.uri, ranges), strict=True):
            if zlib.crc32(content) != chunk.crc32:
                raise _DamageError(f"column {name} is not what was written")
            self._content[chunk.offset : chunk.offset + chunk.num_bytes] = np.frombuffer(content, np.uint8)
        self._filled.update(wanted)


def list_parts(dataset: str | Path, kind: str = "parts") -> list[str]:
    """Names of the committed files in parts/ or errors/, in unit order."""
    names = storage.list_names(storage.join(storage.absolute(dataset), kind))
    return [name for name in names if name.startswith("part-") and name.endswith(".parquet")]


def part_files(dataset: str | Path, kind: str = "parts") -> list[PartFile]:
    """The committed files in parts/ or errors/, in unit order, ready to be opened."""
    root = storage.absolute(dataset)
    names = list_parts(root, kind)
    done = set(names if kind == "parts" else list_parts(root))
    records = list_records(root)  # after the parts: a part that was listed has its record already
    files = []
    for name in names:
        digits = name.removeprefix("part-").removesuffix(".parquet")
        own = records.get(int(digits), []) if digits.isdecimal() else []
        # Errors of a unit that is not done may be newer than its records: they are of an attempt that goes on.
        settled = name in done
        uris = tuple(storage.join(root, DIRECTORY, record) for record, _ in own) if settled else ()
        files.append(PartFile(root, kind, storage.join(root, kind, name), uris, bool(records) and settled))
    return files


class _DamageError(Exception):
    """Bytes that are not those which were written."""


def _source(uri: str) -> object:
    return io.BytesIO(storage.read_bytes(uri)) if storage.is_s3(uri) else pa.OSFile(uri)


@contextmanager
def _explained(file: PartFile) -> Iterator[None]:
    """Turn what is wrong with a file into an error that names it and says what helps."""
    advice = f"`quantone verify {file.dataset}` says what to do"
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{file.uri}: not there any more; {advice}") from error
    except (pa.ArrowException, _DamageError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system; what Arrow raises has no number
            raise DatasetError(f"{file.uri}: cannot be read: {error}") from error
        raise DatasetError(f"{file.uri}: damaged, or not a part: {error}; {advice}") from error
