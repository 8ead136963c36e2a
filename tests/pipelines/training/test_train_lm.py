"""Training a language model by a recipe: token datasets in, a model out, and no interruption that shows."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from lm_head.lm_checkpoint import load_lm
from lm_head.lm_training import LMTraining
from pipelines.datasets.dataset_info import read_dataset_info, write_dataset_info
from pipelines.evaluating.lm_evaluation import evaluate_lm
from pipelines.training.train_lm import train_lm
from pipelines.training.training_log import read_log
from pipelines.training.training_run import TrainingRun
from tests.pipelines.token_datasets import counting_codes, write_codes
from tokenizer import CheckpointError

TIMED = {"steps_per_s", "per_s", "wait_share", "minutes", "steps"}


@pytest.fixture
def plain_recipe():
    """Eight steps of a tiny model, half of them on the grid, as YAML holds them."""
    return {
        "name": "tiny",
        "model": {
            "num_codebooks": 4, "codebook_size": 16, "dim": 32, "num_layers": 2,
            "num_heads": 2, "hidden_dim": 64, "context_frames": 20,
        },
        "objective": {"levels": [2, 4], "max_offset": 50, "grid_from": 0.5, "scored_levels": 2},
        "optimizer": {"learning_rate": 5e-3, "betas": [0.9, 0.95], "muon": True, "weight_average": 0.5},
        "held_out": {"share": 0.2, "utterances": 3},
        "schedule": {"steps": 8, "batch_size": 4, "crop_frames": 20, "checkpoint_every": 4, "log_every": 2},
    }  # fmt: skip


@pytest.fixture
def recipe(tmp_path, plain_recipe):
    """The same in a file."""
    return written(tmp_path, plain_recipe)


def written(folder, plain):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path):
    """Thirty utterances of 50 frames, each of which follows from the one before."""
    return write_codes(tmp_path / "tokens", tiny_codec_dir, counting_codes(30, 50), rows_per_part=10)


def here(run_dir, **changes):
    """A run in this process, quietly."""
    return TrainingRun(run_dir=run_dir, data_workers=0, threads=1, shown=False, **changes)


def curve(run_dir):
    """Every logged number that is not about time."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_log(run_dir)]


def weights(lm):
    return torch.cat([parameter.flatten() for parameter in load_lm(lm).parameters()])


def test_a_run_ends_with_a_model(recipe, dataset, tmp_path):
    """`load_lm` reads what training exports; rows of the log say what codes cost, those of checkpoints against what."""
    lm = load_lm(train_lm(recipe, [dataset], here(tmp_path / "run")))
    assert lm(torch.zeros(1, 4, 5, dtype=torch.int64)).shape == (1, 5, 4, 16)
    between, last = read_log(tmp_path / "run")[-2:]
    assert between["step"] == 6
    assert "bits_held_out" not in between
    assert len(last["bits_held_out"]) == len(last["bits_order_0"]) == 4
    assert last["bits_raw"] == 4
    assert all(3.5 < bits <= 4 for bits in last["bits_order_0"])
    assert last["saved"] == pytest.approx(1 - sum(last["bits_held_out"]) / 16, abs=1e-4)
    assert 0 < len(last["bits_training"]) <= 4
    assert last["seen"] == 8 * 4 * 20
    (board,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"bits/u0" in board.read_bytes()  # the picture of a held-out utterance


def test_structure_is_learnt(plain_recipe, dataset, tmp_path):
    """Codes whose frequencies say nothing, of utterances never trained on: a fifth of the bits, at each bandwidth."""
    plain_recipe["objective"] |= {"grid_from": 1.0, "scored_levels": 4}
    plain_recipe["schedule"] |= {"steps": 300, "batch_size": 8, "checkpoint_every": 300, "log_every": 300}
    lm = train_lm(written(tmp_path, plain_recipe), [dataset], here(tmp_path / "run"))
    (row,) = read_log(tmp_path / "run")
    assert min(row["bits_order_0"]) > 3.9
    assert max(row["bits_held_out"]) < 0.2 * min(row["bits_order_0"])
    for score in evaluate_lm(load_lm(lm), dataset, shown=False).scores:
        assert score.saved_of_order_0 > 0.8


def test_a_run_that_failed_goes_on_as_if_it_had_not(recipe, dataset, tmp_path, monkeypatch):
    """It fails in step 7, on the grid, after the checkpoint of step 4: the same weights to the last bit, and log."""
    whole = train_lm(recipe, [dataset], here(tmp_path / "whole"))
    step = LMTraining.step

    def failing(self, codes, number, **rest):
        if number == 6:
            raise FloatingPointError("the loss of the language model is not finite")
        return step(self, codes, number, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(LMTraining, "step", failing)
        with pytest.raises(FloatingPointError):
            train_lm(recipe, [dataset], here(tmp_path / "parts"))
    resumed = train_lm(recipe, [dataset], here(tmp_path / "parts"))
    assert torch.equal(weights(resumed), weights(whole))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_a_killed_run_ends_like_an_undisturbed_one(plain_recipe, dataset, tmp_path):
    """SIGKILL at some moment after the first checkpoint, then the same command again."""
    plain_recipe["schedule"] |= {"steps": 120}
    recipe = written(tmp_path, plain_recipe)
    arguments = ["train", "lm", dataset, "--recipe", recipe, "--run-dir", tmp_path / "killed", "--threads", "1"]
    command = "import sys; from pipelines.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", command, *map(str, arguments)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "killed")) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 8 <= read_log(tmp_path / "killed")[-1]["step"] < 120
    resumed = train_lm(recipe, [dataset], here(tmp_path / "killed"))
    whole = train_lm(recipe, [dataset], here(tmp_path / "whole"))
    assert torch.equal(weights(resumed), weights(whole))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.slow  # the loop is that of codecs, where the same is tried every time
