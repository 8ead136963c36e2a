"""Tar shards: all audio in them is found by their headers, and damage takes only what it has damaged."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.datasets.listing import SourceFile, files_of
from pipelines.inputs.range_stream import open_scattered
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import is_audio
from pipelines.inputs.tar_index import index_tar
from tests.pipelines.inputs.archives import write_tar
from tokenizer import AudioError

FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
CONTENTS = st.lists(st.tuples(NAMES.map(lambda name: f"clips/_{name}.wav"), st.binary(max_size=1100)), max_size=5)


def index(path):
    """The listing of a shard under its name."""
    return index_tar(path.name, storage.StoredFile(str(path), path.stat().st_size), is_audio)


def read(file):
    """All bytes of an input."""
    with SourceReader() as reader, reader.open(file) as stream:
        return stream.read()


@settings(max_examples=50, deadline=None)
@given(contents=CONTENTS, tar_format=st.sampled_from(FORMATS))
def test_members_read_back_as_they_were_written(tmp_path_factory, contents, tar_format):
    """Whatever their names and sizes, also of two members of one name."""
    path = write_tar(tmp_path_factory.getbasetemp() / "any.tar", contents, tar_format)
    files = files_of(index(path))
    assert [(file.id, read(file)) for file in files] == [(f"any.tar/{name}", content) for name, content in contents]
    assert all(file.size == len(content) for file, (_, content) in zip(files, contents, strict=True))


def test_what_stands_beside_the_audio_becomes_columns(tmp_path):
    """By WebDataset's keys; values keep their types, what a member lacks is null, and nothing is lost by a clash."""
    members = {
        "a/1.wav": b"x",
        "a/1.txt": "schön".encode(),
        "a/1.json": b'{"age": 7, "tags": ["p", "q"], "text": "other", "duration_s": 2.5}',
        "a/2.mic.flac": b"x",
        "a/2.other.flac": b"x",
        "a/2.cls": b"3\n",
        "3.opus": b"x",
        "3.json": b"[not an object]",
        "4.txt": b"no audio",
        "5.ogg": b"x",
    }
    rows = {row.pop("id"): row for row in index(write_tar(tmp_path / "0.tar", members)).to_pylist()}
    first = rows["0.tar/a/1.wav"]
    assert (first["text"], first["json_text"], first["age"], first["tags"]) == ("schön", "other", 7, ["p", "q"])
    assert first["manifest_duration_s"] == 2.5
    assert rows["0.tar/a/2.mic.flac"]["label"] == rows["0.tar/a/2.other.flac"]["label"] == 3
    assert rows["0.tar/3.opus"]["json"] == "[not an object]"
    assert len(rows) == 5
    assert {rows["0.tar/5.ogg"][name] for name in ("text", "age", "label", "json", "duration_s")} == {None}


def test_hidden_members_and_folders_are_left_out(tmp_path):
    """macOS puts `._x.wav` beside x.wav; a name that begins with ./ is not hidden."""
    path = write_tar(tmp_path / "0.tar", {"./x.wav": b"1", "._x.wav": b"2", ".git/y.wav": b"3", "z/._y.wav": b"4"})
    assert [file.id for file in files_of(index(path))] == ["0.tar/x.wav"]


def test_a_name_inside_an_archive_is_never_a_path(tmp_path):
    """Not even one that leads out of the archive: what is read are the member's own bytes."""
    (tmp_path / "secret.wav").write_bytes(b"secret")
    path = write_tar(tmp_path / "shards" / "0.tar", {"../secret.wav": b"own", str(tmp_path / "secret.wav"): b"own too"})
    assert [read(file) for file in files_of(index(path))] == [b"own", b"own too"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "soft"])
def test_links_are_listed_and_refused_when_read(tmp_path, kind):
    """They do not disappear, and are not followed."""
    (tmp_path / "outside.wav").write_bytes(b"secret")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("x.wav")
        link.type, link.linkname = kind, str(tmp_path / "outside.wav")
        archive.addfile(link)
    (file,) = files_of(index(tmp_path / "0.tar"))
    with pytest.raises(AudioError, match=r"member x\.wav: a link"):
        read(file)


@pytest.mark.parametrize("tar_format", FORMATS, ids=["gnu", "pax"])
def test_a_shard_that_was_cut_gives_what_is_whole_and_one_input_for_the_rest(tmp_path, tar_format):
    """At every 100th byte: each member before the cut reads back, and the shard itself tells how it ends."""
    contents = {f"{i}{'long' * 40 if i == 1 else ''}.wav": bytes([i]) * 700 for i in range(3)}
    whole = write_tar(tmp_path / "whole.tar", contents, tar_format)
    content = whole.read_bytes()
    ends = [file.offset + file.size for file in files_of(index(whole))]
    for cut in range(0, ends[-1] + 1000, 100):
        path = tmp_path / "cut.tar"
        path.write_bytes(content[:cut])
        files = files_of(index(path))
        members, rest = [file for file in files if file.member], [file for file in files if not file.member]
        present = [data for data, end in zip(contents.values(), ends, strict=True) if end <= cut]
        assert [read(file) for file in members] == present
        if cut <= ends[-1] + 324:  # then the padding is there, and the mark at the end begins
            (damage,) = rest
            assert damage.id == "cut.tar"
            with pytest.raises(AudioError, match=r"cut\.tar: damaged at byte \d+: "):
                read(damage)


