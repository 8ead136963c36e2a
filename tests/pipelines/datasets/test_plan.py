"""Plans: the same listing gives the same units, and nothing is lost between them."""

import contextlib
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.datasets.input_lengths import estimate_lengths
from pipelines.datasets.listing import LISTING_SCHEMA, SourceFile, listing_of, with_extra
from pipelines.datasets.plan import Plan, compose_batches, cut_bundles, describe_difference, estimate_seconds, make_plan
from tokenizer import DatasetError

LENGTHS = st.floats(0, 1e4)
INPUTS = st.tuples(
    st.sampled_from(["a.wav", "b.FLAC", "c.d.mp3", "dir.wav/none", ".wav", "shard.tar", "rows.parquet"]),
    st.none() | st.integers(0, 10**9),
    st.none() | st.sampled_from(["m.opus", "n"]),
    st.none() | st.integers(0, 3),
    LENGTHS,
    st.none() | LENGTHS,
)
FILES = st.lists(INPUTS, min_size=1, max_size=40).map(
    lambda rows: [SourceFile(f"{i:03d}{row[0]}", f"/x/{row[0]}", *row[1:]) for i, row in enumerate(rows)]
)


@st.composite
def _listings(draw):
    """Listings with travelling columns of nested and of incomplete values."""
    files = draw(FILES)
    values = st.lists(st.none() | st.fixed_dictionaries({"words": st.lists(st.text(max_size=3), max_size=3)}))
    nested = draw(values.filter(any))
    beside = {
        "nested": [nested[row % len(nested)] for row in range(len(files))],
        "score": draw(st.lists(st.none() | st.floats(), min_size=len(files), max_size=len(files))),
    }
    kinds = pa.schema([("nested", pa.struct([("words", pa.list_(pa.string()))])), ("score", pa.float64())])
    return files, with_extra(listing_of(files), pa.table(beside, schema=kinds))


@settings(deadline=None)  # the first call imports
@given(FILES, st.floats(1, 500))
def test_units_hold_every_input_once_and_in_order(files, seconds):
    """Whatever the lengths; and a unit passes its length only if it is a single input."""
    plan = make_plan(listing_of(files), seconds)
    units = [plan.unit(number) for number in range(plan.num_units)]
    assert [file for unit in units for file in unit] == files
    assert [len(unit) for unit in units] == plan.unit_sizes()
    assert (plan.num_files, plan.extra_schema) == (len(files), pa.schema([]))
    for unit in units:
        assert len(unit) == 1 or sum(map(estimate_seconds, unit)) <= seconds * (1 + 1e-9)


@settings(deadline=None)
@given(FILES)
def test_lengths_are_estimated_alike_one_by_one_and_together(files):
    """A job that sees a single input guesses what the plan guessed."""
    assert estimate_lengths(listing_of(files)).tolist() == pytest.approx([estimate_seconds(file) for file in files])


@settings(deadline=None)
@given(_listings(), st.floats(1, 500))
def test_plans_survive_parquet(files_and_listing, seconds):
    """Written and read back it is the same plan, with the same identity and the same travelling columns."""
    _, listing = files_and_listing
    plan = make_plan(listing, seconds)
    again = Plan.from_parquet(plan.to_parquet())
    assert again.sha256 == plan.sha256
    assert again.unit_sizes() == plan.unit_sizes()
    assert again.extra_schema == plan.extra_schema == pa.schema(list(listing.schema)[len(LISTING_SCHEMA) :])
    first = 0
    for number in range(plan.num_units):
        assert again.unit(number) == plan.unit(number)
        rows = listing.slice(first, len(plan.unit(number)))
        beside = again.extra(number)  # noqa: S610 - a method of Plan, not of Django
        assert repr(beside.to_pylist()) == repr(rows.select(["nested", "score"]).to_pylist())
        first += rows.num_rows
    assert describe_difference(again, listing) is None


def test_a_plan_is_known_by_the_bytes_of_its_file():
    """So that another writer of Parquet cannot change the identity of a plan that is there."""
    plan = make_plan(listing_of([SourceFile("a.wav", "/a.wav", 1)]), 10)
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(pa.BufferReader(plan.to_parquet())), sink, compression="none")
    content = sink.getvalue().to_pybytes()
    assert Plan.from_parquet(content).to_parquet() == content
    assert Plan.from_parquet(content).sha256 != plan.sha256


