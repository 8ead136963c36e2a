"""Sources: which files a job takes on, under which names, in which order."""

import os

import pytest

from pipelines import storage
from pipelines.sources import list_source
from tokenizer import DatasetError


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
    files = list_source(tree)
    assert [file.id for file in files] == ["a.wav/5.aiff", "a/1.mp3", "a/2.FLAC", "a/deep/er/3.opus", "b.wav"]
    assert all(file.uri == str(tree / file.id) for file in files)
    assert [file.size for file in files] == [len(file.id) for file in files]


def test_a_listing_does_not_depend_on_how_the_source_is_written(tree, monkeypatch):
    """Relative, with a slash at its end, or absolute: the same ids and uris."""
    monkeypatch.chdir(tree.parent)
    assert list_source("tree") == list_source(tree) == list_source(f"{tree}/") == list_source("./tree/../tree")


def test_one_file_is_a_source(tree):
    """Its id is its name."""
    assert [file.id for file in list_source(tree / "a" / "1.mp3")] == ["1.mp3"]


def test_a_pattern_is_a_source(tree):
    """Ids start after the last directory without a wildcard."""
    assert [file.id for file in list_source(f"{tree}/a/*.*")] == ["1.mp3", "2.FLAC"]
    assert [file.id for file in list_source(f"{tree}/**/*.opus")] == ["a/deep/er/3.opus"]


def test_a_directory_with_wildcards_in_its_name_is_a_directory(tmp_path):
    """What exists under the very name wins over the pattern."""
    folder = tmp_path / "take[1]*"
    folder.mkdir()
    (folder / "x.wav").write_bytes(b"x")
    assert [file.id for file in list_source(folder)] == ["x.wav"]


def test_links_to_files_count_and_links_to_directories_do_not(tree):
    """A corpus of links is a corpus; a link to its own parent must not be walked for ever."""
    (tree / "link.wav").symlink_to(tree / "b.wav")
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "broken.wav").symlink_to(tree / "nothing.wav")
    ids = [file.id for file in list_source(tree)]
    assert "link.wav" in ids
    assert "broken.wav" not in ids
    assert not any("loop" in name for name in ids)


def test_names_that_are_not_utf8_are_listed_escaped(tree):
    """So that they can end as an error row instead of in a dead job."""
    with open(os.fsencode(tree) + b"/caf\xe9.wav", "wb") as stream:  # noqa: PTH123 - a Path takes no bytes
        stream.write(b"x")
    assert "caf\\udce9.wav" in [file.id for file in list_source(tree)]


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
    assert [file.id for file in list_source(f"{bucket}/speech/")] == ["a/1.mp3", "a/deep/2.flac", "b.wav"]
    assert [file.id for file in list_source(f"{bucket}/speech/b.wav")] == ["b.wav"]
    assert [file.id for file in list_source(f"{bucket}/speech/a/*.mp3")] == ["1.mp3"]
    assert list_source(f"{bucket}/speech")[0].uri == f"{bucket}/speech/a/1.mp3"
    for missing in (f"{bucket}/nothing", "s3://no-such-bucket-here/speech"):
        with pytest.raises(DatasetError, match="no such file"):
            list_source(missing)
