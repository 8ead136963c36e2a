"""Batches of utterances with their transcripts: whole, padded, and a function of seed and step."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.inputs.transcripts import TextSource, TranscriptFile
from pipelines.training.lm_recipe import HeldOut
from pipelines.training.token_batches import TokenBatches
from pipelines.training.token_copy import held_out_place
from pipelines.training.token_store import open_token_store
from tests.pipelines.token_datasets import write_codes
from tokenizer import DatasetError

LENGTHS = [20 + 5 * number for number in range(16)]


@pytest.fixture
def utterances():
    """Utterance n says "<n> ü" and has the code n in level 0, a number for each frame in level 1 and 2."""
    frames = [np.arange(length) for length in LENGTHS]
    return {
        f"s/u{number:02d}.wav": np.stack([np.full(len(of), number), of // 16, of % 16, of % 3])
        for number, of in enumerate(frames)
    }


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path, utterances):
    """Sixteen utterances of 20 to 95 frames."""
    return write_codes(tmp_path / "tokens", tiny_codec_dir, utterances)


@pytest.fixture
def transcripts(tmp_path, utterances):
    """A manifest of all of them."""
    path = tmp_path / "manifest.jsonl"
    rows = [{"member": name, "transcript": f"{number} ü"} for number, name in enumerate(utterances)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def store_of(dataset, transcripts, folder, held_out=None):
    text = TextSource(TranscriptFile(transcripts))
    return open_token_store([dataset], 4, held_out or HeldOut(share=0.0), folder / "codes", text=text, shown=False)


def take(store, count, step=0, **changes):
    arguments = {"batch_size": 4, "num_frames": 60, "seed": 3} | changes
    return list(itertools.islice(TokenBatches(store, **arguments).from_step(step), count))


def test_a_row_is_an_utterance_from_its_beginning_and_what_it_says(dataset, transcripts, tmp_path, utterances):
    """As many frames as it has, the most of a crop; behind them is nothing."""
    names = list(utterances)
    for batch in take(store_of(dataset, transcripts, tmp_path), 50):
        assert batch.codes.shape == (4, 4, batch.lengths.max())
        assert batch.codes.dtype == batch.lengths.dtype == torch.int64
        for codes, length, text in zip(batch.codes, batch.lengths.tolist(), batch.text, strict=True):
            number = int(codes[0, 0])
            assert text == f"{number} ü"
            assert length == min(LENGTHS[number], 60)
            assert np.array_equal(codes[:, :length], utterances[names[number]][:, :length])
            assert not codes[:, length:].any()


def test_every_utterance_is_as_likely(dataset, transcripts, tmp_path):
    """Long ones no more than short ones: a row has all of one."""
    batches = take(store_of(dataset, transcripts, tmp_path), 800)
    drawn = Counter(batch.codes[row, 0, 0].item() for batch in batches for row in range(4))
    assert [drawn[number] / 3200 for number in range(16)] == pytest.approx([1 / 16] * 16, abs=0.025)


def test_rows_of_a_step_are_of_like_length(dataset, transcripts, tmp_path):
    """So that little is padding: two of sixteen lengths in a step; the mean of all counts as a step's frames."""
    store = store_of(dataset, transcripts, tmp_path)
    for batch in take(store, 50, num_frames=100):
        assert batch.lengths.max() - batch.lengths.min() <= 5
    assert TokenBatches(store, batch_size=4, num_frames=100, seed=0).frames_per_step == 4 * np.mean(LENGTHS)


def test_text_batches_are_a_function_of_seed_and_step(dataset, transcripts, tmp_path):
    """From any step on what an undisturbed run has there; other seeds differ; ranks see their part."""
    store = store_of(dataset, transcripts, tmp_path)
    first, again = take(store, 6), take(store_of(dataset, transcripts, tmp_path), 3, step=3)
    assert [batch.text for batch in again] == [batch.text for batch in first[3:]]
    assert all(torch.equal(ours.codes, theirs.codes) for ours, theirs in zip(again, first[3:], strict=True))
    assert [batch.text for batch in take(store, 6, seed=4)] != [batch.text for batch in first]
    halves = [take(store, 6, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(first, *halves, strict=True):
        assert whole.text == parts[0].text + parts[1].text
        assert whole.lengths.tolist() == torch.cat([part.lengths for part in parts]).tolist()


def test_rows_are_drawn_apart_from_their_step(dataset, transcripts, tmp_path):
    """The first row of a step sees every utterance, as the others do."""
    first_rows = {batch.text[0] for batch in take(store_of(dataset, transcripts, tmp_path), 200)}
    assert len(first_rows) == 16


def test_utterances_without_a_transcript_are_left_out(dataset, tmp_path, utterances):
    """And counted; a null, an empty text and no row at all are the same."""
    path = tmp_path / "some.jsonl"
    rows = [{"id": name, "text": f"{number} ü"} for number, name in enumerate(utterances)]
    rows[3]["text"], rows[4]["text"] = None, ""
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows[:-1]))
    store = store_of(dataset, path, tmp_path)
    assert store.text.left_out == 3
    assert [store.text.read(number) for number in range(13)] == [f"{n} ü" for n in [0, 1, 2, *range(5, 15)]]
    assert store.lengths.tolist() == [LENGTHS[n] for n in [0, 1, 2, *range(5, 15)]]
    assert store.histogram[0].tolist()[2:6] == [30, 0, 0, 45]


def test_held_out_utterances_keep_their_transcripts(dataset, transcripts, tmp_path, utterances):
    """The same ones as without text."""
    store = store_of(dataset, transcripts, tmp_path, HeldOut(share=0.4, utterances=3))
    assert list(store.text.held_out) == list(store.held_out)
    assert len(store.held_out) == 3
    numbers = {name: number for number, name in enumerate(utterances)}
    for name, text in store.text.held_out.items():
        assert held_out_place(name) < 0.4
        assert text == f"{numbers[name]} ü"


def test_the_copy_follows_the_transcripts(dataset, transcripts, tmp_path):
    """Made once; another file of transcripts makes another one, and no text a third."""
    store = store_of(dataset, transcripts, tmp_path)
    changed = store.text.path.stat().st_mtime_ns
    assert store_of(dataset, transcripts, tmp_path).text.path.stat().st_mtime_ns == changed
    transcripts.write_text(transcripts.read_text().replace("2 \\u00fc", "2 u"))
    assert store_of(dataset, transcripts, tmp_path).text.read(2) == "2 u"
    plain = open_token_store([dataset], 4, HeldOut(share=0.0), tmp_path / "codes", shown=False)
    assert plain.text is None
    assert len(list((tmp_path / "codes").glob("*.npz"))) == 3


def test_transcripts_of_other_utterances_are_refused(dataset, tmp_path):
    """With an id of each side; nothing is left that a later run would take for a whole copy."""
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"id": "elsewhere/x.wav", "text": "so"}))
    with pytest.raises(DatasetError, match=r"tokens: ids are like 's/u15.wav' there, and like 'elsewhere/x.wav' in"):
        store_of(dataset, path, tmp_path)
    assert not list(Path(tmp_path, "codes").glob("*.npz"))
