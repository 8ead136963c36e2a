"""Files that appear whole or not at all."""

import pytest

from pipelines import storage
from tokenizer import DatasetError


def test_a_commit_replaces_the_file_whole(tmp_path):
    """The new content under the name, and nothing beside it."""
    uri = str(tmp_path / "deep" / "file")
    storage.commit(uri, b"one")
    storage.commit(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_failed_commit_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk in the middle: the old content stays, no temporary file does."""
    uri = str(tmp_path / "file")
    storage.commit(uri, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.commit(uri, b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    """And nothing else is."""
    (tmp_path / ".quantone-tmp-1").write_bytes(b"half")
    (tmp_path / "part").write_bytes(b"whole")
    storage.remove_temporaries(str(tmp_path))
    assert storage.list_names(str(tmp_path)) == ["part"]


def test_other_schemes_are_refused():
    """Only local paths and s3://."""
    with pytest.raises(DatasetError, match="gs://"):
        storage.absolute("gs://bucket/x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
