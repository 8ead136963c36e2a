"""What a source holds."""

import pytest

from pipelines.sources import list_source
from tokenizer import DatasetError


@pytest.fixture
def tree(tmp_path):
    """Audio, other files and hidden ones."""
    for name in ("b.wav", "a/z.FLAC", "a/y.opus", "notes.txt", ".hidden.wav", ".cache/c.wav", "a/b/c.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    return tmp_path


def test_directories_are_searched_to_any_depth(tree):
    """Audio only, whatever the case of its extension; ids are paths below the source, sorted."""
    files = list_source(tree)
    assert [file.id for file in files] == ["a/b/c.mp3", "a/y.opus", "a/z.FLAC", "b.wav"]
    assert files[0].uri == str(tree / "a/b/c.mp3")
    assert [file.size for file in files] == [9, 8, 8, 5]


def test_single_files_and_patterns_are_sources(tree):
    """The part of the path without magic is left out of the ids."""
    assert [file.id for file in list_source(tree / "b.wav")] == ["b.wav"]
    assert [file.id for file in list_source(str(tree / "a" / "*"))] == ["y.opus", "z.FLAC"]
    assert [file.id for file in list_source(str(tree / "**" / "*.mp3"))] == ["a/b/c.mp3"]


def test_names_that_are_not_utf8_are_listed(tree):
    """Their odd bytes are escaped: such a file ends as an error row, not in a dead job."""
    import os

    (tree / os.fsdecode(b"\xff.wav")).touch()
    assert "\\udcff.wav" in [file.id for file in list_source(tree)]


@pytest.mark.parametrize("source", ["nowhere", "notes.txt", "*.ogg"])
def test_nothing_to_tokenize_is_an_error(tree, source):
    """A missing place, a file that is no audio, a pattern without a match."""
    with pytest.raises(DatasetError):
        list_source(str(tree / source))
