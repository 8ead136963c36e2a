"""Rows that belong together: hours by the values of a column, and rows of equal sound, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.datasets.travelling_columns import is_own_name
from pipelines.reporting.report_facts import Duplicates, Group, Grouping

GROUPS_SHOWN = 12
MOST_VALUES = 20_000  # of a column: beyond, it is a text or a name, not a group
MOST_HASHES = 2_000_000  # held at once: 24 MB
DUPLICATES_SHOWN = 10
IDS_SHOWN = 3

_SOUND = np.dtype([("sound", np.uint64), ("seconds", np.float32)])
_Sounds = npt.NDArray[Any]  # of _SOUND


def is_groupable(name: str, kind: pl.DataType) -> bool:
    """Whether hours by this column may tell something: columns of the source with text, categories or whole numbers."""
    if name == "source_sample_rate":
        return True
    return not is_own_name(name) and (kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean) or kind.is_integer())


class HoursBy:
    """Rows and seconds by the value of a column, until it has too many values."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._sums: pl.DataFrame | None = None
        self._num_rows = 0
        self._given_up = False

    def add(self, batch: pl.DataFrame) -> None:
        """Count a batch of rows."""
        self._num_rows += batch.height
        if self._given_up:
            return
        value = pl.col(self.column).cast(pl.String).alias("value")
        new = batch.group_by(value).agg(num_rows=pl.len().cast(pl.Int64), seconds=pl.col("duration_s").sum())
        both = new if self._sums is None else pl.concat([self._sums, new])
        self._sums = both.group_by("value").agg(pl.col("num_rows", "seconds").sum())
        self._given_up = self._sums.height > MOST_VALUES

    def grouping(self) -> Grouping | None:
        """The largest groups; None for a column with one value, or of which most values stand alone."""
        sums = self._sums
        if self._given_up or sums is None or not 1 < sums.height <= self._num_rows // 2:
            return None
        ordered = sums.sort(["seconds", "value"], descending=[True, False], nulls_last=True)
        groups = [Group(value if value is not None else "(none)", *sizes) for value, *sizes in ordered.iter_rows()]
        shown, others = groups[:GROUPS_SHOWN], groups[GROUPS_SHOWN:]
        if len(others) == 1:
            shown, others = groups, []
        rest = Group(f"{len(others):,} others", sum(o.num_rows for o in others), sum(o.seconds for o in others))
        return Grouping(self.column, tuple(shown), rest if others else None)


class SoundHashes:
    """Which content hashes occur more than once.

    Beyond `most` rows only hashes that begin with so many zero bits are kept: groups of these are complete, and as
    hashes fall anywhere, so are estimates from them.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self._most = most
        self._shift = 0  # of all hashes, 1 in 2**shift is looked at
        self._kept: list[_Sounds] = []

    def add(self, batch: pl.DataFrame) -> None:
        """Keep the hashes of a batch of rows."""
        rows = batch.select(
            sound=pl.col("content_hash").str.to_integer(base=16, dtype=pl.UInt64, strict=False),
            seconds=pl.col("duration_s").cast(pl.Float32),
        ).drop_nulls()
        self._kept.append(self._below(np.rec.fromarrays([rows["sound"], rows["seconds"]], dtype=_SOUND)))
        while sum(len(sounds) for sounds in self._kept) > self._most:
            self._shift += 1
            self._kept = [self._below(sounds) for sounds in self._kept]

    def duplicates(self, rows: pl.LazyFrame) -> Duplicates:
        """What was found; the ids of the costliest groups are looked up in a second pass over ids and hashes."""
        sounds = np.concatenate([np.zeros(0, _SOUND), *self._kept])
        sounds = sounds[np.argsort(sounds["sound"], kind="stable")]
        starts = np.flatnonzero(np.diff(sounds["sound"], prepend=~sounds["sound"][:1]) != 0)
        num_rows = np.diff(starts, append=len(sounds))
        repeated = num_rows > 1
        groups, num_rows = sounds[starts[repeated]], num_rows[repeated]
        surplus_s = (num_rows - 1) * groups["seconds"].astype(np.float64)
        costliest = np.argsort(-surplus_s, kind="stable")[:DUPLICATES_SHOWN]
        names = [f"{sound:016x}" for sound in groups["sound"][costliest]]
        ids = _ids(rows, names) if names else {}
        examples = zip(groups["seconds"][costliest].tolist(), num_rows[costliest].tolist(), names, strict=True)
        scale = 2**self._shift
        return Duplicates(
            num_groups=len(groups) * scale,
            num_surplus=int((num_rows - 1).sum()) * scale,
            surplus_seconds=float(surplus_s.sum()) * scale,
            examples=tuple((seconds, amount, ids[name]) for seconds, amount, name in examples),
            looked_at=1 / scale,
        )

    def _below(self, sounds: _Sounds) -> _Sounds:
        return sounds if self._shift == 0 else sounds[sounds["sound"] < 2 ** (64 - self._shift)]


def _ids(rows: pl.LazyFrame, hashes: list[str]) -> dict[str, tuple[str, ...]]:
    found = rows.select("content_hash", "id").filter(pl.col("content_hash").is_in(hashes))
    named = found.group_by("content_hash").agg(pl.col("id").sort().head(IDS_SHOWN)).collect()
    return {name: tuple(ids) for name, ids in named.iter_rows()}
