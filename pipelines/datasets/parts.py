"""Parts of a token dataset: the columns of format 1, and how rows become the bytes of one Parquet file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.audio_facts import AudioFacts
from tokenizer.spec import CodecSpec

if TYPE_CHECKING:  # its room loads torch, which queries do without
    from pipelines.datasets.reconstruction_quality import Quality

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
    ("input_id", pa.string()),  # of the listed input; the row's own id where that was not cut into segments
    ("start_sample", pa.int64()),  # of the row in its input, at sample_rate
    ("peak", pa.float32()),  # largest magnitude after mixing down, 1.0 is full scale
    ("rms_dbfs", pa.float32()),
    ("clipping_share", pa.float32()),
    ("speech_share", pa.float32()),
    ("content_hash", pa.string()),
]
_QUALITY_FIELDS = [("si_snr_db", pa.float32()), ("mel_distance", pa.float32())]
SCALES_COLUMN = "scales"
QTN_COLUMN = "codes_qtn"  # in place of the levels, where a language model compressed them
_LEVEL = re.compile(r"codes_(\d+)")
_ERROR_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "uri", "error", "message")])


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One utterance: an input of the job, or a segment of one."""

    id: str
    uri: str
    input_id: str
    start_sample: int
    num_samples: int
    source_sample_rate: int
    source_channels: int
    facts: AudioFacts
    codes: npt.NDArray[np.uint16]  # [K, T]
    scales: npt.NDArray[np.float32] | None = None  # [N] loudness of each segment, where the codec divides by it
    qtn: bytes | None = None  # the codes as a .qtn stream, in datasets that are compressed
    quality: Quality | None = None  # of what the codes decode to, where it was asked for


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One input that did not work, and why."""

    id: str
    uri: str
    error: str  # class, such as AudioError or killed_worker
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormat:
    """What all parts of a dataset have in common."""

    spec: CodecSpec
    num_codebooks: int
    card: dict[str, Any]  # of the codec, for the metadata
    compressed: bool = False  # one column of .qtn streams in place of one column a level
    quality: bool = False  # columns of how close the decoded audio is

    def schema(self, extra: pa.Schema | None = None) -> pa.Schema:
        """Columns of a part, those of the source last, with the codec card in the metadata."""
        levels = [(level_column(level), pa.list_(pa.uint16())) for level in range(self.num_codebooks)]
        fields = [
            *_FIXED_FIELDS,
            *(_QUALITY_FIELDS if self.quality else ()),
            *([(QTN_COLUMN, pa.binary())] if self.compressed else levels),
            *([(SCALES_COLUMN, pa.list_(pa.float32()))] if self.spec.has_scales else ()),
            *(extra or ()),
        ]
        return pa.schema(fields, metadata={CARD_KEY: json.dumps(self.card, sort_keys=True).encode()})


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


def own_columns(name: str) -> bool:
    """Whether a dataset gives a column of this name a meaning of its own, which a source's column must not take."""
    fixed = {field for field, _ in (*_FIXED_FIELDS, *_QUALITY_FIELDS)}
    return name in fixed or name in (SCALES_COLUMN, QTN_COLUMN) or is_level_column(name)


def encode_part(rows: Sequence[TokenRow], form: PartFormat, extra: pa.Table | None = None) -> bytes:
    """Rows to the bytes of a Parquet file: zstd, dictionaries, a checksum on every page, one row group.

    Args:
        rows: of the part.
        form: of the dataset's parts; compressed ones need rows with streams.
        extra: columns of the source that travel, one row for each of `rows`.
    """
    spec = form.spec
    columns: dict[str, Any] = {
        "num_frames": [row.codes.shape[1] for row in rows],
        "duration_s": [row.num_samples / spec.sample_rate for row in rows],
        "sample_rate": [spec.sample_rate] * len(rows),
        "hop_length": [spec.hop_length] * len(rows),
        "codebook_size": [spec.codebook_size] * len(rows),
    }
    for name in ("id", "uri", "input_id", "start_sample", "num_samples", "source_sample_rate", "source_channels"):
        columns[name] = [getattr(row, name) for row in rows]
    for name in ("peak", "rms_dbfs", "clipping_share", "speech_share", "content_hash"):
        columns[name] = [getattr(row.facts, name) for row in rows]
    if form.quality:
        for name, _ in _QUALITY_FIELDS:
            columns[name] = [None if row.quality is None else getattr(row.quality, name) for row in rows]
    if form.compressed:
        columns[QTN_COLUMN] = [_stream_of(row) for row in rows]
    for level in range(0 if form.compressed else form.num_codebooks):
        columns[level_column(level)] = _list_array([row.codes[level] for row in rows], pa.uint16())
    if spec.has_scales:
        columns[SCALES_COLUMN] = _list_array([row.scales for row in rows if row.scales is not None], pa.float32())
    schema = form.schema(None if extra is None else extra.schema)
    travelling = {} if extra is None else dict(zip(extra.column_names, extra.columns, strict=True))
    arrays = [
        travelling[field.name] if field.name in travelling else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return _to_parquet(pa.table(arrays, schema=schema))


def encode_errors(rows: Sequence[ErrorRow]) -> bytes:
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
