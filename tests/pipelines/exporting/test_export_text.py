"""Text beside audio: ids by a tokenizer.json, from a column or a file, and what happens where there is none."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.exporting.export import export_tokens
from pipelines.exporting.export_card import decode_tokens, read_token_card
from pipelines.exporting.export_sequences import SequenceSettings
from pipelines.exporting.export_text import TextTokenizer
from tests.pipelines.exports import BYTE_IDS, read_exported, text_ids, write_small, write_tokenizer
from tokenizer import DatasetError

pytest.importorskip("tokenizers")
TEXTS = ("so it is", "hé?", None, "x", "two words", "")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def dataset(tiny_codec_dir, tmp_path_factory):
    """Six utterances in two parts, of which the third and the last say nothing."""
    root = tmp_path_factory.mktemp("said") / "tokens"
    return str(root), write_small(root, tiny_codec_dir, (5, 2, 4, 3, 6, 1), texts=TEXTS)


@pytest.mark.parametrize("layout", ["flatten", "delay"])
@pytest.mark.parametrize("order", ["audio_text", "text_audio"])
def test_text_stands_before_or_behind_the_audio(dataset, tokenizer, tmp_path, layout, order):
    """Both come back: codes by the card, text by the tokenizer's own ids."""
    root, codes = dataset
    settings = SequenceSettings(layout=layout, order=order, text_tokenizer=tokenizer, without_text="skip")
    done = export_tokens(root, tmp_path, settings, progress=False)
    assert (done.totals.sequences, done.totals.without_text) == (4, 2)
    vocabulary = read_token_card(tmp_path).vocabulary
    assert vocabulary.offset == BYTE_IDS
    said = dict(zip(codes, TEXTS, strict=True))
    for name, ids in read_exported(tmp_path, "parquet"):
        assert np.array_equal(decode_tokens(ids, tmp_path), codes[name])
        (text,) = vocabulary.find_text(torch.from_numpy(ids.astype(np.int64)))
        assert text.tolist() == text_ids(tokenizer, said[name])
        special = vocabulary.special_tokens
        first = special.begin_of_audio if order == "audio_text" else special.begin_of_text
        assert ids.reshape(len(ids), -1)[0, 0] == first


def test_a_row_without_text_is_an_error_unless_skipped(dataset, tokenizer, tmp_path):
    """It is named, with the way out."""
    settings = SequenceSettings(order="audio_text", text_tokenizer=tokenizer)
    with pytest.raises(DatasetError, match=r"u/2.x.wav: no text.*--without-text skip"):
        export_tokens(dataset[0], tmp_path, settings, progress=False)


def test_an_export_that_wrote_nothing_may_be_begun_anew(dataset, tokenizer, tmp_path):
    """Whoever forgot to skip, or named a wrong column, says so in the same directory."""
    wrong = SequenceSettings(order="audio_text", text_tokenizer=tokenizer, text_column="said", without_text="skip")
    with pytest.raises(DatasetError, match="text"):
        export_tokens(dataset[0], tmp_path, wrong, progress=False)
    right = SequenceSettings(order="audio_text", text_tokenizer=tokenizer, without_text="skip")
    assert export_tokens(dataset[0], tmp_path, right, progress=False).totals.sequences == 4


def test_a_file_of_transcripts_goes_before_the_column(dataset, tokenizer, tmp_path):
    """And fills in what the column lacks."""
    root, codes = dataset
    names = list(codes)
    rows = [{"id": names[1], "text": "other"}, {"id": names[2], "text": "new"}, {"id": names[5], "text": "last"}]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SequenceSettings(
        order="text_audio", text_tokenizer=tokenizer, transcripts=tmp_path / "said.jsonl", num_codebooks=1
    )
    export_tokens(root, tmp_path / "out", settings, progress=False)
    vocabulary = read_token_card(tmp_path / "out").vocabulary
    found = [
        vocabulary.find_text(torch.from_numpy(ids.astype(np.int64)))[0].tolist()
        for _, ids in read_exported(tmp_path / "out", "parquet")
    ]
    expected = ("so it is", "other", "new", "x", "two words", "last")
    assert found == [text_ids(tokenizer, text) for text in expected]
    (tmp_path / "said.jsonl").write_text('{"id": "nobody", "text": "so"}\n')
    with pytest.raises(DatasetError, match="none of its transcripts"):
        export_tokens(root, tmp_path / "out2", dataclasses.replace(settings, without_text="skip"), progress=False)


