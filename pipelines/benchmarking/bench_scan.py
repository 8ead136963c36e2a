"""Scans of a token dataset: Polars through `open_dataset` and `.codes`, beside DuckDB and PyArrow on the same files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from pipelines.benchmarking.bench_contest import Contender, Contest, Turns, hold
from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.peer_codecs import import_peer
from pipelines.datasets.dataset import list_parts, open_dataset
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.parts import level_column
from pipelines.polars_namespace import LazyCodes
from tokenizer import DatasetError

Answer = np.ndarray[Any, Any]
OURS, BASELINE = "quantone, every byte checked", "PyArrow"
_VIEW_SHARE = 4  # the view has a quarter of the levels: 3 of 12 kbps


@dataclass(frozen=True, slots=True)
class ScanTarget:
    """The dataset as each engine needs it."""

    root: Path
    files: tuple[str, ...]
    levels: int
    codebook_size: int

    def codes(self, levels: int) -> int:
        """Codes of so many levels."""
        rows = sum(pq.read_metadata(file).num_rows for file in self.files)
        first = pq.read_table(self.files[0], columns=["num_frames"])["num_frames"]
        if len(set(first.to_pylist())) != 1:
            raise DatasetError(f"{self.root}: a scan is measured on rows of one length")
        return int(rows * first[0].as_py() * levels)


def scan_target(root: Path) -> ScanTarget:
    """Open a dataset of rows that all have the same length, as `write_scan_dataset` makes it."""
    info = read_dataset_info(root)
    files = tuple(str(root / "parts" / name) for name in list_parts(root))
    return ScanTarget(root, files, info.num_codebooks, info.codebook_size)


def bench_scan(root: Path, *, turns: Turns, missing: Callable[[str], None]) -> list[Row]:
    """Two scans: how often each code occurs at each level, and a view of few levels as arrays.

    All engines must give the same answer before they are timed.

    Args:
        root: of a dataset from `write_scan_dataset`.
        turns: rounds.
        missing: is told where DuckDB could not take part.

    Raises:
        DatasetError: engines do not agree.
    """
    target = scan_target(root)
    view = max(1, target.levels // _VIEW_SHARE)
    scans: dict[str, tuple[int, dict[str, Callable[[], Answer]]]] = {
        f"histograms of {target.levels} levels": (target.levels, _histograms(target, missing)),
        f"{view} of {target.levels} levels to arrays": (view, _views(target, view, missing)),
    }
    rows = []
    for work, (levels, engines) in scans.items():
        _require_agreement(work, engines)
        codes = target.codes(levels) / 1e6
        contenders = [Contender(name, partial(_timed, answer, codes)) for name, answer in engines.items()]
        contest = Contest(key="scan", work=work, unit="million codes/s", contenders=contenders, baseline=BASELINE)
        rows.append(hold(contest, turns))
    return rows


def _timed(answer: Callable[[], Answer], work: float) -> float:
    answer()
    return work


def _require_agreement(work: str, engines: Mapping[str, Callable[[], Answer]]) -> None:
    answers = {name: answer() for name, answer in engines.items()}
    for name, answer in answers.items():
        if not np.array_equal(answer, answers[BASELINE]):
            raise DatasetError(f"{work}: {name} and {BASELINE} give different answers")


def _histograms(target: ScanTarget, missing: Callable[[str], None]) -> dict[str, Callable[[], Answer]]:
    """[K, V] counts."""

    def ours(verify: bool) -> Answer:
        codes = LazyCodes(open_dataset(target.root, verify=verify))  # what `.codes` is
        return np.stack([codes.histogram(level)["count"].to_numpy() for level in range(target.levels)])

    def arrow() -> Answer:
        scanned = pyarrow.dataset.dataset(list(target.files))
        counts = np.zeros((target.levels, target.codebook_size), np.uint64)
        for level in range(target.levels):
            column = scanned.to_table(columns=[level_column(level)]).column(0)
            found = pc.value_counts(pc.list_flatten(column))
            counts[level, found.field("values").to_numpy()] = found.field("counts").to_numpy()
        return counts

    def duck(connection: Any) -> Answer:
        counts = np.zeros((target.levels, target.codebook_size), np.uint64)
        for level in range(target.levels):
            codes = f"SELECT unnest({level_column(level)}) AS code FROM read_parquet(?)"  # noqa: S608 - our own names
            found = connection.execute(
                f"SELECT code, count(*) AS n FROM ({codes}) GROUP BY code",  # noqa: S608
                [list(target.files)],
            ).fetchnumpy()
            counts[level, found["code"]] = found["n"]
        return counts

    return _engines(ours, arrow, duck, missing)


def _views(target: ScanTarget, levels: int, missing: Callable[[str], None]) -> dict[str, Callable[[], Answer]]:
    """[N, k, T] codes."""
    names = [level_column(level) for level in range(levels)]

    def ours(verify: bool) -> Answer:
        codes = LazyCodes(open_dataset(target.root, verify=verify))
        kbps = codes.bitrate_kbps() * levels / target.levels
        return np.stack(list(LazyCodes(codes.at_bandwidth(kbps)).to_numpy()))

    def arrow() -> Answer:
        return _stacked(pyarrow.dataset.dataset(list(target.files)).to_table(columns=names))

    def duck(connection: Any) -> Answer:
        query = f"SELECT {', '.join(names)} FROM read_parquet(?)"  # noqa: S608 - our own names
        return _stacked(connection.sql(query, params=[list(target.files)]).to_arrow_table())

    return _engines(ours, arrow, duck, missing)


def _stacked(table: pa.Table) -> Answer:
    """Columns of lists, all of one length, as [N, k, T]."""
    flat = [pc.list_flatten(column).to_numpy().reshape(table.num_rows, -1) for column in table.columns]
    return np.stack(flat, axis=1)


def _engines(
    ours: Callable[[bool], Answer],
    arrow: Callable[[], Answer],
    duck: Callable[[Any], Answer],
    missing: Callable[[str], None],
) -> dict[str, Callable[[], Answer]]:
    engines: dict[str, Callable[[], Answer]] = {
        OURS: partial(ours, True),
        "quantone, verify=False": partial(ours, False),
        BASELINE: arrow,
    }
    try:
        engines["DuckDB"] = partial(duck, import_peer("duckdb", "duckdb").connect())
    except ImportError as error:
        missing(str(error))
    return engines
