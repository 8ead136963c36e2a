"""A Polars scan that never returns a damaged token: parts are checked and decoded by Arrow, queries run in Polars.

Polars' own scan of Parquet verifies no checksum: most flipped bits of a part give other codes without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from pipelines.datasets.part_file import CheckedPart, PartFile
from pipelines.datasets.read_ahead import ReadAhead
from tokenizer.errors import DatasetError

_Hit = tuple[CheckedPart, pa.Table]
_MOST_THREADS = 8  # enough to hide S3's latency; each holds one decoded part


def scan_parts(files: Sequence[PartFile], part_column: str | None = None) -> pl.LazyFrame:
    """The rows of these files, at least one, in order; a query reads only its columns, one part after another.

    A query that meets damage raises DatasetError, from `collect` and everything else that runs it.

    Args:
        files: with the same columns.
        part_column: name of a last column that says which file a row is of; None: there is none.

    Raises:
        DatasetError: the first file is damaged.
    """
    schema = _frame(files[0].open().schema.empty_table()).schema
    if part_column is not None:
        schema[part_column] = pl.String()
    scan = _Scan(tuple(files), schema, part_column)
    return register_io_source(scan, schema=schema, is_pure=True, explain_name="quantone")


class _Scan:
    """What Polars calls for rows."""

    def __init__(self, files: tuple[PartFile, ...], schema: pl.Schema, part_column: str | None) -> None:
        self._files, self._schema, self._part_column = files, schema, part_column

    def __call__(
        self, columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = self._schema.names() if columns is None else columns
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        ahead = ReadAhead(threads, None if num_rows is None else 0)
        left = num_rows
        try:
            for frame in self._all(wanted, ahead) if predicate is None else self._passing(wanted, predicate, ahead):
                kept = frame if left is None else frame.head(left)
                yield kept
                left = None if left is None else left - kept.height
                if left == 0:
                    return
        finally:
            ahead.stop()

    # What `ahead` calls uses nothing of Polars: its own threads may all be waiting here for it.

    def _all(self, columns: Sequence[str], ahead: ReadAhead) -> Iterator[pl.DataFrame]:
        for file, table in zip(
            self._files, ahead.map(lambda file: self._read(file.open(), columns), self._files), strict=True
        ):
            yield self._checked(table, file.uri)

    def _passing(self, columns: Sequence[str], predicate: pl.Expr, ahead: ReadAhead) -> Iterator[pl.DataFrame]:
        """Columns that the predicate does not need are read only of parts in which a row passes it."""
        asked = predicate.meta.root_names() or list(columns)
        rest = [name for name in columns if name not in asked]

        def look(file: PartFile) -> _Hit:
            part = file.open()
            return part, self._read(part, asked)

        def complete(hit: _Hit) -> _Hit:
            part, table = hit
            for name, column in zip(rest, self._read(part, rest).columns, strict=True):
                table = table.append_column(name, column)
            return part, table

        looked = ahead.map(look, self._files)
        hits = ((part, table) for part, table in looked if self._checked(table, part.uri).filter(predicate).height)
        for part, table in ahead.map(complete, hits):
            yield self._checked(table, part.uri).filter(predicate).select(columns)

    def _read(self, part: CheckedPart, columns: Sequence[str]) -> pa.Table:
        stored = [name for name in columns if name != self._part_column]
        if len(stored) == len(columns):
            return part.read(stored)
        table = part.read(stored or ["id"])
        name = pa.array([part.uri.rpartition("/")[2]] * table.num_rows, pa.string())
        return table.append_column(str(self._part_column), name).select(list(columns))

    def _checked(self, table: pa.Table, uri: str) -> pl.DataFrame:
        frame = _frame(table)
        for name, kind in frame.schema.items():
            if kind != self._schema[name]:
                raise DatasetError(f"{uri}: column {name} is {kind}, but {self._schema[name]} in the first part")
        return frame


def _frame(table: pa.Table) -> pl.DataFrame:
    # Without the metadata, which Polars makes nothing of, and panics over where its text is damaged.
    return pl.DataFrame(pl.from_arrow(table.replace_schema_metadata(None), rechunk=False))