def test_a_damaged_header_ends_the_shard_in_one_failing_input(tmp_path):
    """Python's tarfile would take it for the end and say nothing."""
    path = write_tar(tmp_path / "0.tar", {f"{i}.wav": b"x" * 600 for i in range(4)})
    content = bytearray(path.read_bytes())
    (_, second, *_) = files_of(index(path))
    content[second.offset - 300] ^= 1
    path.write_bytes(content)
    first, damage = files_of(index(path))
    assert (first.member, read(first)) == ("0.wav", b"x" * 600)
    assert damage == SourceFile("0.tar", str(path), offset=second.offset - 512)
    with pytest.raises(AudioError, match=f"damaged at byte {second.offset - 512}: "):
        read(damage)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=30))
def test_no_damage_stops_the_listing(tmp_path_factory, flips):
    """Any bytes: a listing in the end, and nothing but an AudioError or bytes when its inputs are read."""
    contents = {"0.wav": b"x" * 600, "é.json": b"{}", "1.wav": b"y"}
    path = write_tar(tmp_path_factory.getbasetemp() / "flipped.tar", contents)
    content = bytearray(path.read_bytes())
    for position, value in flips:
        content[position] = value
    path.write_bytes(content)
    for file in files_of(index(path)):
        with contextlib.suppress(AudioError):
            read(file)


def test_a_header_that_leads_backwards_does_not_lead_in_a_circle(tmp_path):
    """A negative size, with a checksum that is right: one member and one failing input, and an end."""
    path = write_tar(tmp_path / "0.tar", {"0.wav": b"x", "1.wav": b"y"})
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    header[124:136] = (-2048).to_bytes(12, "big", signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    content[1024:1536] = header
    path.write_bytes(content)
    assert [file.id for file in files_of(index(path))] == ["0.tar/0.wav", "0.tar"]


def test_archives_put_one_behind_the_other_are_all_read(tmp_path):
    """`cat a.tar b.tar`: tar itself would stop after the first one."""
    parts = [write_tar(tmp_path / f"{i}.tar", {f"{i}.wav": bytes([i])}).read_bytes() for i in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert [read(file) for file in files_of(index(tmp_path / "all.tar"))] == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"<html>" * 200, "damaged at byte 0"), (b"\x1f\x8b" * 600, "compressed")]
)
def test_what_is_no_tar_is_one_failing_input(tmp_path, content, reason):
    """With the reason, when it is read."""
    (tmp_path / "0.tar").write_bytes(content)
    (file,) = files_of(index(tmp_path / "0.tar"))
    with pytest.raises(AudioError, match=reason):
        read(file)


def test_a_shard_mended_after_the_listing_says_so(tmp_path):
    """The plan lacks its members: the job must not seem complete."""
    path = write_tar(tmp_path / "0.tar", {"0.wav": b"x"})
    with pytest.raises(AudioError, match="could not be read when it was listed"):
        read(SourceFile("0.tar", str(path), offset=0))


def bytes_read_from_s3(path, bucket, monkeypatch):
    """What listing a shard takes from S3."""
    storage.commit(f"{bucket}/0.tar", path.read_bytes())
    opened = []

    def remember(uri):
        stream = open_scattered(uri)
        opened.append(stream.cache)
        return stream

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.inputs.tar_index.open_scattered", remember)
        index_tar("0.tar", storage.StoredFile(f"{bucket}/0.tar", path.stat().st_size), is_audio)
    return opened[0].total_requested_bytes


def test_listing_reads_headers_and_not_the_audio(tmp_path, bucket, monkeypatch):
    """A shard of 40 MB costs some kilobytes from a disk, and a few requests of 2 MiB to S3."""

    class Counted(io.FileIO):
        total = 0

        def readinto(self, buffer):
            count = super().readinto(buffer)
            Counted.total += count
            return count

    path = write_tar(tmp_path / "0.tar", {f"{i}.wav": bytes(10_000_000) for i in range(4)})
    assert 0 < bytes_read_from_s3(path, bucket, monkeypatch) < 10_000_000
    monkeypatch.setattr("pipelines.inputs.tar_index.open_scattered", lambda uri: io.BufferedReader(Counted(uri)))
    assert len(files_of(index(path))) == 4
    assert 0 < Counted.total < 200_000
