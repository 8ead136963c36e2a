"""Batches of codes: where crops come from, and that they follow from seed and step alone."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.datasets.commit_record import read_record
from pipelines.training.lm_recipe import HeldOut
from pipelines.training.token_batches import TokenBatches
from pipelines.training.token_copy import held_out_place
from pipelines.training.token_store import open_token_store
from tests.pipelines.token_datasets import write_codes
from tokenizer import DatasetError

EVERYTHING = HeldOut(share=0.0)


def marked_codes(lengths, num_codebooks=4):
    """Codes that say where they stand: level 0 is the utterance, level 1 and 2 the frame, level 3 neither."""
    utterances = {}
    for number, length in enumerate(lengths):
        frames = np.arange(length)
        levels = [np.full(length, number), frames // 16, frames % 16, np.full(length, 7)]
        utterances[f"u{number}"] = np.stack(levels[:num_codebooks])
    return utterances


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Six utterances of 20 to 120 frames in two parts."""
    return write_codes(tmp_path / "tokens", tiny_codec_dir, marked_codes([20, 40, 60, 80, 100, 120]))


def store_of(datasets, tmp_path, *, num_codebooks=4, held_out=EVERYTHING):
    return open_token_store(datasets, num_codebooks, held_out, tmp_path / "codes", shown=False)


def take(store, count, step=0, **changes):
    """Codes of some batches."""
    arguments = {"batch_size": 8, "num_frames": 30, "seed": 3} | changes
    return [batch.codes for batch in itertools.islice(TokenBatches(store, **arguments).from_step(step), count)]


def test_batches_are_a_function_of_seed_and_step(dataset, tmp_path):
    """The same again; from any step on what an undisturbed run has there; other seeds and steps differ."""
    store = store_of([dataset], tmp_path)
    first = take(store, 4)
    assert first[0].shape == (8, 4, 30)
    assert first[0].dtype == torch.int64
    again = store_of([dataset], tmp_path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(take(again, 2, step=2), first[2:], strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], take(store, 1, seed=4)[0])


def test_ranks_see_their_part_of_the_whole_batch(dataset, tmp_path):
    """Four processes of two rows each see what one process of eight sees."""
    store = store_of([dataset], tmp_path)
    parts = [take(store, 2, rank=rank, world_size=4) for rank in range(4)]
    for step, whole in enumerate(take(store, 2)):
        assert torch.equal(torch.cat([part[step] for part in parts]), whole)


def test_crops_lie_within_utterances_that_are_long_enough(dataset, tmp_path):
    """Frames in a row of one utterance; every utterance and every place is met."""
    crops = torch.cat(take(store_of([dataset], tmp_path), 100, num_frames=20))
    assert (crops[:, 0] == crops[:, 0, :1]).all()
    frames = 16 * crops[:, 1] + crops[:, 2]
    assert (frames.diff(dim=1) == 1).all()
    assert set(crops[:, 0].flatten().tolist()) == set(range(6))
    assert set(frames[crops[:, 0] == 5].tolist()) == set(range(120))


def test_longer_utterances_are_drawn_more_often(dataset, tmp_path):
    """By their lengths: 20 of 420 frames for the shortest, 120 for the longest."""
    drawn = torch.cat(take(store_of([dataset], tmp_path), 200, num_frames=20))[:, 0, 0].bincount(minlength=6) / 1600
    assert drawn.tolist() == pytest.approx([length / 420 for length in (20, 40, 60, 80, 100, 120)], abs=0.03)


def test_short_utterances_are_joined(dataset, tmp_path):
    """Shorter than a crop: from its first frame on, then the next one; behind the last the first one."""
    store = store_of([dataset], tmp_path)
    joined = np.concatenate(list(marked_codes([20, 40, 60, 80, 100, 120]).values()), axis=1)
    assert np.array_equal(store.read(0, 0, 100), joined[:, :100])
    assert np.array_equal(store.read(5, 0, 300), np.concatenate([joined[:, 300:], joined[:, :180]], axis=1))
    assert np.array_equal(store.read(0, 0, 1000), np.tile(joined, 3)[:, :1000])
    for crop in torch.cat(take(store, 10, num_frames=130)):
        assert crop[1:3, 0].tolist() == [0, 0]


def test_only_the_wanted_levels_are_read(dataset, tmp_path):
    """A model of two levels needs no more: two bytes for each of their codes."""
    store = store_of([dataset], tmp_path, num_codebooks=2)
    assert take(store, 1)[0].shape == (8, 2, 30)
    assert store.path.stat().st_size == 420 * 2 * 2
    assert store.histogram.tolist()[0][:6] == [20, 40, 60, 80, 100, 120]


