"""Whether a token dataset is whole: every file against its commit record, every input against the plan."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines import storage
from pipelines.datasets.commit_record import DIRECTORY, list_records, parse_record_name
from pipelines.datasets.dataset_info import FILE_NAME, DatasetInfo, read_dataset_info
from pipelines.datasets.parts import part_name
from pipelines.datasets.plan import Plan
from pipelines.datasets.read_ahead import ReadAhead
from pipelines.datasets.verify_unit import Problem, Surroundings, Unit, UnitFindings, check_unit
from pipelines.progress import Progress
from tokenizer.errors import DatasetError

_MOST_THREADS = 8
_PLAN = "plan.parquet"
_RESUME = "run the same `quantone tokenize` again"
_PART = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify_dataset` found."""

    problems: tuple[Problem, ...]
    num_units: int  # of the plan; of the parts that are there, where the plan cannot be read
    num_parts: int
    num_rows: int  # of the parts that are as they should be, like the audio
    num_errors: int
    audio_seconds: float
    num_bytes: int
    wall_seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return json.dumps({"ok": self.ok, **asdict(self)})

    def summary(self) -> str:
        """One line for people."""
        parts = f"{self.num_parts} of {self.num_units} parts, {self.num_rows:,} rows, {self.num_errors:,} errors"
        size = f"{self.num_bytes / 1e6:,.1f} MB, {self.num_bytes / 1e6 / max(self.wall_seconds, 1e-6):,.0f} MB/s"
        count = len(self.problems)
        verdict = "nothing is wrong" if self.ok else f"{count} problem{'s' if count > 1 else ''}"
        return f"{parts}, {self.audio_seconds / 3600:.2f} h of audio, {size}: {verdict}"


def verify_dataset(dataset: str | Path, *, num_threads: int | None = None, progress: bool = False) -> Verification:
    """Read a whole dataset, in threads, and find what is damaged, missing, foreign or there twice.

    Memory holds a part a thread, the ids of the plan, and 16 bytes a row.

    Args:
        dataset: directory or s3:// URI.
        num_threads: that read and hash; default: as the machine has.
        progress: show how far it is, on stderr.

    Raises:
        DatasetError: there is no dataset. One that is damaged is not an error but a result.
    """
    started = time.perf_counter()
    root = storage.absolute(dataset)
    layout = _Layout(root)
    if FILE_NAME not in layout.root_names and not layout.parts:
        raise DatasetError(f"{dataset}: not a token dataset, there is no {FILE_NAME} in it")
    problems = list(layout.foreign())
    info = _read_info(root, problems)
    plan = _read_plan(root, info, problems)
    if layout.parts and not layout.records:
        remedy = "its parts are checked by their page checksums, which miss damage outside of pages"
        problems.append(Problem(f"{DIRECTORY}/", "there are no commit records, as in datasets of version 0.1", remedy))
    units = list(layout.units(plan))
    around = Surroundings(root=root, info=info, extra=None if plan is None else plan.extra_schema, owners=layout.owners)
    findings = _check_units(units, around, num_threads, progress)
    for found in findings:
        problems.extend(found.problems)
    problems.extend(_across_units(units, findings, plan))
    return Verification(
        problems=tuple(problems),
        num_units=len(units),
        num_parts=sum(found.finished for found in findings),
        num_rows=sum(found.num_rows for found in findings),
        num_errors=sum(found.num_errors for found in findings),
        audio_seconds=sum(found.audio_seconds for found in findings),
        num_bytes=sum(found.num_bytes for found in findings),
        wall_seconds=time.perf_counter() - started,
    )


class _Layout:
    """Which files a dataset has."""

    def __init__(self, root: str) -> None:
        self.root_names = storage.list_names(root)
        self._names = {kind: storage.list_names(storage.join(root, kind)) for kind in ("parts", "errors", DIRECTORY)}
        self.parts = {unit for name in self._names["parts"] if (unit := _unit_of(name)) is not None}
        self._errors = {unit for name in self._names["errors"] if (unit := _unit_of(name)) is not None}
        self.records = list_records(root)
        self.owners = {short: unit for unit, own in self.records.items() for _, short in own}

    def units(self, plan: Plan | None) -> Iterator[Unit]:
        """All units of the plan, or where there is none those that anything is there of."""
        if plan is None:
            for number in sorted(self.parts | self._errors | set(self.records)):
                yield self._unit(number, None)
            return
        ids, start = plan.listing.column("id"), 0
        for number, size in enumerate(plan.unit_sizes()):
            yield self._unit(number, ids.slice(start, size))
            start += size
        for number in sorted((self.parts | self._errors | set(self.records)) - set(range(plan.num_units))):
            yield self._unit(number, pa.chunked_array([], pa.string()))

    def foreign(self) -> Iterator[Problem]:
        """Files that no job of ours leaves, or only a killed one."""
        places = {"": [name for name in self.root_names if name.startswith(storage.TEMPORARY)]}
        for kind in ("parts", "errors"):
            places[f"{kind}/"] = [name for name in self._names[kind] if _unit_of(name) is None]
        places[f"{DIRECTORY}/"] = [name for name in self._names[DIRECTORY] if parse_record_name(name) is None]
        for place, names in places.items():
            for name in names:
                if name.startswith(storage.TEMPORARY):
                    what = "a killed writer left it, or one is at work"
                    yield Problem(f"{place}{name}", what, f"{_RESUME}, or delete it once no job runs")
                else:
                    yield Problem(f"{place}{name}", "it is no file of this dataset", "move it elsewhere")

    def _unit(self, number: int, planned: pa.ChunkedArray | None) -> Unit:
        return Unit(
            number=number,
            has_part=number in self.parts,
            has_errors=number in self._errors,
            records=[name for name, _ in self.records.get(number, [])],
            planned=planned,
        )


