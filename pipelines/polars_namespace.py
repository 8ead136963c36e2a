"""`.codes` on Polars frames and expressions: queries over token datasets. Importing this module registers it.

Needs only polars and numpy, so that a notebook can query without torch; hence ValueError instead of a Quantone error.

    import pipelines.polars_namespace
    pl.scan_parquet("tokens/parts/*.parquet").codes.at_bandwidth(3.0)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

Codes = np.ndarray[Any, np.dtype[np.uint16]]
_LEVEL = re.compile(r"codes_(\d+)")
_CONSTANTS = ("sample_rate", "hop_length", "codebook_size")


@pl.api.register_lazyframe_namespace("codes")
class LazyCodes:
    """Token queries on a LazyFrame whose rows are utterances of one codec."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    def num_codebooks(self) -> int:
        """Number of levels: columns codes_00, codes_01 ... without a gap."""
        return len(self._levels())

    def bitrate_kbps(self) -> float:
        """Kilobits per second of all levels in the frame, before entropy coding.

        Raises:
            ValueError: the frame has no codes, no rows, or lacks sample_rate, hop_length or codebook_size.
        """
        return self.num_codebooks() * self._level_kbps()

    def at_bandwidth(self, kbps: float) -> pl.LazyFrame:
        """The frame with only the levels that make up a bandwidth: a projection, nothing else is read.

        Raises:
            ValueError: the bandwidth is not a whole number of levels, or more than there is.
        """
        levels, level_kbps = self._levels(), self._level_kbps()
        count = round(kbps / level_kbps)
        if not 1 <= count <= len(levels) or abs(count * level_kbps - kbps) > 1e-6:
            listed = ", ".join(f"{level_kbps * have:g}" for have in range(1, len(levels) + 1))
            raise ValueError(f"{kbps:g} kbps is not there: these {len(levels)} levels give {listed}")
        return self._frame.drop(levels[count:])

    def to_numpy(self, rows_per_batch: int = 1000) -> Iterator[Codes]:
        """Codes [K, T] uint16 of each row, in order; about `rows_per_batch` rows are held at a time."""
        frame = self._frame.select(self._levels())
        for batch in frame.collect_batches(chunk_size=rows_per_batch, maintain_order=True, lazy=True):
            yield from _to_arrays(batch)

    def histogram(self, level: int) -> pl.DataFrame:
        """How often each entry of a level's codebook is used.

        Returns:
            Columns code (uint16) and count (uint64), one row for every entry, unused ones with 0.

        Raises:
            ValueError: there is no such level, or bitrate_kbps() would fail.
        """
        size = self._constants()["codebook_size"]
        counted = self._flat(level).group_by("code").agg(count=_count()).collect()
        every = pl.DataFrame({"code": np.arange(size, dtype=np.uint16)})
        return every.join(counted, on="code", how="left", maintain_order="left").with_columns(
            pl.col("count").fill_null(0)
        )

    def drift(self, by: str, level: int = 0) -> pl.LazyFrame:
        """How each group's use of a codebook differs from that of the whole frame: by part, speaker, language ...

        Divergence is Jensen-Shannon's, in bits: 0 for the same frequencies, 1 for no entry in common. Chance alone
        gives a small group of n codes about (entries - 1) / (5.5 n), and more where neighbouring codes are alike.

        Args:
            by: a column of the frame.
            level: of the codebook.

        Returns:
            Columns `by`, codes (uint64, how many the group has), perplexity and divergence_bits (float64), sorted by
            `by`. Only groups x entries are held in memory, not the codes.

        Raises:
            ValueError: there is no such level or column.
        """
        if by not in self._frame.collect_schema().names():
            raise ValueError(f"the frame has no column {by!r} to group by")
        counts = self._flat(level, group=pl.col(by)).group_by("group", "code").agg(count=_count())
        count, p, q = pl.col("count"), pl.col("p"), pl.col("q")  # shares of an entry in its group and in the whole
        shares = counts.with_columns(p=count / count.sum().over("group"), q=count.sum().over("code") / count.sum())
        towards_both = p * (2 * p / (p + q)).log(2) + q * (2 * q / (p + q)).log(2)
        measured = shares.group_by("group").agg(
            codes=count.sum(),
            perplexity=2 ** -(p * p.log(2)).sum(),
            divergence_bits=(towards_both.sum() + 1 - q.sum()) / 2,  # entries that the group lacks add q each
        )
        return measured.sort("group").rename({"group": by})

    def _flat(self, level: int, **beside: pl.Expr) -> pl.LazyFrame:
        """One row a code of a level, in a column `code`, and what stands beside it."""
        levels = self._levels()
        if not 0 <= level < len(levels):
            raise ValueError(f"level {level} is not there: these are 0 to {len(levels) - 1}")
        used = self._frame.select(**beside, code=pl.col(levels[level]))
        return used.explode("code", empty_as_null=False, keep_nulls=False)

    def _levels(self) -> list[str]:
        names = [name for name in self._frame.collect_schema().names() if _LEVEL.fullmatch(name)]
        if not names and "codes_qtn" in self._frame.collect_schema().names():
            raise ValueError("the codes are in codes_qtn only, compressed: stored_codes.read_utterances reads them")
        if not names:
            raise ValueError("the frame has no codes: no column codes_00")
        if names != [f"codes_{level:02d}" for level in range(len(names))]:
            raise ValueError(f"the levels have gaps or are out of order: {', '.join(names)}")
        return names

    def _level_kbps(self) -> float:
        constants = self._constants()
        bits = constants["codebook_size"].bit_length() - 1
        return constants["sample_rate"] * bits / constants["hop_length"] / 1000

    def _constants(self) -> dict[str, int]:
        missing = [name for name in _CONSTANTS if name not in self._frame.collect_schema().names()]
        if missing:
            raise ValueError(f"the frame lacks {', '.join(missing)}; keep these columns when selecting")
        rows = self._frame.select(_CONSTANTS).head(1).collect().to_dicts()
        if not rows:
            raise ValueError("the frame has no rows, so nothing says what its codec was")
        return rows[0]


