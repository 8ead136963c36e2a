"""How a unit is committed: its errors, the record of what it holds, and last its part, which says that it is done."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.corpus.encoder import EncodedBundle
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.datasets.commit_record import record_name, record_of
from pipelines.datasets.parts import (
    ErrorRow,
    PartFormat,
    PartSize,
    TokenRow,
    encode_errors,
    encode_part,
    measure_part,
    part_name,
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where units are committed, and what their parts have in common."""

    dataset: str
    form: PartFormat
    lm: Any = None  # Ray's reference to the CarriedLM that compresses the codes; None: they are not


@dataclass(frozen=True, slots=True)
class UnitInputs:
    """The listed inputs of a unit."""

    number: int  # of the unit in the plan
    ids: Sequence[str]  # in listing order, which is the order of the rows
    uris: Sequence[str]
    extra: pa.Table  # their columns that travel


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitResult:
    """What a committed unit adds to the totals."""

    num_ok: int  # inputs
    errors: Counter[str]  # inputs, by class
    num_rows: int
    audio_seconds: float
    size: PartSize
    padded_seconds: float  # of audio that went through the codec, silence at batch ends included
    stages: StageSeconds  # of all its workers


def commit_unit(unit: UnitInputs, target: Target, *bundles: EncodedBundle) -> UnitResult:
    """Write a unit, each file in one atomic step.

    The part comes last because its presence says that the unit is done: killed before, the unit is done again and
    writes the same errors over. A part is written even if no row worked. An input of which a segment failed is an error
    as a whole. Where another job on this dataset was faster, its part stays.

    Args:
        unit: what it is made of.
        target: the dataset.
        bundles: all rows of the unit, in any order.
    """
    stages = StageSeconds()
    with stages.timed("writing"):
        tokens, errors = _by_input(unit, bundles)
        content = encode_part(tokens, target.form, _extra(unit, tokens))
        _write(unit, target, content, tokens, errors)
    return UnitResult(
        num_ok=len(unit.ids) - len(errors),
        errors=Counter(row.error for row in errors),
        num_rows=len(tokens),
        audio_seconds=_audio_seconds(tokens, target),
        size=measure_part(content, tokens),
        padded_seconds=sum(bundle.padded_seconds for bundle in bundles),
        stages=stages,
    )


def _extra(unit: UnitInputs, tokens: Sequence[TokenRow]) -> pa.Table | None:
    """The travelling columns, aligned with the rows."""
    if unit.extra.num_columns == 0:
        return None
    places = {name: place for place, name in enumerate(unit.ids)}
    return unit.extra.take([places[row.input_id] for row in tokens])


def _by_input(unit: UnitInputs, bundles: Sequence[EncodedBundle]) -> tuple[list[TokenRow], list[ErrorRow]]:
    """Rows in listing order, segments in theirs; of inputs with an error, only the first one."""
    rows: dict[str, list[TokenRow]] = {name: [] for name in unit.ids}
    errors: dict[str, ErrorRow] = {}
    for bundle in bundles:
        for row in bundle.rows:
            if isinstance(row, ErrorRow):
                errors.setdefault(row.id, row)
            else:
                rows[row.input_id].append(row)
    ordered = [sorted(rows[name], key=lambda row: row.start_sample) for name in unit.ids if name not in errors]
    return [row for own in ordered for row in own], [errors[name] for name in unit.ids if name in errors]


def _write(
    unit: UnitInputs, target: Target, content: bytes, tokens: Sequence[TokenRow], errors: Sequence[ErrorRow]
) -> None:
    part_uri = storage.join(target.dataset, "parts", part_name(unit.number))
    if storage.find_file(part_uri) is not None:
        return  # another job on this dataset was faster
    record_uri = _describe(unit, target, content, len(tokens), errors, _audio_seconds(tokens, target))
    if not storage.create(part_uri, content):
        storage.remove(record_uri)
        errors = _stand_back(unit, target, storage.read_bytes(part_uri), errors)
    if not errors:
        # Of an attempt that was killed, or of a slower job. Not before there is a part: its inputs would be nowhere.
        storage.remove(_errors_uri(unit, target))


def _describe(
    unit: UnitInputs, target: Target, content: bytes, num_rows: int, errors: Sequence[ErrorRow], audio_seconds: float
) -> str:
    """Write the errors and the record that belong to a part; returns the URI of the record."""
    failures = encode_errors(errors) if errors else None
    if failures is not None:
        storage.commit(_errors_uri(unit, target), failures)
    record = record_of(content, num_rows, failures, len(errors), audio_seconds)
    record_uri = storage.join(target.dataset, "records", record_name(unit.number, record.part.sha256))
    storage.commit(record_uri, record.to_json().encode())
    return record_uri


def _errors_uri(unit: UnitInputs, target: Target) -> str:
    return storage.join(target.dataset, "errors", part_name(unit.number))


def _stand_back(unit: UnitInputs, target: Target, content: bytes, errors: Sequence[ErrorRow]) -> list[ErrorRow]:
    """Another job's part was first, and our errors may lie over its: write those that its part leaves open."""
    table = pq.read_table(io.BytesIO(content), columns=["input_id", "duration_s"], page_checksum_verification=True)
    there, own = set(table.column("input_id").to_pylist()), {row.id: row for row in errors}
    unknown = "it failed in another job that was at work on this dataset at the same time"
    left = [
        own.get(name, ErrorRow(name, uri, "unknown", unknown))
        for name, uri in zip(unit.ids, unit.uris, strict=True)
        if name not in there
    ]
    audio_seconds = sum(table.column("duration_s").to_pylist())
    _describe(unit, target, content, table.num_rows, left, audio_seconds)
    return left


def _audio_seconds(tokens: Sequence[TokenRow], target: Target) -> float:
    return sum(row.num_samples for row in tokens) / target.form.spec.sample_rate
