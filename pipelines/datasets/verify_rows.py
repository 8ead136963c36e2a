"""What the rows of a part must be like: their columns, their codes, and the inputs that they are of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.datasets.parts import CARD_KEY, PartFormat, is_level_column
from tokenizer.errors import DatasetError
from tokenizer.spec import CodecSpec

_ROWS_PER_READ = 256


@dataclass(slots=True)
class RowFindings:
    """What reading all rows of a part showed."""

    faults: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)  # of the rows, each once and in order
    columns: tuple[str, ...] = ()
    audio_seconds: float = 0.0


def check_rows(part: pq.ParquetFile, info: DatasetInfo, extra: pa.Schema | None) -> RowFindings:
    """Read a part to its end.

    Args:
        part: that is open.
        info: of its dataset.
        extra: columns that travel from the source; None where nobody knows them.

    Raises:
        pa.ArrowException, OSError: a page is damaged.
    """
    findings = RowFindings(columns=tuple(part.schema_arrow.names))
    findings.faults.extend(_card_faults(part.schema_arrow, info))
    findings.faults.extend(_column_faults(part.schema_arrow, info, extra))
    if findings.faults:
        return findings
    levels = [name for name in findings.columns if is_level_column(name)]
    fixed = [
        "id",
        "input_id",
        "start_sample",
        "num_samples",
        "num_frames",
        "sample_rate",
        "hop_length",
        "codebook_size",
    ]
    segments = _Segments()
    for batch in part.iter_batches(_ROWS_PER_READ, columns=[*fixed, *levels]):
        nulls = [name for name in batch.schema.names if batch.column(name).null_count]
        if nulls:
            findings.faults.append(f"{nulls[0]} is missing in some rows")
            return findings
        findings.faults.extend(_constant_faults(batch, info))
        findings.faults.extend(_code_faults(batch, levels, info.codebook_size))
        findings.faults.extend(segments.faults(batch))
        findings.ids.extend(batch.column("id").to_pylist())
        findings.audio_seconds += pc.sum(batch.column("num_samples")).as_py() / info.sample_rate
    findings.inputs = segments.inputs
    findings.faults.extend(_repeated("id", findings.ids))
    findings.faults.extend(_repeated("input", findings.inputs))
    findings.faults = list(dict.fromkeys(findings.faults))
    return findings


def compare_inputs(planned: Sequence[str], done: Sequence[str], failed: Sequence[str]) -> list[str]:
    """How the inputs of a unit differ from those that it should have: each once, in its rows or in its errors."""
    seen, expected = {*done, *failed}, set(planned)
    groups = {
        "is neither in its rows nor in its errors": [name for name in planned if name not in seen],
        "is in its rows and in its errors": sorted(set(done) & set(failed)),
        "is there, but is not of this unit": sorted(seen - expected),
    }
    faults = [f"{_some(names)} {what}" for what, names in groups.items() if names]
    return [*faults, *_repeated("input", failed)]


def _card_faults(schema: pa.Schema, info: DatasetInfo) -> Iterator[str]:
    try:
        card = json.loads((schema.metadata or {})[CARD_KEY])
        ours = {name: card.get(name) for name in ("name", "sha256", "spec")}
    except (KeyError, ValueError, AttributeError):
        yield "it has no codec card in its metadata: another program has rewritten it"
        return
    theirs = {name: info.codec.get(name) for name in ours}
    if ours != theirs:
        yield (
            f"it was made with codec {ours['name']!r}, sha256 {str(ours['sha256'])[:12]}, "
            f"the dataset with {theirs['name']!r}, sha256 {str(theirs['sha256'])[:12]}"
        )


def _column_faults(schema: pa.Schema, info: DatasetInfo, extra: pa.Schema | None) -> Iterator[str]:
    try:
        spec = CodecSpec.from_dict(info.codec["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"dataset.json: the codec is not one that this version knows: {error}") from error
    form = PartFormat(
        spec=spec,
        num_codebooks=info.num_codebooks,
        card=info.codec,
        compressed=info.lm is not None,
        quality=info.quality,
    )
    expected = form.schema(extra)
    lacking = [name for name in expected.names if name not in schema.names]
    if lacking:
        yield f"it lacks {', '.join(lacking)}"
    for column in expected:
        found = column.type if column.name in lacking else schema.field(column.name).type
        if found != column.type:
            yield f"column {column.name} is {found}, not {column.type}"
    foreign = [name for name in schema.names if name not in expected.names]
    if extra is not None and foreign:
        yield f"columns {', '.join(foreign)} are not of this dataset"


def _constant_faults(batch: pa.RecordBatch, info: DatasetInfo) -> Iterator[str]:
    for name in ("sample_rate", "hop_length", "codebook_size"):
        expected = getattr(info, name)
        if not pc.all(pc.equal(batch.column(name), expected), min_count=0).as_py():
            yield f"{name} is not {expected} in every row"


def _code_faults(batch: pa.RecordBatch, levels: Sequence[str], codebook_size: int) -> Iterator[str]:
    frames = batch.column("num_frames").to_numpy()
    ragged, holed, beyond = [], [], []
    for name in levels:
        column: Any = batch.column(name)  # a list array: Arrow's stubs know arrays only
        codes = column.flatten()
        if not np.array_equal(pc.list_value_length(column).to_numpy(zero_copy_only=False), frames):
            ragged.append(name)
        elif codes.null_count:
            holed.append(name)
        elif len(codes) and pc.max(codes).as_py() >= codebook_size:
            beyond.append(name)
    if ragged:
        yield f"{_joined(ragged)} not as long as num_frames says in every row"
    if holed:
        yield f"{_joined(holed)} without some codes"
    if beyond:
        yield f"{_joined(beyond)} beyond the codebook, with codes of {codebook_size} or more"


class _Segments:
    """Follows rows: the segments of an input stand one after another, without a gap between them."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self._count, self._next_sample = 0, 0

    def faults(self, batch: pa.RecordBatch) -> Iterator[str]:
        """What is wrong with the next rows."""
        columns = [batch.column(name).to_pylist() for name in ("id", "input_id", "start_sample", "num_samples")]
        for name, source, start, samples in zip(*columns, strict=True):
            if not self.inputs or self.inputs[-1] != source:
                self.inputs.append(source)
                self._count = self._next_sample = 0
            if (name != source or self._count) and name != f"{source}#{self._count:04d}":
                yield f"row {name!r} is not the next segment of {source!r}: one is missing, or there twice"
            elif start != self._next_sample:
                yield f"row {name!r} begins at sample {start} of its input, where {self._next_sample} was expected"
            self._count += 1
            self._next_sample = start + samples


def _repeated(kind: str, names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return []
    twice = [name for name, count in Counter(names).items() if count > 1]
    return [f"{kind} {_some(twice)} is there more than once"]


def _joined(columns: Sequence[str]) -> str:
    return f"{', '.join(columns)} {'are' if len(columns) > 1 else 'is'}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
