"""Training by a recipe: data in, a codec out, and no interruption that shows."""

import json

import numpy as np
import pytest
import torch
import yaml

from pipelines.recipe import Schedule, bundled_recipes, load_recipe
from pipelines.train_codec import train_codec
from pipelines.training_audio import list_clips, prepare_audio
from tests.conftest import tiny_spec
from tokenizer import CheckpointError, DatasetError, load_codec


@pytest.fixture
def recipe(tmp_path):
    """Eight steps of a tiny codec."""
    plain = {
        "name": "tiny",
        "codec": tiny_spec("patch").to_dict(),
        "objective": {"mel_windows": [64, 256], "mel_bins": 16},
        "schedule": {"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "crop_seconds": 0.05, "checkpoint_every": 4},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def losses(run_dir):
    """Loss by step, as logged."""
    return [json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_ends_with_a_codec(recipe, speech_folder, tmp_path):
    """`load_codec` reads what training exports, and it encodes."""
    exported = train_codec(recipe, [speech_folder], tmp_path / "run", threads=1)
    codec = load_codec(exported)
    assert codec.name == "tiny"
    assert codec.encode(torch.zeros(1, 100)).codes.shape == (1, 4, 13)


def test_an_interrupted_run_ends_like_an_undisturbed_one(recipe, speech_folder, tmp_path):
    """Stopped after four steps and started again: the same weights to the last bit, on one thread."""
    whole = load_codec(train_codec(recipe, [speech_folder], tmp_path / "whole", threads=1))
    train_codec(recipe, [speech_folder], tmp_path / "parts", steps=4, threads=1)
    resumed = load_codec(train_codec(recipe, [speech_folder], tmp_path / "parts", threads=1))
    assert resumed.sha256 == whole.sha256
    assert losses(tmp_path / "parts")[-1] == losses(tmp_path / "whole")[-1]


def test_a_checkpoint_of_another_recipe_is_refused(recipe, speech_folder, tmp_path):
    """Never half of one codec and half of another."""
    train_codec(recipe, [speech_folder], tmp_path / "run", steps=4, threads=1)
    recipe.write_text(recipe.read_text().replace("name: tiny", "name: other"))
    with pytest.raises(CheckpointError, match="another recipe"):
        train_codec(recipe, [speech_folder], tmp_path / "run", threads=1)


def test_bundled_recipes_are_whole():
    """Each loads, and the one of the bundled codec describes it."""
    assert "speech_24khz" in bundled_recipes()
    for name in bundled_recipes():
        assert load_recipe(name).name == name
    assert load_recipe("speech_24khz").codec == load_codec("speech_24khz").spec


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(optimiser="sgd"), "optimiser"),
        (lambda plain: plain["schedule"].update(step=3), "step"),
        (lambda plain: plain["schedule"].update(batch_size=0), "batch_size"),
        (lambda plain: plain["schedule"].update(precision="float8"), "float8"),
        (lambda plain: plain.pop("codec"), "codec"),
        (lambda plain: plain["codec"].update(hop_length=2), "hop_length"),
    ],
    ids=["section", "key", "value", "precision", "missing", "codec"],
)
def test_wrong_recipes_are_refused(recipe, change, reason):
    """With the file and what is wrong in it."""
    plain = yaml.safe_load(recipe.read_text())
    change(plain)
    recipe.write_text(yaml.safe_dump(plain))
    with pytest.raises(ValueError, match=reason):
        load_recipe(recipe)


def test_the_rate_rises_holds_and_falls():
    """Linear up, a plateau that does not know the end, down to nothing at the last step."""
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_steps=20)
    rates = [schedule.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[100] == 0.0


def test_every_clip_is_decoded_once_and_reused(speech_folder, tmp_path):
    """The flat file holds all clips end to end; a second call reads nothing but it."""
    (speech_folder / "broken.wav").write_bytes(b"RIFF")
    clips, spec = list_clips([speech_folder]), tiny_spec()
    audio = prepare_audio(clips, spec, tmp_path / "audio", num_workers=1)
    assert len(audio.starts) == 11
    assert audio.seconds == pytest.approx(sum(0.2 + 0.05 * index for index in range(10)), abs=1e-3)
    for path in speech_folder.rglob("*.wav"):
        path.write_bytes(b"gone")
    again = prepare_audio(clips, spec, tmp_path / "audio", num_workers=1)
    np.testing.assert_array_equal(again.samples, audio.samples)


def test_crops_never_clip_and_never_cross_clips(speech_folder, tmp_path):
    """A crop longer than its clip ends in silence instead of in the next clip."""
    audio = prepare_audio(list_clips([speech_folder]), tiny_spec(), tmp_path / "audio", num_workers=1)
    batch = audio.batch(64, 24000, np.random.default_rng(0))
    assert batch.shape == (64, 1, 24000)
    assert float(batch.abs().max()) <= 1.0
    assert bool((batch[:, :, 16000:] == 0).all())
    assert bool((batch[:, :, :4000].abs().amax(dim=-1) > 0).all())


def test_manifests_name_stretches_of_shards(speech_folder, tmp_path):
    """Clips are read in place from a tar shard, and only those of the split."""
    import tarfile

    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for path in sorted(speech_folder.rglob("*.wav")):
            shard.add(path, path.name)
    with tarfile.open(tmp_path / "shard.tar") as shard:
        rows = [
            {"shard": "shard.tar", "offset": m.offset_data, "bytes": m.size, "split": ("train", "valid")[i % 2]}
            for i, m in enumerate(shard.getmembers())
        ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = list_clips([tmp_path / "manifest.jsonl"])
    assert len(clips) == 5
    audio = prepare_audio(clips, tiny_spec(), tmp_path / "audio", num_workers=1)
    assert len(audio.starts) == 6


def test_nothing_to_train_on_is_said(tmp_path):
    """An empty folder, a missing one, a broken manifest."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text('{"shard": "x.tar"}\n')
    for source, reason in (("empty", "no audio"), ("missing", "neither"), ("broken.jsonl", "line 1")):
        with pytest.raises(DatasetError, match=reason):
            list_clips([tmp_path / source])
