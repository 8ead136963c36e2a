"""Training every kind of language model by a recipe: other layouts, and models that read what is said."""

import json

import numpy as np
import pytest
import torch
import yaml

from lm_head.coarse_first import CoarseFirstLM
from lm_head.generation import generate
from lm_head.lm_checkpoint import load_lm
from lm_head.lm_training import LMTraining
from lm_head.sampling import Sampling
from pipelines.training.train_lm import train_lm
from pipelines.training.training_log import read_log
from pipelines.training.training_run import TrainingRun
from tests.pipelines.token_datasets import counting_codes, write_codes
from tokenizer import CheckpointError, DatasetError

SIZES = {
    "codebook_size": 16, "dim": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 64, "context_frames": 12,
}  # fmt: skip
STRIDES = {"up": 1, "down": 15}  # what level 0 goes on by in each frame
TIMED = {"steps_per_s", "per_s", "wait_share", "minutes", "steps"}


def model_of(kind, *, text=False):
    """What a recipe says about a tiny model of three levels."""
    sizes = SIZES | {"text": text}
    if kind != "coarse_first":
        return sizes | {"layout": kind, "num_codebooks": 3}
    pair = {"coarse": sizes | {"num_codebooks": 1}, "fine": sizes | {"num_codebooks": 3}}
    return {"layout": kind, "stretch_frames": 5} | pair


def recipe_of(folder, model, **schedule):
    plain = {
        "name": "tiny",
        "model": model,
        "objective": {"levels": [3], "max_offset": 0, "grid_from": 1},
        "optimizer": {"learning_rate": 5e-3, "betas": [0.9, 0.95]},
        "held_out": {"share": 0.2, "utterances": 3},
        "schedule": {"steps": 6, "batch_size": 4, "crop_frames": 20, "checkpoint_every": 3, "log_every": 3} | schedule,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture
def said():
    """Two hundred utterances of 10 to 24 frames, the text of each, and nothing else that would tell where it goes."""
    rng = np.random.default_rng(0)
    return {f"s/u{number}.wav": ("up", "down")[int(rng.integers(2))] for number in range(200)}


@pytest.fixture
def dataset(tiny_codec_dir, tmp_path, said):
    """Level 0 counts by the word's stride from anywhere, level 1 is its mirror image, level 2 the frame before."""
    rng, utterances = np.random.default_rng(1), {}
    for name, word in said.items():
        level = (rng.integers(16) + STRIDES[word] * np.arange(-1, rng.integers(10, 25))) % 16
        utterances[name] = np.stack([level[1:], 15 - level[1:], level[:-1]])
    return write_codes(tmp_path / "tokens", tiny_codec_dir, utterances, rows_per_part=100)


@pytest.fixture
def transcripts(tmp_path, said):
    """A manifest; two utterances are not in it."""
    path = tmp_path / "said.jsonl"
    rows = [{"member": name, "transcript": word} for name, word in said.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-2]))
    return path


def here(run_dir, **changes):
    """A run in this process, quietly."""
    return TrainingRun(run_dir=run_dir, data_workers=0, threads=1, **({"shown": False} | changes))


