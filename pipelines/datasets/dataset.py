"""A token dataset as tables: its committed parts and its errors, lazily, and SQL over both."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines import s3_server, storage
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.part_file import list_parts, part_files
from pipelines.datasets.verified_scan import scan_parts
from tokenizer.errors import DatasetError

__all__ = ["list_parts", "open_dataset", "open_errors", "query_dataset"]


def open_dataset(dataset: str | Path, *, verify: bool = True, part_column: str | None = None) -> pl.LazyFrame:
    """The rows of all committed parts, read when a query asks for them, and only the columns that it needs.

    Args:
        dataset: directory or s3:// URI.
        verify: check every byte that a query reads against the commit records; a query that meets damage raises
            DatasetError. False scans the files with Polars alone, which returns damaged codes without a word.
        part_column: name of a last column that says which part a row is of, by its file's name; None: there is none.

    Raises:
        DatasetError: no dataset, no part in it yet, or the first part is damaged.
    """
    read_dataset_info(dataset)
    if not list_parts(dataset):
        raise DatasetError(f"{dataset} has no parts yet: run `quantone tokenize` to the end")
    return scan_parts(part_files(dataset), part_column) if verify else _scan_natively(dataset, part_column)


def open_errors(dataset: str | Path) -> pl.LazyFrame:
    """The inputs that did not work: id, uri, error (class) and message; no rows where all did.

    Raises:
        DatasetError: no dataset, or the first file of errors is damaged.
    """
    read_dataset_info(dataset)
    files = part_files(dataset, "errors")
    if not files:
        return pl.LazyFrame(schema=dict.fromkeys(("id", "uri", "error", "message"), pl.String))
    return scan_parts(files)


def query_dataset(dataset: str | Path, sql: str) -> pl.DataFrame:
    """Run one SQL query (Polars' dialect) over the tables `tokens` (also named `dataset`) and `errors`.

    Raises:
        DatasetError: no dataset, a part that is damaged, or SQL that Polars refuses; the message is its own then.
    """
    tokens = open_dataset(dataset)
    context = pl.SQLContext(tokens=tokens, dataset=tokens, errors=open_errors(dataset))
    try:
        return context.execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        raise DatasetError(f"query: {error}") from error


def _scan_natively(dataset: str | Path, part_column: str | None) -> pl.LazyFrame:
    root = storage.join(storage.absolute(dataset), "parts")
    options = s3_server.polars_options() if storage.is_s3(root) else None
    # Not as patterns: a directory may have [ or * in its name.
    uris = [storage.join(root, name) for name in list_parts(dataset)]
    rows = pl.scan_parquet(
        uris, glob=False, hive_partitioning=False, storage_options=options, include_file_paths=part_column
    )
    return rows if part_column is None else rows.with_columns(pl.col(part_column).str.split("/").list.last())
