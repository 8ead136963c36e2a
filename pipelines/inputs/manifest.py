"""Manifests: tables that name audio files or stretches of them, with columns that travel; NVIDIA NeMo's keys are known.

One row an input: the path under the first of `uri`, `audio_filepath`, `path` that there is, `offset` and `duration` in
seconds, perhaps `id`. As .jsonl or .json (one object a line), .csv, .tsv (without quotes) or .parquet.
"""

from __future__ import annotations

import io
import json
import math
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.datasets.listing import listing_from, with_extra
from pipelines.datasets.travelling_columns import table_of
from tokenizer.errors import DatasetError

MANIFEST_EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PATH_KEYS = ("uri", "audio_filepath", "path")
_TEXT = (*PATH_KEYS, "id", "text")  # of a .csv: 007 is a name there, and 1984 a sentence


def is_manifest(uri: str) -> bool:
    """Whether a file goes by an extension of manifests."""
    return uri.lower().endswith(MANIFEST_EXTENSIONS)


def read_manifest(uri: str) -> pa.Table:
    """The rows of a manifest as a listing with its travelling columns, in the manifest's order.

    Paths are relative to the manifest's folder. An id is the row's `id`; else the path below that folder (or all of
    it), with `#start-end` in seconds where a file is in several rows. Files that are missing are listed: reading them
    will fail, and each becomes an error row.

    Raises:
        DatasetError: not such a table, a row without a path, an offset or duration that is none, or ids that are not
            unique; with the line or row.
        OSError: the manifest cannot be read.
    """
    content = storage.read_bytes(uri)
    table = _read(uri, content)
    key = next((name for name in PATH_KEYS if name in table.column_names), None)
    if key is None:
        raise DatasetError(
            f"{uri}: no column {', '.join(PATH_KEYS[:-1])} or {PATH_KEYS[-1]}, one of which names the audio"
        )
    place = _Places(uri, content)
    paths = _paths(table.column(key), key, place)
    starts = _seconds(table, "offset", place).fill_null(0.0)
    durations = _seconds(table, "duration", place)
    folder = uri.rpartition("/")[0]
    uris = [_resolve(path, folder, row, place) for row, path in enumerate(paths)]
    ids = _ids(table, uris, folder, starts, durations, place)
    sizes = {name: _size(name) for name in set(uris)}
    listing = listing_from(
        {
            "id": pa.array(ids, pa.string()),
            "uri": pa.array(uris, pa.string()),
            "size": pa.array([sizes[name] for name in uris], pa.int64()),
            "start_s": starts,
            "duration_s": durations,
        }
    )
    used = {key, "offset", "duration", "id"} & set(table.column_names)
    return with_extra(listing, table.drop_columns(list(used)))


class _Places:
    """Names the place of a row in a manifest, for errors."""

    def __init__(self, uri: str, content: bytes) -> None:
        self._uri, self._content = uri, content

    def __call__(self, row: int) -> str:
        """The line in JSON, the row elsewhere, counted from 1."""
        return f"{self._uri}, {self.number(row)}"

    def number(self, row: int) -> str:
        """The place within the manifest alone."""
        if not self._uri.lower().endswith((".jsonl", ".json")):
            return f"row {row + 1}"
        lines = [number for number, line in enumerate(self._content.split(b"\n"), 1) if line.strip()]
        return f"line {lines[row]}"


def _read(uri: str, content: bytes) -> pa.Table:
    extension = posixpath.splitext(uri)[1].lower()
    try:
        if extension == ".parquet":
            table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
        elif extension in (".csv", ".tsv"):
            table = _read_csv(content, tabs=extension == ".tsv")
        else:
            table = _read_lines(uri, content)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise DatasetError(
            f"{uri}: not a {extension} manifest that can be read: {str(error).splitlines()[0]}"
        ) from error
    if table.num_rows == 0:
        raise DatasetError(f"{uri}: a manifest without rows")
    return table