def test_held_out_utterances_are_never_drawn(tiny_codec_dir, tmp_path):
    """The hash of the id decides, in every dataset alike; all crops together show every other utterance."""
    utterances = {f"u{number}": np.full((4, 40), number % 16) for number in range(16)}
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, utterances)
    expected = {number for number in range(16) if held_out_place(f"u{number}") < 0.3}
    assert 2 <= len(expected) <= 10
    store = store_of([dataset], tmp_path, held_out=HeldOut(share=0.3, utterances=100))
    assert set(store.held_out) == {f"u{number}" for number in expected}
    for name, codes in store.held_out.items():
        assert np.array_equal(codes, utterances[name])
    seen = set(torch.cat(take(store, 100)).flatten().tolist())  # crops of 30 frames, and of no other utterance
    assert seen == set(range(16)) - expected
    assert store.histogram[0].nonzero()[0].tolist() == sorted(seen)


def test_few_of_many_held_out_utterances_are_kept(tiny_codec_dir, tmp_path):
    """Those of lowest hash, whatever the order of the datasets; the others are not trained on either."""
    halves = [
        write_codes(tmp_path / name, tiny_codec_dir, {f"{name}{number}": np.full((4, 9), 3) for number in range(30)})
        for name in "ab"
    ]
    limited = HeldOut(share=0.5, utterances=4)
    one, other = (store_of(order, tmp_path, held_out=limited) for order in (halves, halves[::-1]))
    places = sorted((held_out_place(f"{name}{number}"), f"{name}{number}") for name in "ab" for number in range(30))
    assert list(one.held_out) == list(other.held_out) == [name for _, name in places[:4]]
    assert len(one.lengths) == sum(place >= 0.5 for place, _ in places)


def test_the_copy_is_made_once_and_follows_the_dataset(dataset, tiny_codec_dir, tmp_path):
    """Opened again it is the same file, untouched; a dataset that has changed gets a new one."""
    store = store_of([dataset], tmp_path)
    changed = store.path.stat().st_mtime_ns
    again = store_of([dataset], tmp_path)
    assert (again.path, again.path.stat().st_mtime_ns) == (store.path, changed)
    Path(dataset, "parts", "part-00001.parquet").unlink()
    assert store_of([dataset], tmp_path).lengths.tolist() == [20, 40, 60, 80]


def test_a_damaged_part_is_named(dataset, tmp_path):
    """A flipped bit in the codes; nothing is left that a later run would take for a whole copy."""
    part = Path(dataset, "parts", "part-00000.parquet")
    content, record = bytearray(part.read_bytes()), next(Path(dataset, "records").glob("part-00000.*"))
    chunk = read_record(str(record)).part.chunks["codes_00"][0]
    content[chunk.offset + chunk.num_bytes // 2] ^= 4
    part.write_bytes(content)
    with pytest.raises(DatasetError, match="part-00000"):
        store_of([dataset], tmp_path)
    assert not list((tmp_path / "codes").glob("*.npz"))


def test_codes_outside_the_codebook_are_refused(tiny_codec_dir, tmp_path):
    """The utterance is named."""
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, {"good": np.zeros((4, 9)), "bad": np.full((4, 9), 16)})
    with pytest.raises(DatasetError, match="bad: code 16, allowed is 0 to 15"):
        store_of([dataset], tmp_path)


def test_datasets_of_different_codecs_are_refused(dataset, tmp_path):
    """Both are named."""
    card = json.loads(Path(dataset, "dataset.json").read_text())
    del card["crc32"]  # changed on purpose
    card["codec"] |= {"name": "other", "sha256": "0" * 64}
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(DatasetError, match=r"other was made with codec 'other', sha256 000000000000.*tiny"):
        store_of([dataset, str(other)], tmp_path)


def test_nothing_to_train_on_is_refused(tiny_codec_dir, tmp_path):
    """Utterances without frames, or all held out."""
    empty = write_codes(tmp_path / "empty", tiny_codec_dir, {"u0": np.zeros((4, 0))})
    with pytest.raises(DatasetError, match="no codes to train on"):
        store_of([empty], tmp_path)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_frames": 0}, {"seed": -1}, {"world_size": 3}, {"rank": 1}])
def test_wrong_numbers_are_refused(dataset, tmp_path, wrong):
    """Before the first batch."""
    with pytest.raises(ValueError, match=r"positive|equal part"):
        take(store_of([dataset], tmp_path), 1, **wrong)


def test_held_out_settings_are_checked():
    """A share of everything leaves nothing to train on."""
    for wrong in ({"share": 1.0}, {"share": -0.1}, {"utterances": -1}):
        with pytest.raises(ValueError, match="share"):
            dataclasses.replace(EVERYTHING, **wrong)
