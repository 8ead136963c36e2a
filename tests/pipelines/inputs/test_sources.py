"""Sources: which files a job takes on, under which names, in which order."""

import os

import pytest

from pipelines import storage
from pipelines.datasets.listing import LISTING_SCHEMA, files_of
from pipelines.inputs.sources import list_source
from tests.pipelines.inputs.archives import write_audio_parquet, write_tar
from tokenizer import DatasetError


def ids_of(source):
    """What a listing of the source has in its column `id`."""
    return list_source(source).column("id").to_pylist()


@pytest.fixture
def tree(tmp_path):
    """Audio at several depths, and things that are none."""
    for name in [
        "b.wav",
        "a/2.FLAC",
        "a/1.mp3",
        "a/deep/er/3.opus",
        "notes.txt",
        ".hidden.wav",
        ".git/4.wav",
        "a.wav/5.aiff",
    ]:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return tmp_path / "tree"


def test_directories_are_searched_to_any_depth(tree):
    """Ids are paths below the source, sorted; hidden names and other extensions are left out; case does not matter."""
    listing = list_source(tree)
    files = files_of(listing)
    assert listing.schema == LISTING_SCHEMA
    assert [file.id for file in files] == ["a.wav/5.aiff", "a/1.mp3", "a/2.FLAC", "a/deep/er/3.opus", "b.wav"]
    assert all(file.uri == str(tree / file.id) for file in files)
    assert [file.size for file in files] == [len(file.id) for file in files]


def test_a_listing_does_not_depend_on_how_the_source_is_written(tree, monkeypatch):
    """Relative, with a slash at its end, or absolute: the same ids and uris."""
    monkeypatch.chdir(tree.parent)
    listing = list_source(tree)
    assert all(list_source(name).equals(listing) for name in ("tree", f"{tree}/", "./tree/../tree"))


def test_one_file_is_a_source(tree):
    """Its id is its name."""
    assert ids_of(tree / "a" / "1.mp3") == ["1.mp3"]


def test_a_pattern_is_a_source(tree):
    """Ids start after the last directory without a wildcard."""
    assert ids_of(f"{tree}/a/*.*") == ["1.mp3", "2.FLAC"]
    assert ids_of(f"{tree}/**/*.opus") == ["a/deep/er/3.opus"]


def test_a_directory_with_wildcards_in_its_name_is_a_directory(tmp_path):
    """What exists under the very name wins over the pattern."""
    folder = tmp_path / "take[1]*"
    folder.mkdir()
    (folder / "x.wav").write_bytes(b"x")
    assert ids_of(folder) == ["x.wav"]


def test_links_to_files_count_and_links_to_directories_do_not(tree):
    """A corpus of links is a corpus; a link to its own parent must not be walked for ever."""
    (tree / "link.wav").symlink_to(tree / "b.wav")
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "broken.wav").symlink_to(tree / "nothing.wav")
    ids = ids_of(tree)
    assert "link.wav" in ids
    assert "broken.wav" not in ids
    assert not any("loop" in name for name in ids)


def test_names_that_are_not_utf8_are_listed_escaped(tree):
    """So that they can end as an error row instead of in a dead job."""
    with open(os.fsencode(tree) + b"/caf\xe9.wav", "wb") as stream:  # noqa: PTH123 - a Path takes no bytes
        stream.write(b"x")
    assert "caf\\udce9.wav" in ids_of(tree)


@pytest.mark.parametrize(
    "source", ["nowhere", "nowhere/*.wav", "tree/notes.txt", "tree/a/deep/*", "https://example.org/x"]
)
def test_a_source_without_audio_is_refused(tree, monkeypatch, source):
    """With the name as it was given."""
    monkeypatch.chdir(tree.parent)
    with pytest.raises(DatasetError, match=source.split("/")[0]):
        list_source(source)


def test_s3_prefixes_files_and_patterns_are_sources(bucket):
    """The same ids as on a local disk."""
    for name in ["b.wav", "a/1.mp3", "a/deep/2.flac", "notes.txt", ".hidden/3.wav"]:
        storage.commit(f"{bucket}/speech/{name}", b"x")
    assert ids_of(f"{bucket}/speech/") == ["a/1.mp3", "a/deep/2.flac", "b.wav"]
    assert ids_of(f"{bucket}/speech/b.wav") == ["b.wav"]
    assert ids_of(f"{bucket}/speech/a/*.mp3") == ["1.mp3"]
    assert files_of(list_source(f"{bucket}/speech"))[0].uri == f"{bucket}/speech/a/1.mp3"
    for missing in (f"{bucket}/nothing", "s3://no-such-bucket-here/speech"):
        with pytest.raises(DatasetError, match="no such file"):
            list_source(missing)


