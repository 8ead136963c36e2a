"""Whether one unit of a dataset is what was committed: its part, its errors, its records."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.datasets.commit_record import DIRECTORY, CommitRecord, read_record
from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.datasets.parts import part_name
from pipelines.datasets.verify_rows import check_rows, compare_inputs
from tokenizer.errors import DatasetError

_BLOCK = 2**20  # bytes
REDO = "delete it and run the same `quantone tokenize` again"
_READING = (pa.ArrowException, OSError, ValueError, OverflowError)  # what a damaged Parquet file makes Arrow raise


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a dataset."""

    where: str  # file, below the dataset
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is known of a unit before its files are read."""

    number: int
    has_part: bool
    has_errors: bool
    records: Sequence[str]  # file names
    planned: pa.ChunkedArray | None  # ids of its inputs; None where the plan cannot be trusted

    @property
    def foreign(self) -> bool:
        """Whether the plan has no such unit."""
        return self.planned is not None and not len(self.planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What units are compared with."""

    root: str  # of the dataset
    info: DatasetInfo | None  # None: dataset.json is damaged, so that rows cannot be judged
    extra: pa.Schema | None  # columns of the source; None: unknown
    owners: dict[str, int]  # unit by the beginning of its part's hash, of all records; none in a dataset without


@dataclass(slots=True)
class UnitFindings:
    """What checking a unit showed."""

    problems: list[Problem] = field(default_factory=list)
    finished: bool = False
    num_rows: int = 0
    num_errors: int = 0
    num_bytes: int = 0
    audio_seconds: float = 0.0
    columns: tuple[str, ...] | None = None
    row_hashes: pl.Series | None = None  # of ids, so that repetition across parts costs 8 bytes a row to find
    input_hashes: pl.Series | None = None


def check_unit(unit: Unit, around: Surroundings) -> UnitFindings:
    """Read all files of a unit, in blocks, and compare them with its records, its plan and the codec."""
    findings = UnitFindings(finished=unit.has_part and not unit.foreign)
    if unit.foreign:
        findings.problems.extend(_foreign_files(unit))
        return findings
    if not unit.has_part:
        if unit.records:
            what = "it is recorded, but not there: it was lost, or its commit was interrupted"
            findings.problems.append(Problem(_part(unit), what, "run the same `quantone tokenize` again"))
        return findings
    records = list(_read_records(unit, around, findings))
    uri = storage.join(around.root, _part(unit))
    try:
        found = storage.find_file(uri)
        with storage.open_input(uri, None if found is None else found.size) as stream:  # once: from S3 it is sent once
            sha256, findings.num_bytes = _hash(stream)
            intact, record = _check_bytes(unit, around, records, sha256, findings)
            if intact:
                failed = _check_errors(unit, around, record, findings)
                stream.seek(0)
                _check_content(unit, around, stream, failed, findings)
    except OSError as error:
        findings.problems.append(Problem(_part(unit), f"it cannot be read: {error}", f"make it readable, or {REDO}"))
    return findings


def _foreign_files(unit: Unit) -> Iterator[Problem]:
    own = {_part(unit): unit.has_part, f"errors/{part_name(unit.number)}": unit.has_errors}
    names = [name for name, there in own.items() if there] + [f"{DIRECTORY}/{name}" for name in unit.records]
    for name in names:
        yield Problem(name, f"the plan has no unit {unit.number}: it is of another dataset", "move it elsewhere")


def _read_records(unit: Unit, around: Surroundings, findings: UnitFindings) -> Iterator[CommitRecord]:
    for name in unit.records:
        try:
            yield read_record(storage.join(around.root, DIRECTORY, name))
        except DatasetError as error:
            what = str(error).removeprefix(f"{storage.join(around.root, DIRECTORY, name)}: ")
            remedy = f"delete it and {_part(unit)}, and run the same `quantone tokenize` again"
            findings.problems.append(Problem(f"{DIRECTORY}/{name}", what, remedy))


