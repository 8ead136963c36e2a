"""Parts of a token dataset: the columns of format 1, and how rows become the bytes of one Parquet file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer.spec import CodecSpec

CARD_KEY = b"quantone"  # of the Parquet key-value metadata; one part alone can be decoded

# The three constants stand in every row although the card has them too: the card is lost when Polars, DuckDB or a hub
# rewrites a file, columns survive, and Parquet stores a repeated value in some bytes a part.
_FIXED_FIELDS = [
    ("id", pa.string()),
    ("uri", pa.string()),
    ("num_samples", pa.int64()),  # at sample_rate
    ("num_frames", pa.int64()),
    ("duration_s", pa.float64()),
    ("sample_rate", pa.int32()),  # the codec's, Hz
    ("hop_length", pa.int32()),
    ("codebook_size", pa.int32()),
    ("source_sample_rate", pa.int32()),
    ("source_channels", pa.int32()),
    ("peak", pa.float32()),  # largest magnitude after mixing down, 1.0 is full scale
    ("rms_dbfs", pa.float32()),
]
SCALES_COLUMN = "scales"
QTN_COLUMN = "codes_qtn"  # in place of the levels, where a language model compressed them
_LEVEL = re.compile(r"codes_(\d+)")
_ERROR_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "uri", "error", "message")])


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One utterance."""

    id: str
    uri: str
    num_samples: int
    source_sample_rate: int
    source_channels: int
    peak: float
    rms_dbfs: float
    codes: npt.NDArray[np.uint16]  # [K, T]
    scales: npt.NDArray[np.float32] | None = None  # [N] loudness of each segment, where the codec divides by it
    qtn: bytes | None = None  # the codes as a .qtn stream, in datasets that are compressed


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One input that did not work, and why."""

    id: str
    uri: str
    error: str  # class, such as AudioError or killed_worker
    message: str


@dataclass(frozen=True, slots=True)
class PartSize:
    """What the codes of a part cost at rest."""

    num_codes: int
    code_bytes: int  # of the column chunks of codes, dictionaries included


def part_name(unit: int) -> str:
    """File name of a unit's part."""
    return f"part-{unit:05d}.parquet"


def level_column(level: int) -> str:
    """Column of a codebook level."""
    return f"codes_{level:02d}"


def is_level_column(name: str) -> bool:
    """Whether a column has the codes of one level."""
    return _LEVEL.fullmatch(name) is not None


def part_schema(spec: CodecSpec, num_codebooks: int, card: dict[str, Any], *, compressed: bool = False) -> pa.Schema:
    """Columns of a part, with the codec card in the metadata."""
    levels = [(level_column(level), pa.list_(pa.uint16())) for level in range(num_codebooks)]
    scales = [(SCALES_COLUMN, pa.list_(pa.float32()))] if spec.has_scales else []
    metadata = {CARD_KEY: json.dumps(card, sort_keys=True).encode()}
    if compressed:
        return pa.schema([*_FIXED_FIELDS, *scales, (QTN_COLUMN, pa.binary())], metadata=metadata)
    return pa.schema([*_FIXED_FIELDS, *levels, *scales], metadata=metadata)


def encode_part(
    rows: list[TokenRow], spec: CodecSpec, num_codebooks: int, card: dict[str, Any], *, compressed: bool = False
) -> bytes:
    """Rows to the bytes of a Parquet file: zstd, dictionaries, a checksum on every page, one row group.

    Args:
        rows: of the part.
        spec: of the codec.
        num_codebooks: K of the rows.
        card: of the codec, for the metadata.
        compressed: one column of .qtn streams, which all rows must have, in place of one column a level.
    """
    columns: dict[str, Any] = {
        "num_frames": [row.codes.shape[1] for row in rows],
        "duration_s": [row.num_samples / spec.sample_rate for row in rows],
        "sample_rate": [spec.sample_rate] * len(rows),
        "hop_length": [spec.hop_length] * len(rows),
        "codebook_size": [spec.codebook_size] * len(rows),
    }
    for name in ("id", "uri", "num_samples", "source_sample_rate", "source_channels", "peak", "rms_dbfs"):
        columns[name] = [getattr(row, name) for row in rows]
    if compressed:
        columns[QTN_COLUMN] = [_stream_of(row) for row in rows]
    for level in range(0 if compressed else num_codebooks):
        columns[level_column(level)] = _list_array([row.codes[level] for row in rows], pa.uint16())
    if spec.has_scales:
        columns[SCALES_COLUMN] = _list_array([row.scales for row in rows if row.scales is not None], pa.float32())
    schema = part_schema(spec, num_codebooks, card, compressed=compressed)
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    return _to_parquet(table)


def encode_errors(rows: list[ErrorRow]) -> bytes:
    """Error rows to the bytes of a Parquet file."""
    columns = [pa.array([getattr(row, name) for row in rows], pa.string()) for name in _ERROR_SCHEMA.names]
    return _to_parquet(pa.table(columns, schema=_ERROR_SCHEMA))


def measure_part(content: bytes, rows: Sequence[TokenRow]) -> PartSize:
    """How many codes these rows have, and by the footer of their part, how many bytes they take."""
    metadata = pq.read_metadata(io.BytesIO(content))
    code_bytes = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            name = str(column.path_in_schema).split(".", 1)[0]
            if is_level_column(name) or name == QTN_COLUMN:
                code_bytes += column.total_compressed_size
    return PartSize(sum(row.codes.size for row in rows), code_bytes)


def _stream_of(row: TokenRow) -> bytes:
    if row.qtn is None:
        raise ValueError(f"{row.id}: a row of a compressed part has no stream")
    return row.qtn


def _list_array(rows: Sequence[npt.NDArray[Any]], item: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat).cast(item))


def _to_parquet(table: pa.Table) -> bytes:
    buffer, names = io.BytesIO(), table.column_names
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=True if QTN_COLUMN not in names else [name for name in names if name != QTN_COLUMN],
        write_page_checksum=True,  # readers that verify find 399 of 400 flipped bits; without, most give wrong codes
        row_group_size=max(1, table.num_rows),  # one dictionary a level and part
    )
    return buffer.getvalue()
