"""Committing a unit: one part, its errors, its record, and every input in exactly one place."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.corpus.encoder import EncodedBundle
from pipelines.corpus.unit_commit import Target, UnitInputs, commit_unit
from pipelines.datasets.commit_record import CommitRecord
from pipelines.datasets.parts import ErrorRow, encode_part, part_name
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.token_rows import part_format, token_row

NAMES = ["c.wav", "a.wav", "b.wav"]
EXTRA = pa.table({"text": ["see", "ay", None]})
FORM = part_format(make_codec(tiny_spec()))


def unit(extra=EXTRA):
    """Three inputs."""
    return UnitInputs(4, NAMES, [f"/x/{name}" for name in NAMES], extra)


def row(name, value=0, **fields):
    """Of five frames of one code."""
    return token_row(name, np.full((4, 5), value), **fields)


def failure(name, message="broken"):
    """Of an input."""
    return ErrorRow(name, f"/x/{name}", "AudioError", message)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A dataset's place."""
    return str(tmp_path / "tokens") if request.param == "local" else request.getfixturevalue("bucket") + "/tokens"


def read(root, kind):
    """The rows of unit 4 in parts or errors, or None where there is no such file."""
    uri = storage.join(root, kind, part_name(4))
    return pl.read_parquet(io.BytesIO(storage.read_bytes(uri))) if storage.find_file(uri) else None


def records(root):
    """The records, parsed, by name."""
    names = storage.list_names(storage.join(root, "records"))
    return {name: CommitRecord.from_json(storage.read_bytes(storage.join(root, "records", name))) for name in names}


def test_rows_stand_in_listing_order_with_what_travels(root):
    """Whatever order they were encoded in; errors apart."""
    bundles = [EncodedBundle([row("b.wav"), failure("a.wav")], 2.0), EncodedBundle([row("c.wav", 3)], 1.0)]
    result = commit_unit(unit(), Target(root, FORM), *bundles)
    assert (result.num_ok, result.num_rows, result.errors, result.padded_seconds) == (2, 2, {"AudioError": 1}, 3.0)
    assert read(root, "parts").select("id", "text").rows() == [("c.wav", "see"), ("b.wav", None)]
    assert read(root, "errors").rows() == [("a.wav", "/x/a.wav", "AudioError", "broken")]
    ((name, record),) = records(root).items()
    assert name == f"part-00004.{record.part.sha256[:16]}.json"
    assert (record.part.num_rows, record.errors.num_rows) == (2, 1)


def test_segments_follow_one_another_and_share_what_travels(root):
    """An input that was cut has as many rows, each with the columns of its input."""
    cut = [row(f"a.wav#{i:04d}", i, input_id="a.wav", start_sample=40 * i) for i in (2, 0, 1)]
    result = commit_unit(unit(), Target(root, FORM), EncodedBundle([*cut, row("b.wav"), row("c.wav")], 1.0))
    assert (result.num_ok, result.num_rows) == (3, 5)
    found = read(root, "parts")
    assert found["id"].to_list() == ["c.wav", "a.wav#0000", "a.wav#0001", "a.wav#0002", "b.wav"]
    assert found["start_sample"].to_list() == [0, 0, 40, 80, 0]
    assert found["text"].to_list() == ["see", "ay", "ay", "ay", None]


def test_an_input_of_which_a_segment_failed_is_an_error_as_a_whole(root):
    """Once, by what went wrong first: half a recording would pass for a whole one."""
    cut = [row("a.wav#0000", input_id="a.wav"), failure("a.wav", "first"), failure("a.wav", "second")]
    result = commit_unit(unit(), Target(root, FORM), EncodedBundle([*cut, row("b.wav"), row("c.wav")], 1.0))
    assert (result.num_ok, result.num_rows, result.errors) == (2, 2, {"AudioError": 1})
    assert read(root, "parts")["input_id"].to_list() == ["c.wav", "b.wav"]
    assert read(root, "errors")["message"].to_list() == ["first"]


def test_errors_of_a_killed_attempt_go_when_the_next_one_has_none(root):
    """And its record counts none."""
    storage.commit(storage.join(root, "errors", part_name(4)), b"of before")
    commit_unit(unit(), Target(root, FORM), EncodedBundle([row(name) for name in NAMES], 1.0))
    assert read(root, "errors") is None
    assert [record.errors for record in records(root).values()] == [None]


def test_errors_of_another_job_stay_until_there_is_a_part(root, monkeypatch):
    """Killed between its record and its part, this job must not have taken away where the other's inputs are."""
    storage.commit(storage.join(root, "errors", part_name(4)), b"of the other job")

    def die(uri, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "create", die)
    with pytest.raises(KeyboardInterrupt):
        commit_unit(unit(), Target(root, FORM), EncodedBundle([row(name) for name in NAMES], 1.0))
    assert storage.read_bytes(storage.join(root, "errors", part_name(4))) == b"of the other job"


def test_a_part_that_is_there_stays_and_nothing_beside_it_changes(root):
    """The second of two jobs on one dataset does no harm."""
    target = Target(root, FORM)
    commit_unit(unit(), target, EncodedBundle([row("a.wav"), row("b.wav"), failure("c.wav")], 1.0))
    before = [read(root, "parts"), read(root, "errors")]
    commit_unit(unit(), target, EncodedBundle([row(name, 9) for name in NAMES], 1.0))
    for kind, frame in zip(("parts", "errors"), before, strict=True):
        assert read(root, kind).equals(frame)


def test_of_two_jobs_that_commit_at_once_one_part_stays_and_the_errors_fit_it(root, monkeypatch):
    """Each input in exactly one place, although both had written errors of their own."""
    theirs = encode_part([row("a.wav", 7), row("c.wav", 7)], FORM, EXTRA.take([1, 0]))
    part_uri, create = storage.join(root, "parts", part_name(4)), storage.create

    def late(uri, content):
        storage.commit(part_uri, theirs)  # between our look and our own try
        return create(uri, content)

    monkeypatch.setattr(storage, "create", late)
    commit_unit(unit(), Target(root, FORM), EncodedBundle([row("c.wav"), row("b.wav"), failure("a.wav")], 1.0))
    assert storage.read_bytes(part_uri) == theirs
    assert read(root, "errors").select("id", "error").rows() == [("b.wav", "unknown")]
    ((name, record),) = records(root).items()
    assert name == f"part-00004.{record.part.sha256[:16]}.json"
    assert (record.part.num_rows, record.errors.num_rows) == (2, 1)


def test_the_very_same_part_written_twice_is_no_conflict(root):
    """Twins agree byte for byte, and each may believe that it was the first."""
    content = Path(__file__).read_bytes()
    assert storage.create(storage.join(root, "x"), content)
    assert storage.create(storage.join(root, "x"), content)
    assert not storage.create(storage.join(root, "x"), b"something else")
    assert storage.read_bytes(storage.join(root, "x")) == content
