"""Query results for people and for programs: a table on the terminal, CSV, JSON or Parquet."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import polars as pl
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

FORMATS = ("table", "csv", "json", "parquet")
MAX_TABLE_ROWS = 40
SHOWN_LIST_ITEMS = 6
PLAIN_WIDTH = 160  # columns where no terminal says how many it has


def choose_format(asked: str | None, output: Path | None) -> str:
    """The format that was asked for, or the one that the file's extension names, or a table.

    Raises:
        ValueError: a format that does not exist.
    """
    named = output.suffix.lower().lstrip(".") if output is not None else ""
    chosen = asked or (named if named in FORMATS else "table")
    if chosen not in FORMATS:
        raise ValueError(f"format {chosen!r} is not one of {', '.join(FORMATS)}")
    return chosen


def write_frame(frame: pl.DataFrame, output_format: str, output: Path | None = None) -> None:
    """Write a DataFrame to a file, or to stdout.

    Args:
        frame: any columns; lists become JSON text in CSV.
        output_format: one of FORMATS.
        output: a file, None for stdout.

    Raises:
        ValueError: Parquet to a terminal.
    """
    if output_format == "table":
        text = _table_text(frame, None if output is None else PLAIN_WIDTH)
        _emit(text.encode(), output)
        return
    if output_format == "parquet" and output is None and sys.stdout.isatty():
        raise ValueError("Parquet is binary and does not go to a terminal: name a file with -o")
    buffer = io.BytesIO()
    if output_format == "parquet":
        frame.write_parquet(buffer)
    elif output_format == "json":
        frame.write_json(buffer)
        buffer.write(b"\n")
    else:
        nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
        as_text = [pl.Series(name, [_json(value) for value in frame[name]], pl.String) for name in nested]
        frame.with_columns(as_text).write_csv(buffer)
    _emit(buffer.getvalue(), output)


def frame_table(frame: pl.DataFrame, max_rows: int = MAX_TABLE_ROWS) -> RenderableType:
    """A DataFrame as a rich table: numbers to the right, long lists and long frames cut and said so.

    Args:
        frame: any columns.
        max_rows: the rest is left out.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in frame.schema.items():
        table.add_column(Text(name), justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in frame.head(max_rows).iter_rows():
        table.add_row(*(Text(_cell(value)) for value in row))  # Text: what looks like markup is shown as it is
    if frame.height <= max_rows:
        return table
    return Group(table, Text(f"{max_rows} of {frame.height} rows; csv, json and parquet hold all of them"))


def _table_text(frame: pl.DataFrame, width: int | None) -> str:
    is_terminal = width is None and sys.stdout.isatty()
    buffer = io.StringIO()
    console = Console(file=buffer, width=None if is_terminal else PLAIN_WIDTH, force_terminal=is_terminal)
    console.print(frame_table(frame) if frame.width else Text("no columns"))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e9 or value == 0 else f"{value:.4g}"
    if isinstance(value, (list, pl.Series)):
        items = list(value)
        shown = ", ".join(_cell(item) for item in items[:SHOWN_LIST_ITEMS])
        return f"[{shown}, … {len(items)} in all]" if len(items) > SHOWN_LIST_ITEMS else f"[{shown}]"
    return str(value)


def _json(value: Any) -> str | None:
    if value is None:
        return None
    import json

    return json.dumps(value.to_list() if isinstance(value, pl.Series) else value, default=str)


def _emit(content: bytes, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(content)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
