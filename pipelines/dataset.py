"""A token dataset as tables: its committed parts and its errors, lazily, and SQL over both."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines import storage
from pipelines.dataset_info import read_dataset_info
from tokenizer.errors import DatasetError


def open_dataset(dataset: str | Path) -> pl.LazyFrame:
    """The rows of all committed parts, read when a query asks for them, and only the columns that it needs.

    Args:
        dataset: directory or s3:// URI.

    Raises:
        DatasetError: no dataset, or no part in it yet.
    """
    read_dataset_info(dataset)
    return _scan(dataset, "parts")


def open_errors(dataset: str | Path) -> pl.LazyFrame:
    """The inputs that did not work: id, uri, error (class) and message; no rows where all did.

    Raises:
        DatasetError: no dataset.
    """
    read_dataset_info(dataset)
    if not list_parts(dataset, "errors"):
        return pl.LazyFrame(schema=dict.fromkeys(("id", "uri", "error", "message"), pl.String))
    return _scan(dataset, "errors")


def list_parts(dataset: str | Path, kind: str = "parts") -> list[str]:
    """Names of the committed files in parts/ or errors/, in unit order."""
    names = storage.list_names(storage.join(storage.absolute(dataset), kind))
    return [name for name in names if name.startswith("part-") and name.endswith(".parquet")]


def query_dataset(dataset: str | Path, sql: str) -> pl.DataFrame:
    """Run one SQL query (Polars' dialect) over the tables `tokens` (also named `dataset`) and `errors`.

    Raises:
        DatasetError: no dataset, or SQL that Polars refuses; the message is its own.
    """
    tokens = open_dataset(dataset)
    context = pl.SQLContext(tokens=tokens, dataset=tokens, errors=open_errors(dataset))
    try:
        return context.execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        raise DatasetError(f"query: {error}") from error


def _scan(dataset: str | Path, kind: str) -> pl.LazyFrame:
    names = list_parts(dataset, kind)
    if not names:
        raise DatasetError(f"{dataset} has no {kind} yet: run `quantone tokenize` to the end")
    root = storage.join(storage.absolute(dataset), kind)
    options = storage.polars_options() if storage.is_s3(root) else None
    # Not as patterns: a directory may have [ or * in its name.
    uris = [storage.join(root, name) for name in names]
    return pl.scan_parquet(uris, glob=False, hive_partitioning=False, storage_options=options)