def test_damaged_plans_are_refused():
    """Cut, flipped, without units, or with units out of order: DatasetError, whatever the byte."""
    plan = make_plan(listing_of([SourceFile(f"{i}.wav", f"/{i}.wav", 99_999) for i in range(50)]), 10)
    content = plan.to_parquet()
    for position in range(0, len(content), 7):
        flipped = content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]
        with contextlib.suppress(DatasetError):
            assert Plan.from_parquet(flipped).sha256 != plan.sha256
    with pytest.raises(DatasetError, match=r"plan\.parquet is damaged"):
        Plan.from_parquet(content[:-100])
    table = pq.read_table(pa.BufferReader(content))
    for wrong in (table.drop_columns(["unit"]), table.slice(10), table.take(list(range(49, -1, -1))), table.slice(50)):
        sink = pa.BufferOutputStream()
        pq.write_table(wrong, sink)
        with pytest.raises(DatasetError, match=r"plan\.parquet is damaged"):
            Plan.from_parquet(sink.getvalue().to_pybytes())


@given(FILES, st.floats(1, 500))
def test_bundles_hold_every_input_once(files, seconds):
    """In any order, since the part sorts its rows; and with padding they keep to their length."""
    bundles = cut_bundles(files, seconds)
    assert sorted(file.id for bundle in bundles for file in bundle) == [file.id for file in files]
    for bundle in bundles:
        assert len(bundle) == 1 or len(bundle) * max(map(estimate_seconds, bundle)) <= seconds


def test_rows_of_one_row_group_are_read_one_after_another():
    """They have equal estimates, and ids in another order than their places."""
    files = [SourceFile(f"{9 - row}", f"/{uri}.parquet", 32_000, offset=row) for row in range(9) for uri in "ba"]
    (bundle,) = cut_bundles(files, 1e9)
    assert [(file.uri, file.offset) for file in bundle] == [
        (f"/{uri}.parquet", row) for uri in "ab" for row in range(9)
    ]


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 1000))
def test_batches_hold_every_waveform_once_within_the_limit(lengths, most):
    """Padding counts; only a single waveform may be longer than the limit."""
    batches = compose_batches(lengths, most)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= most


def test_a_short_waveform_is_not_padded_to_a_long_one_where_batches_are_full_without():
    """Padding is wasted work: of mixed lengths little is left, and equal lengths still fill their batches."""
    lengths = [1000 + 37 * (i % 100) for i in range(2000)]
    batches = compose_batches(lengths, 120_000)
    padded = sum(len(batch) * max(lengths[position] for position in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.03
    assert max(map(len, compose_batches([1000] * 300, 120_000))) == 120
    assert len(compose_batches([100, 1000, 1100], 120_000)) == 1  # too little to be worth a pass of its own


def test_differences_are_told_in_words():
    """New, gone and changed inputs are named."""
    before = listing_of([SourceFile("a.wav", "/a.wav", 1), SourceFile("b.wav", "/b.wav", 2)])
    after = listing_of([SourceFile("b.wav", "/b.wav", 3), SourceFile("c.wav", "/c.wav", 1)])
    text = describe_difference(make_plan(before, 10), after)
    assert text == "1 new (c.wav); 1 gone (a.wav); 1 of another size or place (b.wav)"
    assert describe_difference(make_plan(before, 10), before) is None


def test_differences_beside_the_audio_are_told_too():
    """Changed transcripts, and columns that came, went or changed their type; a NaN that stays is no difference."""
    listing = listing_of([SourceFile("a.wav", "/a.wav", 1), SourceFile("b.wav", "/b.wav", 2)])
    columns = {"text": ["x", "y"], "age": [1, 2], "gone": [0, 0], "score": [math.nan, 1.0]}
    plan = make_plan(with_extra(listing, pa.table(columns)), 10)
    now = {"text": ["x", "z"], "age": [1.0, 2.0], "fresh": [0, 0], "score": [math.nan, 1.0]}
    assert describe_difference(plan, with_extra(listing, pa.table(now))) == (
        "2 with other values beside the audio (a.wav, b.wav); 1 new column(s) (fresh); 1 column(s) gone (gone); "
        "1 column(s) of another type (age)"
    )
    same = {**columns, "text": ["x", "z"]}
    assert describe_difference(plan, with_extra(listing, pa.table(same))) == (
        "1 with other values beside the audio (b.wav)"
    )