@pytest.mark.usefixtures("ray_session")
def test_two_processes_train_what_one_does(recipe, dataset, tmp_path):
    """Ray Train over gloo, two processes with half of each batch: the bits and weights of one with all of it."""
    one = train_lm(recipe, [dataset], here(tmp_path / "one"))
    two = train_lm(recipe, [dataset], here(tmp_path / "two", num_processes=2))
    for ours, theirs in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert ours["bits"] == pytest.approx(theirs["bits"], rel=1e-3), ours["step"]
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2), ours["step"]
    torch.testing.assert_close(weights(two), weights(one), rtol=2e-2, atol=2e-3)


def test_several_datasets_are_one_corpus(plain_recipe, tiny_codec_dir, tmp_path):
    """Of different depth: the model has the levels that all of them store."""
    deep = write_codes(tmp_path / "deep", tiny_codec_dir, counting_codes(3, 20))
    flat = write_codes(tmp_path / "flat", tiny_codec_dir, counting_codes(5, 30, num_codebooks=3))
    plain_recipe["held_out"] = {"share": 0.0}
    recipe = written(tmp_path, plain_recipe)
    lm = load_lm(train_lm(recipe, [deep, flat], here(tmp_path / "run", steps=2)))
    assert lm.config.num_codebooks == 3
    assert (next((tmp_path / "run" / "codes").glob("*.u16"))).stat().st_size == (3 * 20 + 5 * 30) * 3 * 2


def test_a_bandwidth_chooses_the_levels(recipe, dataset, tmp_path):
    """Any up to the stored one; a run of another bandwidth is another run."""
    lm = load_lm(train_lm(recipe, [dataset], here(tmp_path / "run", steps=1), bandwidth_kbps=24.0))
    assert lm.config.num_codebooks == 2
    with pytest.raises(CheckpointError, match="another recipe"):
        train_lm(recipe, [dataset], here(tmp_path / "run", steps=1))


def test_more_than_there_is_cannot_be_learnt(plain_recipe, tiny_codec_dir, tmp_path):
    """A bandwidth above the stored one, codes of another size than the recipe's: refused before anything is read."""
    flat = write_codes(tmp_path / "flat", tiny_codec_dir, counting_codes(5, 30, num_codebooks=2))
    with pytest.raises(ValueError, match="48 kbps has 4 levels, the datasets store 2"):
        train_lm(written(tmp_path, plain_recipe), [flat], here(tmp_path / "run"), bandwidth_kbps=48.0)
    plain_recipe["model"]["codebook_size"] = 32
    with pytest.raises(ValueError, match="codebooks of 32 entries, the datasets have 16"):
        train_lm(written(tmp_path, plain_recipe), [flat], here(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_fine_tuning_starts_from_a_model(plain_recipe, recipe, dataset, tmp_path):
    """With a rate of almost nothing the model that comes out is the one that went in; another shape is refused."""
    start = train_lm(recipe, [dataset], here(tmp_path / "start"))
    plain_recipe["optimizer"] |= {"learning_rate": 1e-12}
    slow = written(tmp_path, plain_recipe)
    tuned = train_lm(slow, [dataset], here(tmp_path / "tuned", init_from=str(start)))
    torch.testing.assert_close(weights(tuned), weights(start), rtol=2e-3, atol=1e-4)
    assert (weights(train_lm(slow, [dataset], here(tmp_path / "fresh"))) - weights(start)).abs().max() > 0.01
    plain_recipe["model"] |= {"hidden_dim": 48}
    with pytest.raises(ValueError, match="other sizes"):
        train_lm(written(tmp_path, plain_recipe), [dataset], here(tmp_path / "other", init_from=str(start)))


def test_a_dataset_whose_codec_is_gone_can_be_learnt(tiny_codec_dir, recipe, tmp_path, capsys):
    """Embeddings then start at random instead of at the codec's entries, and a line says so."""
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, counting_codes(5, 30))
    info = read_dataset_info(dataset)
    write_dataset_info(dataset, dataclasses.replace(info, codec=info.codec | {"source": str(tmp_path / "gone")}))
    run = TrainingRun(run_dir=tmp_path / "run", steps=1, threads=1)
    assert load_lm(train_lm(recipe, [dataset], run)).config.num_codebooks == 4
    assert "embeddings start at random, for want of the codec" in capsys.readouterr().err
