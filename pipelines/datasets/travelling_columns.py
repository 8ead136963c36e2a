"""Columns that travel from a source into the dataset: their names, their types, and how records become columns."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.parts import own_columns

PREFIX = "manifest_"  # of a travelling column that the dataset has a column of its own for
_OTHER_NAMES = ("unit", "size", "member", "offset", "start_s", "error", "message")  # of plan.parquet and errors/


def is_own_name(name: str) -> bool:
    """Whether the dataset, its plan or its errors have a column of this name themselves."""
    return own_columns(name) or name in _OTHER_NAMES


def travelling(table: pa.Table) -> pa.Table:
    """The same columns as they travel: under names that are free, in types that every reader of Parquet knows.

    No name has a zero byte: Polars panics at one.
    """
    names: list[str] = []
    for name in table.column_names:
        new = name.replace("\0", "\\0")
        while is_own_name(new) or (new != name and new in table.column_names) or new in names:
            new = PREFIX + new
        names.append(new)
    return pa.table([_settled(column) for column in table.columns], names=names)


def table_of(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """JSON records as columns, in the order in which keys appear; a key that a record lacks is null there.

    A type that fits all values is found for each column; where there is none, what is not text becomes JSON text.
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = [_column([record.get(name) for record in records]) for name in names]
    return pa.table(columns, names=[_text(name) for name in names])


def _column(values: list[Any]) -> pa.Array:
    try:
        return _settled(pa.chunked_array([pa.array(values)]))
    except (pa.ArrowException, ValueError, OverflowError):  # mixed types, numbers beyond 64 bits, half surrogates
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> Any:
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "backslashreplace").decode("utf-8")


def _settled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in a plain type; as JSON text where Parquet has no such type."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    try:
        plain = _plain(column.type)
        pq.write_table(pa.schema([("column", plain)]).empty_table(), io.BytesIO())
        return column if plain == column.type else column.cast(plain)
    except pa.ArrowException:
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without what only saves memory: dictionaries, views, 64-bit offsets. All null is text.

    Raises:
        pa.ArrowInvalid: a field has a name that not every reader can take.
    """
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        if any("\0" in field.name for field in kind):
            raise pa.ArrowInvalid("a zero byte in the name of a field")
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind
