"""Travelling columns: no value is lost, no name of the dataset is taken, and any reader of Parquet knows the types."""

import datetime
import io

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.datasets.listing import LISTING_SCHEMA, SourceFile, join_listings, listing_of, with_extra
from pipelines.datasets.travelling_columns import is_own_name, table_of, travelling

PAIRS = pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32()))
INTERVALS = pa.array([(1, 2, 3), None], pa.month_day_nano_interval())
UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\0" * 16, None], pa.binary(16)))
TIMES = pa.array([datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), None], pa.timestamp("us", "UTC"))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, None], pa.int8()), pa.int8()),
        (pa.array(["a", None]).dictionary_encode(), pa.string()),
        (pa.array(["a", None], pa.large_string()), pa.string()),
        (pa.array(["a", None], pa.string_view()), pa.string()),
        (pa.array([b"a", None], pa.large_binary()), pa.binary()),
        (pa.array([["a"], None], pa.large_list(pa.large_string())), pa.list_(pa.string())),
        (pa.array([{"x": ["a"]}, None]), pa.struct([("x", pa.list_(pa.string()))])),
        (pa.array([[None], None]), pa.list_(pa.string())),
        (pa.array([None, None]), pa.string()),
        (TIMES, TIMES.type),
        (PAIRS, PAIRS.type),
        (UUIDS, pa.binary(16)),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_values_stay_and_types_become_plain(column, kind):
    """Written as a part and read by Polars, with their nulls."""
    table = travelling(pa.table({"x": column}))
    assert table.schema.field("x").type == kind
    expected = (column.storage if isinstance(column, pa.ExtensionArray) else column).to_pylist()
    assert table.column("x").to_pylist() == expected
    content = io.BytesIO()
    pq.write_table(table, content)
    content.seek(0)
    assert pl.read_parquet(content)["x"].null_count() == column.null_count


@pytest.mark.parametrize("column", [INTERVALS, pa.array([{}, None]), pa.array([[{}], None])], ids=lambda c: str(c.type))
def test_what_parquet_cannot_store_travels_as_text(column):
    """A record without fields, and months with days."""
    values = travelling(pa.table({"x": column})).column("x").to_pylist()
    assert isinstance(values[0], str)
    assert values[1] is None


def test_own_names_are_kept_free():
    """All of the listing, the errors and the parts; renamed columns keep apart from each other too."""
    for name in (*LISTING_SCHEMA.names, "unit", "error", "message", "codes_00", "codes_31", "codes_qtn", "input_id"):
        assert is_own_name(name)
    assert not any(map(is_own_name, ["text", "codes", "speaker", "codes_xx", "duration"]))
    names = travelling(pa.table({"id": [1], "manifest_id": [2], "text": [3]})).column_names
    assert names == ["manifest_manifest_id", "manifest_id", "text"]


def test_records_become_columns_in_the_order_of_their_keys():
    """With one type for all values where there is one, else as text; half a character does not stop it."""
    table = table_of([{"b": 1, "a": "x"}, {"a": "\ud800", "c": [1]}, {"b": 2.5, "c": 3}])
    assert table.to_pylist() == [
        {"b": 1.0, "a": "x", "c": None},
        {"b": None, "a": "\\ud800", "c": "[1]"},
        {"b": 2.5, "a": None, "c": "3"},
    ]


def test_listings_are_joined_by_id_and_no_id_is_there_twice():
    """Numbers behind them follow the places in the archive, and leave names alone that are taken."""
    names = ["x", "x", "x", "x@2"]
    files = [SourceFile(name, "/0.tar", member="x", offset=9 - row) for row, name in enumerate(names)]
    one, two = listing_of(files), with_extra(listing_of([SourceFile("a", "/a.wav")]), pa.table({"text": ["hi"]}))
    joined = join_listings([one, two])
    places = dict(zip(joined.column("id").to_pylist(), joined.column("offset").to_pylist(), strict=True))
    assert places == {"a": None, "x": 7, "x@2": 6, "x@3": 8, "x@4": 9}
    assert joined.column("text").to_pylist() == ["hi", None, None, None, None]
