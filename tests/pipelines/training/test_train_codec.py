"""Training by a recipe: audio in, a codec out, and no interruption that shows."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from pipelines.training.train_codec import train_codec
from pipelines.training.training_log import read_log
from pipelines.training.training_run import TrainingRun
from tests.conftest import tiny_spec
from tokenizer import CheckpointError, load_codec

ADVERSARY = {"stft": {"filters": 2, "windows": [64, 32]}}


@pytest.fixture
def plain_recipe():
    """Eight steps of a tiny codec with a tiny adversary, as YAML holds it."""
    return {
        "name": "tiny",
        "codec": tiny_spec("patch").to_dict(),
        "objective": {"mel": {"windows": [64, 256], "bins": 16}, "discriminator": ADVERSARY},
        "optimizer": {"learning_rate": 1e-3, "weight_average": 0.5},
        "data": {"sampling": {"one": 1.0}},
        "schedule": {"steps": 8, "batch_size": 4, "crop_seconds": 0.05, "checkpoint_every": 4, "log_every": 1},
    }


@pytest.fixture
def recipe(tmp_path, plain_recipe):
    """The same in a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain_recipe))
    return path


def here(run_dir, **changes):
    """A run in this process, quietly."""
    return TrainingRun(run_dir=run_dir, data_workers=0, threads=1, shown=False, **changes)


def curve(run_dir):
    """Every logged number that is not about time."""
    timed = {"steps_per_s", "per_s", "wait_share", "minutes", "steps"}
    return [{key: value for key, value in row.items() if key not in timed} for row in read_log(run_dir)]


def test_a_run_ends_with_a_codec(recipe, speech_folder, tmp_path):
    """`load_codec` reads what training exports, and it encodes; the log has every loss and the use of codebooks."""
    codec = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "run")))
    assert codec.name == "tiny"
    assert codec.encode(torch.zeros(1, 100)).codes.shape == (1, 4, 13)
    last = read_log(tmp_path / "run")[-1]
    assert {"time", "mel", "adversarial", "feature", "commitment", "gradient_norm", "used", "perplexity"} <= last.keys()
    assert sum(last["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_an_interrupted_run_ends_like_an_undisturbed_one(recipe, speech_folder, tmp_path):
    """Stopped after four steps and started again: the same weights to the last bit, and the same curve of losses."""
    whole = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "whole")))
    train_codec(recipe, [speech_folder], here(tmp_path / "parts", steps=4))
    resumed = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "parts")))
    assert resumed.sha256 == whole.sha256
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_a_killed_run_ends_like_an_undisturbed_one(plain_recipe, recipe, speech_folder, tmp_path):
    """SIGKILL at some moment after the first checkpoint, then the same command again."""
    plain_recipe["schedule"] |= {"steps": 400}
    recipe.write_text(yaml.safe_dump(plain_recipe))
    arguments = ["train", "codec", recipe, "--data", speech_folder, "--run-dir", tmp_path / "killed"]
    options = ["--steps", "400", "--threads", "1", "--data-workers", "0"]
    command = "import sys; from pipelines.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", command, *map(str, arguments), *options], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "killed")) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = read_log(tmp_path / "killed")[-1]["step"]
    assert 6 <= done < 400
    steps = 4 * (done // 4 + 1)
    resumed = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "killed", steps=steps)))
    whole = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "whole", steps=steps)))
    assert resumed.sha256 == whole.sha256
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.usefixtures("ray_session")
def test_two_processes_train_what_one_does(plain_recipe, recipe, speech_folder, tmp_path):
    """Ray Train over gloo, two processes with half of each batch: the losses and weights of one with all of it."""
    plain_recipe["schedule"] |= {"steps": 4}
    plain_recipe["objective"] |= {"discriminator_probability": 1.0}
    recipe.write_text(yaml.safe_dump(plain_recipe))
    one = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "one")))
    two = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "two", num_processes=2)))
    for ours, theirs in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        for name in ("time", "mel", "adversarial", "feature", "discriminator", "commitment", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), (name, ours["step"])
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_fine_tuning_starts_from_a_codec(plain_recipe, recipe, speech_folder, tmp_path):
    """With a rate of almost nothing the codec that comes out is the one that went in."""
    start = train_codec(recipe, [speech_folder], here(tmp_path / "start"))
    plain_recipe["optimizer"] |= {"learning_rate": 1e-12}
    plain_recipe["quantizer"] = {"decay": 0.999999}
    recipe.write_text(yaml.safe_dump(plain_recipe))
    tuned = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "tuned", init_from=str(start), steps=2)))
    for ours, theirs in zip(tuned.parameters(), load_codec(start).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)  # both are stored in half precision
    fresh = load_codec(train_codec(recipe, [speech_folder], here(tmp_path / "fresh", steps=2)))
    assert (fresh.quantizer.codebooks - tuned.quantizer.codebooks).abs().max() > 0.1


def test_another_spec_cannot_be_fine_tuned(plain_recipe, recipe, speech_folder, tmp_path):
    """Half of the weights would have no place."""
    start = train_codec(recipe, [speech_folder], here(tmp_path / "start", steps=1))
    plain_recipe["codec"] = tiny_spec("seanet").to_dict()
    recipe.write_text(yaml.safe_dump(plain_recipe))
    with pytest.raises(ValueError, match="another spec"):
        train_codec(recipe, [speech_folder], here(tmp_path / "run", init_from=str(start)))


def test_a_checkpoint_of_another_recipe_is_refused(plain_recipe, recipe, speech_folder, tmp_path):
    """Never half of one codec and half of another."""
    train_codec(recipe, [speech_folder], here(tmp_path / "run", steps=1))
    recipe.write_text(yaml.safe_dump(plain_recipe | {"name": "other"}))
    with pytest.raises(CheckpointError, match="another recipe"):
        train_codec(recipe, [speech_folder], here(tmp_path / "run"))


def test_a_batch_that_cannot_be_shared_is_refused(recipe, speech_folder, tmp_path):
    """Before anything is read."""
    with pytest.raises(ValueError, match="3 processes cannot share batches of 4"):
        train_codec(recipe, [speech_folder], here(tmp_path / "run", num_processes=3))