def curve(run_dir):
    """Every logged number that is not about time."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_log(run_dir)]


def weights(lm):
    return torch.cat([parameter.flatten() for parameter in load_lm(lm).parameters()])


@pytest.mark.parametrize("kind", ["delay", "coarse_first"])
def test_text_decides_what_follows(kind, dataset, transcripts, tmp_path):
    """One frame and a word: the learned model counts the way that the word says, and pays for the wrong one."""
    recipe = recipe_of(
        tmp_path, model_of(kind, text=True), steps=250, batch_size=16, checkpoint_every=250, log_every=250
    )
    directory = train_lm(recipe, [dataset], here(tmp_path / "run"), transcripts=transcripts)
    lm = load_lm(directory)
    assert isinstance(lm, CoarseFirstLM) == (kind == "coarse_first")
    words = list(STRIDES) * 8
    start = torch.arange(16)[:, None]
    level = (start + torch.tensor([[STRIDES[word]] for word in words]) * torch.arange(-1, 9)) % 16
    codes = torch.stack([level[:, 1:], 15 - level[:, 1:], level[:, :-1]], dim=1)
    new = torch.cat(list(generate(lm, codes[..., :1], 8, sampling=Sampling(temperature=0), text=words)), dim=-1)
    assert (new == codes[..., 1:]).float().mean() > 0.95
    (row,) = read_log(tmp_path / "run")
    assert json.loads((directory / "config.json").read_text())["form"] == "float"
    assert row["bits_held_out"][0] < 1.5
    assert row["bits_other_text"][0] > row["bits_held_out"][0] + 0.5


@pytest.mark.parametrize("kind", ["delay", "coarse_first"])
def test_other_layouts_are_trained_without_text_too(kind, tiny_codec_dir, tmp_path):
    """Crops as ever; the model has the levels that the datasets store, and nothing is said about texts."""
    flat = write_codes(tmp_path / "flat", tiny_codec_dir, counting_codes(10, 30, num_codebooks=2))
    recipe = recipe_of(tmp_path, model_of(kind))
    lm = load_lm(train_lm(recipe, [flat], here(tmp_path / "run")))
    assert (lm.config.layout, lm.config.num_codebooks) == (kind, 2)
    last = read_log(tmp_path / "run")[-1]
    assert len(last["bits_held_out"]) == 2
    assert "bits_other_text" not in last
    assert last["seen"] == 6 * 4 * 20


@pytest.mark.parametrize("kind", ["delay", "coarse_first"])
def test_a_run_with_text_that_failed_goes_on_as_if_it_had_not(kind, dataset, transcripts, tmp_path, monkeypatch):
    """The same weights to the last bit, and log."""
    recipe = recipe_of(tmp_path, model_of(kind, text=True))
    whole = train_lm(recipe, [dataset], here(tmp_path / "whole"), transcripts=transcripts)
    step = LMTraining.step

    def failing(self, codes, number, **rest):
        if number == 4:
            raise FloatingPointError("the loss of the language model is not finite")
        return step(self, codes, number, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(LMTraining, "step", failing)
        with pytest.raises(FloatingPointError):
            train_lm(recipe, [dataset], here(tmp_path / "parts"), transcripts=transcripts)
    resumed = train_lm(recipe, [dataset], here(tmp_path / "parts"), transcripts=transcripts)
    assert torch.equal(weights(resumed), weights(whole))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_recipes_of_different_layouts_do_not_share_a_run(dataset, transcripts, tmp_path):
    """The checkpoint is of another recipe, and stays."""
    train_lm(recipe_of(tmp_path, model_of("delay")), [dataset], here(tmp_path / "run", steps=1))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for kind, text in [("coarse_first", False), ("delay", True)]:
        recipe = recipe_of(tmp_path, model_of(kind, text=text))
        with pytest.raises(CheckpointError, match="another recipe"):
            train_lm(recipe, [dataset], here(tmp_path / "run", steps=1), transcripts=transcripts if text else None)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_fine_tuning_takes_the_same_kind(dataset, transcripts, tmp_path):
    """Any kind can be gone on from; one that reads is no start for one that does not."""
    pair = recipe_of(tmp_path, model_of("coarse_first", text=True))
    start = train_lm(pair, [dataset], here(tmp_path / "start"), transcripts=transcripts)
    slow = yaml.safe_load(pair.read_text())
    slow["optimizer"]["learning_rate"] = 1e-12
    pair.write_text(yaml.safe_dump(slow))
    tuned = here(tmp_path / "tuned", init_from=str(start))
    torch.testing.assert_close(
        weights(train_lm(pair, [dataset], tuned, transcripts=transcripts)), weights(start), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="other sizes"):
        train_lm(recipe_of(tmp_path, model_of("coarse_first")), [dataset], here(tmp_path / "x", init_from=str(start)))


def test_a_line_says_how_many_are_left_out(dataset, transcripts, tmp_path, capsys):
    """Those that the manifest does not have."""
    recipe = recipe_of(tmp_path, model_of("delay", text=True))
    train_lm(recipe, [dataset], here(tmp_path / "run", steps=1, shown=True), transcripts=transcripts)
    assert "2 without a transcript are left out" in capsys.readouterr().err


def test_transcripts_must_fit_model_and_datasets(dataset, transcripts, tmp_path):
    """None for a model that reads, some for one that does not, and those of other utterances."""
    reading = recipe_of(tmp_path, model_of("delay", text=True))
    with pytest.raises(DatasetError, match="name a file of transcripts"):
        train_lm(reading, [dataset], here(tmp_path / "a"))
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "elsewhere/x.wav", "text": "so"}')
    with pytest.raises(DatasetError, match=r"ids are like 's/u199.wav' there, and like 'elsewhere/x.wav' in the file"):
        train_lm(reading, [dataset], here(tmp_path / "a"), transcripts=other)
    with pytest.raises(ValueError, match="does not read"):
        train_lm(recipe_of(tmp_path, model_of("delay")), [dataset], here(tmp_path / "b"), transcripts=transcripts)
    assert not (tmp_path / "b").exists()
