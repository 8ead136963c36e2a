"""Commit records: what a part held when it was written, so that a reader can tell whether it still does.

A record is a JSON file in records/, committed before the part that it describes. Its name has the part's hash, so that
two jobs which race for a unit never write over each other's record; the part that is there matches one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from tokenizer.errors import DatasetError

FORMAT_VERSION = 1
DIRECTORY = "records"
_NAME = re.compile(r"part-(\d{5,})\.([0-9a-f]{16})\.json")
_TAIL_BYTES = 8  # of a Parquet file: the footer's length and the magic


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """Where a part has one column of one row group, page headers and dictionary included."""

    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part when it was written."""

    sha256: str
    num_bytes: int
    footer_sha256: str  # of its last footer_bytes: the footer, its length and the magic
    footer_bytes: int
    num_rows: int
    chunks: dict[str, tuple[ColumnChunk, ...]]  # by column; one a row group, several where the column is nested


@dataclass(frozen=True, slots=True)
class ErrorsRecord:
    """The errors of the same unit when they were written."""

    sha256: str
    num_bytes: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What one unit committed."""

    part: PartRecord
    errors: ErrorsRecord | None  # None: there were none, and no file
    audio_seconds: float

    def to_json(self) -> str:
        """One line of JSON that ends in a checksum of itself."""
        body = json.dumps(self._plain(), separators=(",", ":")).removesuffix("}")
        return body + _seal(body)

    @classmethod
    def from_json(cls, text: str | bytes) -> CommitRecord:
        """Parse what `to_json` wrote, to the byte.

        Raises:
            DatasetError: it is anything else, or of another format version.
        """
        try:
            content = text.decode() if isinstance(text, bytes) else text
            plain = json.loads(content)
            if plain["format"] != FORMAT_VERSION:
                raise DatasetError(f"record format {plain['format']!r}; this version reads {FORMAT_VERSION}")
            record = _parse(plain)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DatasetError(f"the record is damaged: {type(error).__name__}: {error}") from error
        body = content[: -len(_seal(""))]
        if content != body + _seal(body):
            raise DatasetError("the record is damaged: its checksum does not fit")
        return record

    def _plain(self) -> dict[str, Any]:
        part = self.part
        errors = self.errors
        return {
            "format": FORMAT_VERSION,
            "part": {
                "sha256": part.sha256,
                "bytes": part.num_bytes,
                "footer_sha256": part.footer_sha256,
                "footer_bytes": part.footer_bytes,
                "rows": part.num_rows,
                "chunks": {name: [dataclasses.astuple(chunk) for chunk in own] for name, own in part.chunks.items()},
            },
            "errors": errors and {"sha256": errors.sha256, "bytes": errors.num_bytes, "rows": errors.num_rows},
            "audio_seconds": self.audio_seconds,
        }


def record_of(part: bytes, num_rows: int, errors: bytes | None, num_errors: int, audio_seconds: float) -> CommitRecord:
    """The record of a unit.

    Args:
        part: content of its part.
        num_rows: in the part.
        errors: content of its file of errors; None where it has none.
        num_errors: rows in that file.
        audio_seconds: in the rows of the part.
    """
    footer_bytes = int.from_bytes(part[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    described = PartRecord(
        sha256=hashlib.sha256(part).hexdigest(),
        num_bytes=len(part),
        footer_sha256=hashlib.sha256(part[-footer_bytes:]).hexdigest(),
        footer_bytes=footer_bytes,
        num_rows=num_rows,
        chunks=_chunks_of(part),
    )
    failed = None if errors is None else ErrorsRecord(hashlib.sha256(errors).hexdigest(), len(errors), num_errors)
    return CommitRecord(described, failed, float(audio_seconds))


def record_name(unit: int, sha256: str) -> str:
    """File name of the record of a unit whose part has this hash."""
    return f"part-{unit:05d}.{sha256[:16]}.json"


def parse_record_name(name: str) -> tuple[int, str] | None:
    """The unit, and the first 16 digits of its part's hash, that a file name stands for; None: it is no record's."""
    match = _NAME.fullmatch(name)
    if match is None or record_name(int(match[1]), match[2]) != name:
        return None
    return int(match[1]), match[2]


def list_records(root: str) -> dict[int, list[tuple[str, str]]]:
    """The records of a dataset by unit: for each its file name and the beginning of its part's hash.

    Args:
        root: of the dataset, as `storage.absolute` gives it.
    """
    found: dict[int, list[tuple[str, str]]] = {}
    for name in storage.list_names(storage.join(root, DIRECTORY)):
        parsed = parse_record_name(name)
        if parsed is not None:
            found.setdefault(parsed[0], []).append((name, parsed[1]))
    return found


def read_record(uri: str) -> CommitRecord:
    """Read one record.

    Raises:
        DatasetError: it is damaged or cannot be read.
    """
    try:
        return CommitRecord.from_json(storage.read_bytes(uri))
    except DatasetError as error:
        raise DatasetError(f"{uri}: {error}") from error
    except OSError as error:
        raise DatasetError(f"{uri}: cannot be read: {error}") from error


def _chunks_of(part: bytes) -> dict[str, tuple[ColumnChunk, ...]]:
    metadata = pq.read_metadata(io.BytesIO(part))
    # By counting, not by the path in the file's schema: a column of the source may have a dot in its name.
    owners = [field.name for field in metadata.schema.to_arrow_schema() for _ in range(_num_leaves(field.type))]
    chunks: dict[str, tuple[ColumnChunk, ...]] = {}
    for group in range(metadata.num_row_groups):
        for index, name in enumerate(owners):
            column = metadata.row_group(group).column(index)
            offset = column.data_page_offset
            if column.dictionary_page_offset is not None:
                offset = min(offset, column.dictionary_page_offset)
            end = offset + column.total_compressed_size
            chunk = ColumnChunk(offset, end - offset, zlib.crc32(memoryview(part)[offset:end]))
            chunks[name] = (*chunks.get(name, ()), chunk)
    return chunks


def _num_leaves(kind: pa.DataType) -> int:
    """Columns that Parquet makes of one of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    return sum(_num_leaves(kind.field(index).type) for index in range(kind.num_fields)) or 1


def _parse(plain: dict[str, Any]) -> CommitRecord:
    part, errors = plain["part"], plain["errors"]
    chunks = {name: tuple(ColumnChunk(*map(int, chunk)) for chunk in own) for name, own in part["chunks"].items()}
    return CommitRecord(
        PartRecord(
            sha256=str(part["sha256"]),
            num_bytes=int(part["bytes"]),
            footer_sha256=str(part["footer_sha256"]),
            footer_bytes=int(part["footer_bytes"]),
            num_rows=int(part["rows"]),
            chunks=chunks,
        ),
        errors and ErrorsRecord(str(errors["sha256"]), int(errors["bytes"]), int(errors["rows"])),
        float(plain["audio_seconds"]),
    )


def _seal(body: str) -> str:
    """The end of a record: the checksum of all that is before it."""
    return f',"crc32":"{zlib.crc32(body.encode()):08x}"}}\n'