def _unit_of(name: str) -> int | None:
    match = _PART.fullmatch(name)
    return int(match[1]) if match is not None and part_name(int(match[1])) == name else None


def _read_info(root: str, problems: list[Problem]) -> DatasetInfo | None:
    try:
        return read_dataset_info(root)
    except DatasetError as error:
        what = str(error).removeprefix(f"{root}: ").removeprefix(f"{FILE_NAME} ")
        remedy = "restore it; the codec card in the metadata of every part says what was in it"
        problems.append(Problem(FILE_NAME, what, remedy))
        return None


def _read_plan(root: str, info: DatasetInfo | None, problems: list[Problem]) -> Plan | None:
    remedy = "restore it: without it nobody can tell whether inputs are missing, and the job cannot go on"
    try:
        plan = Plan.from_parquet(storage.read_bytes(storage.join(root, _PLAN)))
    except FileNotFoundError:
        problems.append(Problem(_PLAN, "it is missing", remedy))
    except OSError as error:
        problems.append(Problem(_PLAN, f"it cannot be read: {error}", remedy))
    except (DatasetError, pa.ArrowException, ValueError) as error:
        problems.append(Problem(_PLAN, str(error).removeprefix(f"{_PLAN} "), remedy))
    else:
        if info is None or plan.sha256 == info.plan_sha256:
            return plan
        problems.append(Problem(_PLAN, f"it is damaged, or not the plan that {FILE_NAME} names", remedy))
    return None


def _check_units(
    units: Sequence[Unit], around: Surroundings, num_threads: int | None, progress: bool
) -> list[UnitFindings]:
    ahead = ReadAhead(num_threads or min(_MOST_THREADS, os.cpu_count() or 1))
    findings = []
    try:
        with Progress("verifying", total_files=len(units), shown=progress) as shown:
            for found in ahead.map(lambda unit: check_unit(unit, around), units):
                shown.advance(files=1, seconds=found.audio_seconds, errors=len(found.problems))
                findings.append(found)
    finally:
        ahead.stop()
    return findings


def _across_units(units: Sequence[Unit], findings: Sequence[UnitFindings], plan: Plan | None) -> Iterator[Problem]:
    """What only shows when units are put side by side."""
    missing = [unit for unit in units if not unit.has_part and not unit.records and not unit.foreign]
    if missing:
        names = ", ".join(part_name(unit.number) for unit in missing[:3]) + (", ..." if len(missing) > 3 else "")
        of_all = f"{len(missing)} of {len(units)}" if plan is not None else f"{len(missing)}"
        yield Problem("parts/", f"{of_all} units are not finished ({names})", f"{_RESUME}: it goes on with them")
    columns = Counter(found.columns for found in findings if found.columns is not None)
    if len(columns) > 1:
        usual = columns.most_common(1)[0][0]
        for unit, found in zip(units, findings, strict=True):
            if found.columns is not None and found.columns != usual:
                what = f"it has {len(found.columns)} columns or another order, where most parts have {len(usual)}"
                yield Problem(f"parts/{part_name(unit.number)}", what, f"delete it and {_RESUME}")
    for kind in ("row", "input"):
        shared = _shared(units, [getattr(found, f"{kind}_hashes") for found in findings])
        if shared:
            what = f"{kind}s of the same id are in {', '.join(shared)}"
            yield Problem("parts/", what, f"delete those that do not belong to this dataset and {_RESUME}")


def _shared(units: Sequence[Unit], hashes: Sequence[pl.Series | None]) -> list[str]:
    """Names of the parts that have an id in common with another one."""
    known = [own for own in hashes if own is not None]
    if not known:
        return []
    joined = pl.concat(known)
    twice = joined.filter(joined.is_duplicated())
    if twice.is_empty():
        return []
    return [
        part_name(unit.number)
        for unit, own in zip(units, hashes, strict=True)
        if own is not None and own.is_in(twice.implode()).any()
    ]
