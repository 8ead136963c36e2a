"""Which rows a run of all benchmarks has, and what measures each: nothing is loaded before its turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from pipelines.benchmarking.bench_peers import CodecCell, bench_cell, codec_cells
from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.suite_settings import SuiteSettings


@dataclass(slots=True)
class BenchRun:
    """What all rows of one run share."""

    settings: SuiteSettings
    missing: list[str] = field(default_factory=list)

    def say_missing(self, message: str) -> None:
        """Somebody cannot take part."""
        if message not in self.missing:
            self.missing.append(message)


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """Rows that are measured together."""

    key: str
    measure: Callable[[BenchRun], Sequence[Row]]


def planned_rows(settings: SuiteSettings) -> list[PlannedRows]:
    """All of them, in the order in which they are measured."""
    from pipelines.benchmarking.bench_other_rows import generation_rows, lm_rows, pipeline_rows, serve_rows

    return [
        *(PlannedRows(cell.key, partial(_codec_rows, cell)) for cell in codec_cells(settings.codec)),
        *(PlannedRows(f"lm/{kbps:g}kbps", partial(lm_rows, kbps)) for kbps in settings.lm_kbps),
        PlannedRows("generate", generation_rows),
        PlannedRows("scan", _scan_rows),
        PlannedRows("pipeline", pipeline_rows),
        PlannedRows("serve", serve_rows),
    ]


def chosen_rows(planned: Sequence[PlannedRows], only: Sequence[str]) -> list[PlannedRows]:
    """Those whose key is one of `only`, begins with one of them before a slash, or fits one as a shell pattern.

    Raises:
        ValueError: a pattern that fits nothing.
    """
    if not only:
        return list(planned)
    for pattern in only:
        if not any(_fits(rows.key, pattern) for rows in planned):
            keys = ", ".join(dict.fromkeys(rows.key for rows in planned))
            raise ValueError(f"no row {pattern!r}: there are {keys}")
    return [rows for rows in planned if any(_fits(rows.key, pattern) for pattern in only)]


def _fits(key: str, pattern: str) -> bool:
    return key == pattern or key.startswith(f"{pattern.rstrip('/')}/") or fnmatchcase(key, pattern)


def _codec_rows(cell: CodecCell, run: BenchRun) -> Sequence[Row]:
    settings = run.settings
    return bench_cell(cell, seconds=settings.codec_seconds, turns=settings.turns, missing=run.say_missing)


def _scan_rows(run: BenchRun) -> Sequence[Row]:
    from pipelines.benchmarking.bench_scan import bench_scan
    from pipelines.benchmarking.scan_dataset import write_scan_dataset

    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "tokens")
        write_scan_dataset(dataset, run.settings.scan_codes, run.settings.codec)
        return bench_scan(dataset, turns=run.settings.turns, missing=run.say_missing)
