"""The source reader: every kind of input is a stream from 0 to its size, on a disk and in S3."""

import io

import numpy as np
import pytest

from pipelines import storage
from pipelines.datasets.listing import SourceFile, files_of
from pipelines.inputs import range_stream
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import list_source
from tests.pipelines.inputs.archives import write_audio_parquet, write_tar
from tokenizer import AudioError


@pytest.fixture
def corpus(tmp_path):
    """A folder with one input of each kind, all of the same bytes, and neighbours of other ones."""
    content = np.random.default_rng(0).bytes(100_000)
    folder = tmp_path / "corpus"
    write_tar(folder / "0.tar", {"before.wav": b"\1" * 700, "x.wav": content, "behind.wav": b"\2" * 700})
    write_audio_parquet(folder / "0.parquet", [b"\1", content, b"\2"], {"id": ["before", "x", "behind"]})
    (folder / "x.wav").write_bytes(content)
    return folder, content


def inputs(source):
    """The inputs named x."""
    return [file for file in files_of(list_source(source)) if file.id.rpartition("/")[2].split(".")[0] == "x"]


def check_like_bytes(stream, content):
    """The stream does what BytesIO does."""
    twin, chance = io.BytesIO(content), np.random.default_rng(1)
    for _ in range(200):
        whence = int(chance.integers(3))
        offset = int(chance.integers(120_000)) - (0, twin.tell(), len(content))[whence]
        assert stream.seek(offset, whence) == twin.seek(offset, whence)
        size = (0, 1, 100, 50_000, -1)[chance.integers(5)]
        assert stream.read(size) == twin.read(size)
        assert stream.tell() == twin.tell()


def test_all_kinds_of_inputs_read_alike(corpus):
    """Wherever one seeks: the neighbours in an archive are never seen."""
    folder, content = corpus
    files = inputs(folder)
    assert len(files) == 3
    with SourceReader() as reader:
        for file in [*files, *reversed(files)]:
            with reader.open(file) as stream:
                check_like_bytes(stream, content)


@pytest.mark.parametrize("whole_bytes", [2**20, 0], ids=["one request", "ranges"])
def test_all_kinds_of_inputs_read_alike_in_s3(corpus, bucket, monkeypatch, whole_bytes):
    """Small ones with one request, large ones by ranges."""
    folder, content = corpus
    monkeypatch.setattr(range_stream, "_WHOLE_BYTES", whole_bytes)
    for path in folder.iterdir():
        storage.commit(f"{bucket}/corpus/{path.name}", path.read_bytes())
    files = inputs(f"{bucket}/corpus")
    assert len(files) == 3
    with SourceReader() as reader:
        for file in files:
            with reader.open(file) as stream:
                check_like_bytes(stream, content)


def test_missing_files_are_os_errors(tmp_path, bucket):
    """A file, a shard or rows that are not there any more, on a disk or in S3."""
    with SourceReader() as reader:
        for root in (tmp_path, f"{bucket}/corpus"):
            for file in (
                SourceFile("x", f"{root}/x.wav", 10),
                SourceFile("x", f"{root}/0.tar", 10, "x.wav", 512),
                SourceFile("x", f"{root}/0.tar"),
                SourceFile("x", f"{root}/0.parquet", 10, None, 0),
            ):
                with pytest.raises(FileNotFoundError):
                    reader.open(file)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_member_behind_the_end_of_its_archive_is_an_audio_error(corpus, bucket, place):
    """The shard has been cut since it was listed: a shorter waveform would be wrong."""
    folder, _ = corpus
    (member,) = [file for file in inputs(folder) if file.member]
    for cut in (member.offset + 100, member.offset, 100):
        content = (folder / "0.tar").read_bytes()[:cut]
        uri = f"{bucket}/0.tar" if place == "s3" else str(folder / "cut.tar")
        storage.commit(uri, content)
        with SourceReader() as reader, pytest.raises(AudioError, match=r"x\.wav: the archive ends"):
            reader.open(SourceFile("x", uri, member.size, member.member, member.offset))


def test_streams_know_their_names(corpus):
    """So that errors say which member or row was bad."""
    folder, _ = corpus
    with SourceReader() as reader:
        names = []
        for file in inputs(folder):
            with reader.open(file) as stream:
                names.append(stream.name)
    assert names == [f"{folder}/0.parquet, row 1", f"{folder}/0.tar, member x.wav", f"{folder}/x.wav"]


def test_a_row_group_is_read_once_for_all_of_its_rows(tmp_path, monkeypatch):
    """As long as they are asked for one after another."""
    path = write_audio_parquet(tmp_path / "0.parquet", [bytes([row]) for row in range(20)], row_group_size=5)
    opened = []
    place = "pipelines.inputs.source_reader.open_scattered"
    monkeypatch.setattr(place, lambda uri: opened.append(uri) or open(uri, "rb"))  # noqa: PTH123, SIM115
    groups = []
    real = __import__("pipelines.inputs.parquet_audio", fromlist=["RowGroup"]).RowGroup
    monkeypatch.setattr("pipelines.inputs.source_reader.RowGroup", lambda *args: groups.append(args[2]) or real(*args))
    with SourceReader() as reader:
        for file in sorted(files_of(list_source(path)), key=lambda file: file.offset):
            assert reader.open(file).read() == bytes([file.offset])
    assert (opened, groups) == ([str(path)], [0, 5, 10, 15])
