"""What the rows of a dataset say beside their codes: gathered for a report in one pass, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.datasets.audio_facts import SILENCE_DBFS
from pipelines.reporting.report_examples import CHOICE_COLUMNS, ExampleChoice
from pipelines.reporting.report_facts import Corpus, Histogram
from pipelines.reporting.report_groups import HoursBy, SoundHashes, is_groupable

ROWS_AT_ONCE = 20_000
NUM_WORST = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over all rows gave."""

    corpus: Corpus
    spread: pl.DataFrame  # rows from everywhere in the dataset, as many as were asked for
    worst: dict[str, pl.DataFrame]  # by column: whole rows, the worst first


def scan_rows(rows: pl.LazyFrame, num_rows: int, num_examples: int) -> Scan:
    """Read all rows but not their codes, and gather facts, the worst rows and rows to be shown.

    Memory does not grow with the dataset: histograms, the ten worst, and bounded tables of groups and hashes.

    Args:
        rows: of a dataset, in order.
        num_rows: how many there are.
        num_examples: rows to choose.
    """
    schema = rows.collect_schema()
    gathering = _Gathering(schema, ExampleChoice(num_examples, num_rows))
    columns = [name for name, kind in schema.items() if not isinstance(kind, pl.List) and kind != pl.Binary]
    wanted = [name for name in columns if name in gathering.columns]
    for batch in rows.select(wanted).collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True, lazy=True):
        gathering.add(batch)
    return gathering.finish(rows)


class _Spread:
    """Counts of a number in fixed bins."""

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._counts = np.zeros(len(edges) - 1, np.int64)

    def add(self, values: pl.Series) -> None:
        known = values.cast(pl.Float64).drop_nulls().to_numpy()
        bins = np.searchsorted(self._edges, known[np.isfinite(known)], side="right") - 1
        self._counts += np.bincount(np.clip(bins, 0, len(self._counts) - 1), minlength=len(self._counts))

    def histogram(self) -> Histogram:
        return Histogram(self._edges, self._counts)


@dataclass(slots=True)
class _Worst:
    """The rows at one end of a column."""

    column: str
    descending: bool
    rows: pl.DataFrame | None = None

    def add(self, batch: pl.DataFrame, columns: list[str]) -> None:
        found = batch.filter(pl.col(self.column).is_finite()).select(columns)
        if self.column == "clipping_share":
            found = found.filter(pl.col(self.column) > 0)
        both = found if self.rows is None else pl.concat([self.rows, found])
        ordered = both.sort(self.column, descending=self.descending, maintain_order=True)
        if "content_hash" in columns:  # copies of one sound are listed once
            ordered = ordered.unique("content_hash", keep="first", maintain_order=True)
        self.rows = ordered.head(NUM_WORST)


_DECIBELS = np.arange(-120.0, 13.0)
_BINS: dict[str, Floats] = {
    "duration_s": 10 ** (np.arange(-120, 201) / 40),  # 1 ms to 28 hours, 6 % each
    "rms_dbfs": _DECIBELS,
    "peak_dbfs": _DECIBELS,
    "speech_share": np.arange(21) / 20,
    "si_snr_db": np.arange(-100.0, 101.0),
    "mel_distance": np.arange(301) / 100,
}
_DESCENDING = {"clipping_share": True, "si_snr_db": False, "mel_distance": True}  # where the worst are


@dataclass(slots=True)
class _Gathering:
    """Everything that looks at the rows as they pass."""

    schema: pl.Schema
    choice: ExampleChoice
    columns: list[str] = field(init=False)
    num_silent: int = 0
    _spreads: dict[str, _Spread] = field(init=False)
    _worst: list[_Worst] = field(init=False)
    _hours: list[HoursBy] = field(init=False)
    _hashes: SoundHashes | None = field(init=False)
    _counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        there = set(self.schema.names())
        spread = [name for name in _BINS if name in there or name == "peak_dbfs"]
        self._spreads = {name: _Spread(_BINS[name]) for name in spread}
        self._worst = [_Worst(name, down) for name, down in _DESCENDING.items() if name in there]
        self._hours = [HoursBy(name) for name, kind in self.schema.items() if is_groupable(name, kind)]
        self._hashes = SoundHashes() if "content_hash" in there else None
        own = [*CHOICE_COLUMNS, "peak", "rms_dbfs", *_BINS, *_DESCENDING, "content_hash"]
        self.columns = [*dict.fromkeys([*own, *(hours.column for hours in self._hours)])]

    def add(self, batch: pl.DataFrame) -> None:
        self.choice.add(batch)
        for hours in self._hours:
            hours.add(batch)
        if self._hashes is not None:
            self._hashes.add(batch)
        kept = [name for name in (*CHOICE_COLUMNS, "content_hash", *_DESCENDING) if name in batch.columns]
        for worst in self._worst:
            worst.add(batch, kept)
        audible = batch.filter(pl.col("rms_dbfs") > SILENCE_DBFS)
        self.num_silent += batch.height - audible.height
        for name, spread in self._spreads.items():
            if name == "peak_dbfs":
                spread.add(20 * audible["peak"].cast(pl.Float64).log10())
            else:
                spread.add((audible if name == "rms_dbfs" else batch)[name])
        self._count("num_clipped", batch, "clipping_share", lambda column: column > 0)
        self._count("num_without_speech", batch, "speech_share", lambda column: column == 0)
        self._count("num_unmeasured", batch, "si_snr_db", lambda column: column.is_null())

    def _count(self, fact: str, batch: pl.DataFrame, column: str, condition: Callable[[pl.Series], pl.Series]) -> None:
        if column in batch.columns:
            self._counts[fact] = self._counts.get(fact, 0) + int(condition(batch[column]).sum())

    def finish(self, rows: pl.LazyFrame) -> Scan:
        worst = {one.column: one.rows for one in self._worst if one.rows is not None}
        groupings = [hours.grouping() for hours in self._hours]
        corpus = Corpus(
            histograms={name: spread.histogram() for name, spread in self._spreads.items()},
            worst={name: tuple(found.select("id", name).iter_rows()) for name, found in worst.items()},
            num_silent=self.num_silent,
            num_clipped=self._counts.get("num_clipped"),
            num_without_speech=self._counts.get("num_without_speech"),
            num_unmeasured=self._counts.get("num_unmeasured"),
            groupings=tuple(grouping for grouping in groupings if grouping is not None),
            duplicates=None if self._hashes is None else self._hashes.duplicates(rows),
        )
        return Scan(corpus, self.choice.rows(), worst)
