"""A listing: the inputs of a corpus job as an Arrow table, one row each, sorted by id; no object an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.travelling_columns import travelling


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input of a corpus job: a file, a stretch of a file, a member of a tar shard or a row of a Parquet file."""

    id: str  # stable, unique in the source
    uri: str  # of the file, or of the tar or Parquet file that holds the input
    size: int | None = None  # bytes of the audio's container; None where listing does not tell
    member: str | None = None  # name inside a tar; None otherwise
    offset: int | None = None  # tar: byte where the data begin; Parquet: row number in the file; None otherwise
    start_s: float = 0.0  # a manifest's offset
    duration_s: float | None = None  # a manifest's duration; None: to the end


LISTING_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
    ]
)
_NAMES = tuple(field.name for field in fields(SourceFile))


def listing_of(files: Sequence[SourceFile]) -> pa.Table:
    """A listing of these files, in the given order, without travelling columns."""
    return pa.table({name: [getattr(file, name) for file in files] for name in _NAMES}, schema=LISTING_SCHEMA)


def listing_from(columns: dict[str, pa.Array]) -> pa.Table:
    """A listing from some of its columns, the others at their defaults."""
    num_rows = len(columns["id"])
    arrays = []
    for field in LISTING_SCHEMA:
        column = columns.get(field.name)
        if column is None:
            start = pa.scalar(0.0 if field.name == "start_s" else None, field.type)
            column = pa.repeat(start, num_rows)
        arrays.append(column.cast(field.type))
    return pa.table(arrays, schema=LISTING_SCHEMA)


def with_extra(listing: pa.Table, extra: pa.Table) -> pa.Table:
    """A listing with columns beside it that travel, under names that the dataset does not have itself."""
    for name, column in zip((table := travelling(extra)).column_names, table.columns, strict=True):
        listing = listing.append_column(name, column)
    return listing


def files_of(listing: pa.Table) -> list[SourceFile]:
    """The rows of a listing (better: of a slice of it) as objects."""
    columns = [listing.column(name).to_pylist() for name in _NAMES]
    return [SourceFile(*row) for row in zip(*columns, strict=True)]


def extra_of(listing: pa.Table) -> pa.Table:
    """The travelling columns of a listing, none or more, with as many rows."""
    return listing.drop_columns(list(_NAMES))


def join_listings(listings: Iterable[pa.Table]) -> pa.Table:
    """Several listings as one, sorted by id; a travelling column that one of them lacks is null there.

    Ids that are there twice (a tar may hold two members of one name) get `@2`, `@3` ... in order of their place.
    """
    joined = pa.concat_tables(_alike(list(listings)), promote_options="permissive").combine_chunks()
    places = [("id", "ascending"), ("uri", "ascending"), ("offset", "ascending")]
    return _with_unique_ids(joined.take(pc.sort_indices(joined, sort_keys=places)))


def _alike(listings: list[pa.Table]) -> list[pa.Table]:
    """The same listings, with columns whose types cannot meet turned into text."""
    types: dict[str, list[pa.DataType]] = {}
    for listing in listings:
        for field in listing.schema:
            known = types.setdefault(field.name, [])
            if field.type not in known:
                known.append(field.type)
    clashing = {name for name, known in types.items() if len(known) > 1 and not _meet(known)}
    return [_as_text(listing, clashing & set(listing.column_names)) for listing in listings] if clashing else listings


def _meet(types: list[pa.DataType]) -> bool:
    try:
        pa.unify_schemas([pa.schema([("column", kind)]) for kind in types], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_text(listing: pa.Table, names: set[str]) -> pa.Table:
    for name in names:
        values = [None if value is None else str(value) for value in listing.column(name).to_pylist()]
        listing = listing.set_column(listing.column_names.index(name), name, pa.array(values, pa.string()))
    return listing


def _with_unique_ids(listing: pa.Table) -> pa.Table:
    """A sorted listing with a number behind ids that the row before has too."""
    ids = listing.column("id")
    if len(ids) < 2 or not pc.any(pc.equal(ids[1:], ids[:-1])).as_py():
        return listing
    names = ids.to_pylist()
    taken, last, count = set(names), None, 1
    for row, name in enumerate(names):
        if name != last:
            last, count = name, 1
            continue
        count += 1
        while f"{name}@{count}" in taken:
            count += 1
        names[row] = f"{name}@{count}"
        taken.add(names[row])
    listing = listing.set_column(0, LISTING_SCHEMA.field("id"), pa.array(names, pa.string()))
    return listing.take(pc.sort_indices(listing.column("id")))