def _check_bytes(
    unit: Unit, around: Surroundings, records: Sequence[CommitRecord], sha256: str, findings: UnitFindings
) -> tuple[bool, CommitRecord | None]:
    """Whether the part is what was written, as far as can be told, and the record of it."""
    record = next((record for record in records if record.part.sha256 == sha256), None)
    if record is not None:
        return True, record
    if not around.owners:  # a dataset without records: that is said once, for all parts
        return True, None
    owner = around.owners.get(sha256[:16])
    if owner is not None and owner != unit.number:
        what = f"it is the part of unit {owner}, not of unit {unit.number}"
    elif not unit.records:
        what = "it has no commit record: it is not of this job, or the record is lost"
    elif not records:
        return False, None  # the damaged record has been told already
    else:
        sizes = " or ".join(f"{record.part.num_bytes:,}" for record in records)
        what = f"it is damaged: {findings.num_bytes:,} bytes (written: {sizes}) with another sha256 than was recorded"
    findings.problems.append(Problem(_part(unit), what, REDO))
    return False, None


def _check_errors(
    unit: Unit, around: Surroundings, record: CommitRecord | None, findings: UnitFindings
) -> list[str] | None:
    """The ids of the unit's errors; None where they cannot be trusted."""
    name = f"errors/{part_name(unit.number)}"
    expected = None if record is None else record.errors
    redo = f"delete it and {_part(unit)}, and run the same `quantone tokenize` again"
    try:
        content = storage.read_bytes(storage.join(around.root, name)) if unit.has_errors else None
        findings.num_bytes += len(content or b"")
        if record is not None and expected is None and content is not None:
            findings.problems.append(Problem(name, "the unit committed no errors: it is of another attempt", redo))
        elif expected is not None and content is None:
            remedy = f"delete {_part(unit)} and run the same `quantone tokenize` again"
            findings.problems.append(Problem(name, f"it is lost, with {expected.num_rows} errors", remedy))
        elif expected is not None and content is not None and _sha256(content) != expected.sha256:
            findings.problems.append(Problem(name, "it is damaged: another sha256 than was recorded", redo))
        else:
            ids: list[str] = [] if content is None else _error_ids(content)
            findings.num_errors = len(ids)
            return ids
    except _READING as error:
        findings.problems.append(Problem(name, f"it is damaged, or cannot be read: {error}", redo))
    return None


def _check_content(
    unit: Unit, around: Surroundings, stream: BinaryIO, failed: list[str] | None, findings: UnitFindings
) -> None:
    if around.info is None:
        return
    try:
        rows = check_rows(pq.ParquetFile(stream, page_checksum_verification=True), around.info, around.extra)
    except (*_READING, DatasetError) as error:
        findings.problems.append(Problem(_part(unit), f"it is damaged, or not a part: {error}", REDO))
        return
    faults = rows.faults
    if unit.planned is not None and failed is not None and not faults:
        faults = compare_inputs(unit.planned.to_pylist(), rows.inputs, failed)
    findings.problems.extend(Problem(_part(unit), fault, REDO) for fault in faults)
    findings.num_rows, findings.audio_seconds = len(rows.ids), rows.audio_seconds
    if not faults:  # else what follows from them would be told as well
        findings.columns = rows.columns
        findings.row_hashes = pl.Series(rows.ids, dtype=pl.String).hash()
        findings.input_hashes = pl.Series([*rows.inputs, *(failed or [])], dtype=pl.String).hash()


def _error_ids(content: bytes) -> list[str]:
    table = pq.read_table(io.BytesIO(content), columns=["id"], page_checksum_verification=True)
    ids: list[str] = table.column("id").to_pylist()
    return ids


def _hash(stream: BinaryIO) -> tuple[str, int]:
    """The sha256 of a file and its size, with one block of it in memory."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _part(unit: Unit) -> str:
    return f"parts/{part_name(unit.number)}"