@pl.api.register_dataframe_namespace("codes")
class FrameCodes:
    """The same queries on a DataFrame."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def num_codebooks(self) -> int:
        """See `LazyCodes.num_codebooks`."""
        return self._lazy().num_codebooks()

    def bitrate_kbps(self) -> float:
        """See `LazyCodes.bitrate_kbps`."""
        return self._lazy().bitrate_kbps()

    def at_bandwidth(self, kbps: float) -> pl.DataFrame:
        """See `LazyCodes.at_bandwidth`."""
        return self._lazy().at_bandwidth(kbps).collect()

    def to_numpy(self) -> list[Codes]:
        """Codes [K, T] uint16 of each row."""
        return list(self._lazy().to_numpy())

    def histogram(self, level: int) -> pl.DataFrame:
        """See `LazyCodes.histogram`."""
        return self._lazy().histogram(level)

    def drift(self, by: str, level: int = 0) -> pl.DataFrame:
        """See `LazyCodes.drift`."""
        return self._lazy().drift(by, level).collect()

    def _lazy(self) -> LazyCodes:
        return LazyCodes(self._frame.lazy())


@pl.api.register_expr_namespace("codes")
class ExprCodes:
    """What makes sense for one column of codes."""

    def __init__(self, expression: pl.Expr) -> None:
        self._expression = expression

    def histogram(self) -> pl.Expr:
        """Structs {code, count} of the codes that occur, most frequent first."""
        flat = self._expression.explode(empty_as_null=False, keep_nulls=False).alias("code")
        return flat.value_counts(sort=True, name="count")

    def num_frames(self) -> pl.Expr:
        """Frames of each row."""
        return self._expression.list.len()


def _count() -> pl.Expr:
    """Codes of a group. `pl.len` ends at 2**32, which is what silence can have in 16,000 hours."""
    return pl.col("code").is_not_null().cast(pl.UInt64).sum()


def _to_arrays(frame: pl.DataFrame) -> list[Codes]:
    """Rows of list columns as [K, T] arrays."""
    if frame.height == 0:
        return []
    lengths = frame.to_series(0).list.len().to_numpy()
    bounds = np.cumsum(lengths)[:-1]
    for column in frame.iter_columns():
        if column.null_count() or not np.array_equal(column.list.len().to_numpy(), lengths):
            raise ValueError(f"column {column.name} does not have as many frames as {frame.columns[0]} in every row")
    flat = [column.explode(empty_as_null=False).to_numpy() for column in frame.iter_columns()]
    return np.split(np.stack(flat).astype(np.uint16, copy=False), bounds, axis=1)
