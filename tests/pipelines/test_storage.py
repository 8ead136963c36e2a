"""Storage: files appear whole or not at all, on a local disk and in S3 alike."""

import errno
import os

import pytest
from botocore.exceptions import ClientError

from pipelines import s3_server, storage
from tokenizer import DatasetError


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A place to write to."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket") + "/root"


def test_what_is_committed_can_be_read_listed_and_removed(root):
    """And committing again replaces it."""
    uri = storage.join(root, "parts", "part-00001.parquet")
    assert storage.find_file(uri) is None
    assert storage.list_names(storage.join(root, "parts")) == []
    storage.commit(uri, b"one")
    storage.commit(uri, b"two!")
    storage.commit(storage.join(root, "parts", "part-00000.parquet"), b"")
    assert storage.read_bytes(uri) == b"two!"
    assert storage.find_file(uri) == storage.StoredFile(uri, 4)
    assert storage.list_names(storage.join(root, "parts")) == ["part-00000.parquet", "part-00001.parquet"]
    assert storage.is_directory(root)
    storage.remove(uri)
    storage.remove(uri)
    assert storage.find_file(uri) is None


@pytest.mark.parametrize("size", [None, 10])
def test_opened_files_are_seekable_and_know_their_name(root, size):
    """Decoders seek, and error messages name the file."""
    uri = storage.join(root, "x.wav")
    storage.commit(uri, b"0123456789")
    with storage.open_input(uri, size) as stream:
        stream.seek(4)
        assert stream.read(2) == b"45"
        assert str(getattr(stream, "name", uri)).endswith("root/x.wav")


def test_what_is_not_there_raises_one_error(root):
    """FileNotFoundError, wherever it is not."""
    for read in (storage.read_bytes, storage.open_input, lambda uri: storage.open_input(uri, 10)):
        with pytest.raises(FileNotFoundError):
            read(storage.join(root, "nothing"))


def test_a_failed_commit_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """As if it had never been tried: here the disk fails just before the rename."""
    uri = str(tmp_path / "x")
    storage.commit(uri, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            storage.commit(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["x"]  # noqa: PTH208 - hidden names matter here


def test_temporaries_of_killed_writers_are_removed_and_nothing_else(tmp_path, monkeypatch):
    """A writer that was killed had no chance to clean up."""
    with monkeypatch.context() as patch:
        patch.setattr(storage.Path, "replace", lambda *_: None)
        patch.setattr(storage.Path, "unlink", lambda *_, **__: None)
        storage.commit(str(tmp_path / "x"), b"half")
    (tmp_path / "y").write_bytes(b"kept")
    assert len(storage.list_names(str(tmp_path))) == 2
    storage.remove_temporaries(str(tmp_path))
    assert storage.list_names(str(tmp_path)) == ["y"]


def test_locations_become_absolute_and_other_schemes_are_refused(tmp_path, monkeypatch):
    """Workers run in other directories."""
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b/") == str(tmp_path / "b")
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    with pytest.raises(DatasetError, match="https"):
        storage.absolute("https://example.org/speech")


@pytest.mark.parametrize("hard_links", [True, False], ids=["with hard links", "without"])
def test_a_file_is_created_once(tmp_path, monkeypatch, hard_links):
    """Also on file systems that know no second name for a file; nothing is left beside it."""
    if not hard_links:

        def link(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    uri = str(tmp_path / "x")
    assert storage.create(uri, b"first")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.list_names(str(tmp_path)) == ["x"]


def test_a_conflict_of_two_that_write_at_once_is_tried_again(bucket, monkeypatch):
    """S3 answers 409 to a conditional PUT that meets another one of the same name: neither won nor lost yet."""
    conflict = ClientError({"ResponseMetadata": {"HTTPStatusCode": 409}, "Error": {}}, "PutObject")
    write, calls = storage._create_once, []

    def meet_another(uri, content):
        calls.append(uri)
        if len(calls) < 3:
            raise OSError("ConditionalRequestConflict") from conflict
        write(uri, content)

    monkeypatch.setattr(storage, "_create_once", meet_another)
    monkeypatch.setattr(storage, "_CONFLICT_PAUSE_S", (0.0, 0.0))
    assert storage.create(f"{bucket}/new", b"ours")
    assert not storage.create(f"{bucket}/new", b"theirs")
    assert (storage.read_bytes(f"{bucket}/new"), len(calls)) == (b"ours", 4)


def test_a_server_that_refuses_is_reachable_and_one_that_is_gone_is_not(bucket, monkeypatch):
    """A bucket that is not there is an answer; silence is none."""
    assert s3_server.is_reachable(f"{bucket}/anything")
    assert s3_server.is_reachable("s3://no-such-bucket-here/anything")
    gone = OSError("Service Unavailable")
    monkeypatch.setattr(s3_server.filesystem(), "call_s3", lambda *_, **__: (_ for _ in ()).throw(gone), raising=False)
    assert not s3_server.is_reachable(f"{bucket}/anything")
