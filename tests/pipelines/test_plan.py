"""Plans: the same listing gives the same units, and nothing is lost between them."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.plan import Plan, compose_batches, cut_bundles, describe_difference, estimate_seconds, make_plan
from pipelines.sources import SourceFile

FILES = st.lists(st.integers(0, 10**7), min_size=1, max_size=40).map(
    lambda sizes: [SourceFile(f"{i:03d}.wav", f"/x/{i:03d}.wav", size) for i, size in enumerate(sizes)]
)


@given(FILES, st.floats(1, 500))
def test_units_hold_every_file_once_and_in_order(files, seconds):
    """Whatever the sizes; and a unit passes its length only if it is a single file."""
    plan = make_plan(files, seconds)
    assert plan.files == files
    for unit in plan.units:
        assert len(unit) == 1 or sum(map(estimate_seconds, unit)) <= seconds


@given(FILES, st.floats(1, 500))
def test_plans_survive_parquet(files, seconds):
    """Written and read back it is the same plan, with the same identity."""
    plan = make_plan(files, seconds)
    assert Plan.from_parquet(plan.to_parquet()) == plan
    assert Plan.from_parquet(plan.to_parquet()).sha256 == plan.sha256


@given(FILES, st.floats(1, 500))
def test_bundles_hold_every_file_once(files, seconds):
    """In any order, since the part sorts its rows."""
    bundles = cut_bundles(files, seconds)
    assert sorted(file.id for bundle in bundles for file in bundle) == [file.id for file in files]


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 1000))
def test_batches_hold_every_waveform_once_within_the_limit(lengths, most):
    """Padding counts; only a single waveform may be longer than the limit."""
    batches = compose_batches(lengths, most)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= most


def test_differences_are_told_in_words():
    """New, gone and changed files are named."""
    before = [SourceFile("a.wav", "/a.wav", 1), SourceFile("b.wav", "/b.wav", 2)]
    after = [SourceFile("b.wav", "/b.wav", 3), SourceFile("c.wav", "/c.wav", 1)]
    text = describe_difference(before, after)
    assert text == "1 new (c.wav); 1 gone (a.wav); 1 of another size or place (b.wav)"
    assert describe_difference(before, before) is None