def test_a_directory_may_mix_files_shards_and_parquet(tree):
    """One listing of all audio, with the columns that travel from some of it; the others have null there."""
    write_tar(tree / "shards" / "0.tar", {"x.wav": b"1", "x.txt": b"hello", "y.wav": b"22"})
    write_audio_parquet(tree / "rows.parquet", [b"333"], {"text": ["there"], "speaker": [7]})
    listing = list_source(tree)
    assert listing.column_names == [*LISTING_SCHEMA.names, "text", "speaker"]
    texts = {row["id"]: (row["text"], row["speaker"]) for row in listing.to_pylist()}
    assert texts["shards/0.tar/x.wav"] == ("hello", None)
    assert texts["shards/0.tar/y.wav"] == texts["b.wav"] == (None, None)
    assert texts["rows.parquet/0"] == ("there", 7)
    assert len(texts) == 8


def test_a_pattern_may_choose_shards(tree):
    """And ids are those below the pattern's fixed part."""
    for name in ("0.tar", "1.tar"):
        write_tar(tree / "shards" / name, {"x.wav": b"1"})
    assert ids_of(f"{tree}/shards/*.tar") == ["0.tar/x.wav", "1.tar/x.wav"]
    assert ids_of(tree / "shards" / "1.tar") == ["1.tar/x.wav"]


def test_columns_of_two_kinds_meet_as_text(tree):
    """A number in one shard and a word in the other: both are kept."""
    write_tar(tree / "0.tar", {"x.wav": b"1", "x.json": b'{"age": 41}'})
    write_tar(tree / "1.tar", {"x.wav": b"1", "x.json": b'{"age": "old"}'})
    assert list_source(f"{tree}/*.tar").column("age").to_pylist() == ["41", "old"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "deep/a.TAR.XZ"])
def test_compressed_archives_are_refused(tree, name):
    """By name, wherever they are: skipping them would lose what is in them."""
    path = tree / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    for source in (tree, path):
        with pytest.raises(DatasetError, match=r"compressed archive cannot be read by member"):
            list_source(source)


def test_a_token_dataset_is_no_source(tmp_path):
    """Its plan is Parquet, but nobody meant to tokenize it."""
    for name in ("dataset.json", "plan.parquet", "x.wav"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match="a token dataset"):
        list_source(tmp_path)


def test_names_that_look_alike_once_escaped_stay_apart(tree):
    """Every input has an id of its own."""
    with open(os.fsencode(tree) + b"/\xe9.wav", "wb") as stream:  # noqa: PTH123 - a Path takes no bytes
        stream.write(b"x")
    (tree / "\\udce9.wav").write_bytes(b"y")
    ids = ids_of(tree)
    assert len(set(ids)) == len(ids) == 7


def test_s3_shards_and_manifests_are_sources(bucket, tmp_path):
    """The same ids as on a local disk, and paths below the manifest's prefix."""
    shard = write_tar(tmp_path / "0.tar", {"x.wav": b"1", "x.txt": b"hello"})
    storage.commit(f"{bucket}/speech/shards/0.tar", shard.read_bytes())
    rows = write_audio_parquet(tmp_path / "0.parquet", [b"333"], {"text": ["there"]})
    storage.commit(f"{bucket}/speech/rows/0.parquet", rows.read_bytes())
    storage.commit(f"{bucket}/speech/manifest.jsonl", b'{"audio_filepath": "a.wav", "duration": 2.5, "text": "hi"}\n')
    listing = list_source(f"{bucket}/speech")
    assert listing.column("id").to_pylist() == ["rows/0.parquet/0", "shards/0.tar/x.wav"]
    assert listing.column("text").to_pylist() == ["there", "hello"]
    (named,) = files_of(list_source(f"{bucket}/speech/manifest.jsonl"))
    assert (named.id, named.uri, named.size, named.duration_s) == ("a.wav", f"{bucket}/speech/a.wav", None, 2.5)
