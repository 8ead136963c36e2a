"""Transcripts: which row of a file belongs to which utterance, and the column that a dataset may have."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.inputs.transcripts import TextSource, TranscriptFile, stored_texts
from tests.pipelines.token_datasets import write_codes
from tokenizer import DatasetError


def file_of(folder, *rows):
    path = folder / "said.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TranscriptFile(path)


def with_column(dataset, name, values):
    """The dataset after somebody has added a column to its parts."""
    values = iter(values)
    for path in sorted(Path(dataset, "parts").iterdir()):
        table = pq.read_table(path)
        column = pa.array([next(values) for _ in range(table.num_rows)])
        buffer = io.BytesIO()
        pq.write_table(table.append_column(name, column), buffer, write_page_checksum=True)
        path.write_bytes(buffer.getvalue())
    shutil.rmtree(Path(dataset, "records"), ignore_errors=True)  # rewritten on purpose
    return dataset


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Six utterances in two parts."""
    return write_codes(tmp_path / "tokens", tiny_codec_dir, {f"u{n}": np.zeros((4, 9)) for n in range(6)})


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"id": "a/b.wav", "text": "so"}, "a/b.wav"),
        ({"id": "b", "text": "so"}, "a/b.wav"),
        ({"id": "a/b.flac", "text": "so"}, "a/b.wav"),
        ({"id": "1.5-x", "text": "so"}, "a/1.5-x.opus"),
        ({"audio_filepath": "/data/corpus/a/b.wav", "text": "so"}, "a/b.wav"),
        ({"path": "a/b.wav", "text": "so"}, "more/a/b.wav"),
        ({"shard": "x.tar", "member": "a/b.opus", "transcript": "so", "offset": 512}, "a/b.opus"),
    ],
    ids=["id", "name", "extension", "dots", "absolute", "relative", "member"],
)
def test_rows_are_found_by_id_or_path(tmp_path, row, name):
    """Folders in front and extensions may be missing on either side."""
    assert file_of(tmp_path, {"id": "other", "text": "no"}, row).find(name) == "so"


@pytest.mark.parametrize("name", ["x/b.wav", "bb/b.wav", "aa/b.wav", "a/b/c.wav", "a/b.txt"])
def test_names_that_only_look_alike_are_others(tmp_path, name):
    """Whole names of folders and files count."""
    rows = [{"id": row, "text": "so"} for row in ("bb", "a/b", "b/c.wav.x")]
    assert file_of(tmp_path, *rows).find(name) is None


def test_the_very_name_goes_before_those_alike(tmp_path):
    """Two recordings of one name in different folders keep their own texts."""
    rows = [{"id": f"{folder}b.wav", "text": f"in {folder}"} for folder in ("", "x/", "y/")]
    assert [file_of(tmp_path, *rows).find(name) for name in ("y/b.wav", "b.wav")] == ["in y/", "in "]


def test_what_is_not_certain_is_refused(tmp_path):
    """Two rows for one utterance, one row for two of them, two texts for one row."""
    rows = [{"id": f"{folder}/b.wav", "text": folder} for folder in "xy"]
    with pytest.raises(DatasetError, match=r"utterance 'b.wav' may be 'x/b.wav' or 'y/b.wav'"):
        file_of(tmp_path, *rows).find("b.wav")
    one = file_of(tmp_path, {"id": "b", "text": "so"})
    assert one.find("x/b.wav") == one.find("x/b.wav") == "so"
    with pytest.raises(DatasetError, match=r"'b' may be 'x/b.wav' or 'y/b.wav'"):
        one.find("y/b.wav")
    with pytest.raises(DatasetError, match="line 2: a second and different transcript of 'b'"):
        file_of(tmp_path, {"id": "b", "text": "so"}, {"id": "b", "text": "or so"}).find("b")


@pytest.mark.parametrize("row", ["{", "3", '{"text": "so"}', '{"id": 3, "text": "so"}', '{"id": "b", "text": ["so"]}'])
def test_wrong_rows_are_named(tmp_path, row):
    """File and line."""
    with pytest.raises(DatasetError, match=r"said.jsonl, line 2: "):
        file_of(tmp_path, {"id": "a", "text": "so"}, row).find("a")


def test_a_file_must_be_there_and_say_something(tmp_path):
    """Before any token is read, and after none was of use."""
    with pytest.raises(DatasetError, match="cannot be read"):
        TranscriptFile(tmp_path / "nowhere.jsonl")
    silent = TextSource(file_of(tmp_path, {"id": "u0", "transcript": None}))
    assert silent.find("u0", None) is None
    with pytest.raises(DatasetError, match="no row has a text or transcript"):
        silent.require_found(["tokens"], "u0")


def test_datasets_may_know_what_is_said(dataset):
    """A column `text`, row by row over all parts; empty and missing are the same."""
    assert list(stored_texts(dataset)) == [None] * 6
    assert list(stored_texts(with_column(dataset, "text", ["a", "", None, "b", "ü", "c"]))) == [
        "a",
        None,
        None,
        "b",
        "ü",
        "c",
    ]


def test_a_column_of_something_else_is_refused(dataset):
    """The part is named."""
    with pytest.raises(DatasetError, match=r"part-00000.parquet: column 'text' holds 3"):
        list(stored_texts(with_column(dataset, "text", [3] * 6)))


def test_a_file_goes_before_the_column(tmp_path):
    """And the column where the file has nothing."""
    source = TextSource(file_of(tmp_path, {"id": "u0", "text": "file"}))
    assert [source.find("u0", "column"), source.find("u1", "column"), source.find("u2", None)] == [
        "file",
        "column",
        None,
    ]
    source.require_found(["tokens"], "u0")
    with pytest.raises(DatasetError, match="no text in a column 'text'; name a file of transcripts"):
        TextSource().require_found(["tokens"], "u0")