def _read_csv(content: bytes, *, tabs: bool) -> pa.Table:
    frame = pl.read_csv(
        content.removeprefix(b"\xef\xbb\xbf"),
        separator="\t" if tabs else ",",
        quote_char=None if tabs else '"',
        infer_schema_length=None,
        schema_overrides=dict.fromkeys(_TEXT, pl.String),
    )
    frame = frame.rename(lambda name: name.replace("\0", "\\0"))  # at which Polars does not raise, but panics
    return frame.filter(~pl.all_horizontal(pl.all().is_null())).to_arrow()  # blank lines


def _read_lines(uri: str, content: bytes) -> pa.Table:
    """Polars reads a good file fast; what it cannot read is either told by its line or a mixture of types."""
    if rb"\u0000" not in content:  # perhaps in a key, where Polars does not raise, but panics
        with suppress(pl.exceptions.PolarsError, pa.ArrowException):
            return pl.read_ndjson(content, infer_schema_length=None).to_arrow()
    records = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            records.append(_record(f"{uri}, line {number}", line))
    return table_of(records)


def _record(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{place}: not a JSON object; a manifest has one object a line")
    return record


def _paths(column: pa.ChunkedArray, key: str, place: _Places) -> list[str]:
    values: list[str] = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise DatasetError(f"{place(row)}: {key} is {value!r}, not the path of a file")
    return values


def _seconds(table: pa.Table, key: str, place: _Places) -> pa.ChunkedArray:
    """A column of numbers of seconds, float64, null where a row does not say."""
    if key not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.float64())])
    column = table.column(key)
    try:
        seconds = column.cast(pa.float64())
    except pa.ArrowException:
        seconds = pa.chunked_array([pa.array(map(_number, column.to_pylist()), pa.float64())])
    numbers = seconds.fill_null(0.0).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if len(bad):
        row = int(bad[0])
        raise DatasetError(f"{place(row)}: {key} is {column[row].as_py()!r}, not a number of seconds from 0 on")
    return seconds


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def _resolve(path: str, folder: str, row: int, place: _Places) -> str:
    """The URI of a path as a manifest gives it."""
    if "://" in path and not storage.is_s3(path):
        raise DatasetError(f"{place(row)}: {path}: only local paths and s3:// are supported")
    whole = path if path.startswith(("/", storage.S3)) else f"{folder}/{path}"
    if "/." not in whole and whole.find("//", len(storage.S3)) < 0:
        return whole
    scheme = storage.S3 if storage.is_s3(whole) else ""
    return scheme + posixpath.normpath(whole.removeprefix(storage.S3))


def _ids(
    table: pa.Table,
    uris: Sequence[str],
    folder: str,
    starts: pa.ChunkedArray,
    durations: pa.ChunkedArray,
    place: _Places,
) -> list[str]:
    below = folder + "/"
    several = {uri for uri, count in Counter(uris).items() if count > 1}
    given = table.column("id").to_pylist() if "id" in table.column_names else [None] * len(uris)
    ids = []
    for row, (uri, name) in enumerate(zip(uris, given, strict=True)):
        if name is not None:
            ids.append(str(name))
        elif uri in several:
            ids.append(uri.removeprefix(below) + _stretch(starts[row].as_py(), durations[row].as_py()))
        else:
            ids.append(uri.removeprefix(below))
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        first = ids.index(twice[0])
        second = ids.index(twice[0], first + 1)
        named = ", ".join(twice[:3]) + (", ..." if len(twice) > 3 else "")
        raise DatasetError(
            f"{place(second)}: the same id as in {place.number(first)}; {len(twice)} ids are not unique ({named}); "
            "give each row an id of its own"
        )
    return ids


def _stretch(start: float, duration: float | None) -> str:
    """`#start-end` to the microsecond, without an end where it is the file's."""
    end = None if duration is None else start + duration
    return "#" + "-".join("" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") for value in (start, end))


def _size(uri: str) -> int | None:
    """Bytes of a local file; S3 would take a request for each."""
    if storage.is_s3(uri):
        return None
    try:
        return os.stat(uri).st_size  # noqa: PTH116 - a Path takes longer than the call
    except (OSError, ValueError):
        return None