def test_text_is_not_cut_by_what_the_tokenizer_was_trained_with(tmp_path):
    """Truncation and padding are for a model's batches: they stand in many a tokenizer.json, and would lose words."""
    cutting = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    location = write_tokenizer(tmp_path / "tokenizer.json", truncation=cutting, padding=padding)
    tokenizer = TextTokenizer(location)
    assert len(tokenizer.encode("longer than three")) == 17
    assert pickle.loads(pickle.dumps(tokenizer)).encode("ab") == tokenizer.encode("ab")  # noqa: S301 - our own
    assert tokenizer.size == BYTE_IDS


def test_another_tokenizer_is_another_export(dataset, tokenizer, tmp_path):
    """Its sha256 is part of the card."""
    settings = {"order": "audio_text", "without_text": "skip"}
    export_tokens(dataset[0], tmp_path / "out", SequenceSettings(text_tokenizer=tokenizer, **settings), progress=False)
    other = tmp_path / "other.json"
    other.write_text(Path(tokenizer).read_text() + "\n")
    again = SequenceSettings(text_tokenizer=str(other), **settings)
    with pytest.raises(DatasetError, match=r"text_tokenizer\.sha256"):
        export_tokens(dataset[0], tmp_path / "out", again, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "audio_text"}, "needs a text tokenizer"),
        ({"order": "text"}, "audio, audio_text, text_audio"),
        ({"text_tokenizer": "x.json"}, "for the orders"),
        ({"transcripts": "x.jsonl"}, "for the orders"),
        ({"bare": True, "order": "audio_text", "text_tokenizer": "x.json"}, "nothing tells text from audio"),
        ({"bare": True, "special_tokens": {"padding": 1}}, "no special tokens"),
        ({"num_codebooks": 1, "bandwidth_kbps": 12.0}, "not both"),
        ({"layout": "diagonal"}, "parallel, delay, flatten, coarse_first"),
        ({"without_text": "guess"}, "error, skip"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(settings, message):
    """Refused when they are made, with what is allowed."""
    with pytest.raises(ValueError, match=message):
        SequenceSettings(**settings)


def test_the_offset_is_behind_the_text(dataset, tokenizer, tmp_path):
    """Audio ids inside the text vocabulary would be two things at once."""
    settings = SequenceSettings(order="audio_text", text_tokenizer=tokenizer, offset=BYTE_IDS - 1)
    with pytest.raises(ValueError, match="offset 255 is inside the text vocabulary, whose ids are 0 to 255"):
        export_tokens(dataset[0], tmp_path, settings, progress=False)


def test_special_ids_may_be_the_tokenizers_own(dataset, tmp_path):
    """Text that has one of them by chance is refused: nobody could tell it from the end of the text."""
    location = write_tokenizer(tmp_path / "tokenizer.json")
    end = text_ids(location, "?")[0]
    settings = SequenceSettings(order="audio_text", text_tokenizer=location, special_tokens={"end_of_text": end})
    with pytest.raises(DatasetError, match=rf"u/1.x.wav: id {end} is no text"):
        export_tokens(dataset[0], tmp_path / "out", settings, progress=False)


@pytest.mark.parametrize("content", [None, "{}", "no json"], ids=str)
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    """A file that is missing, or something else."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DatasetError, match=r"tokenizer.json: (cannot be read|not a tokenizer)"):
        TextTokenizer(str(tmp_path / "tokenizer.json"))


def test_without_the_package_the_error_says_what_to_install(tokenizer, monkeypatch):
    """Text is an extra."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"quantone\[export\]"):
        TextTokenizer(tokenizer)
