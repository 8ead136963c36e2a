"""The commands `quantone train ...`: arguments in, one public function called."""

import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.training.training_run import TrainingRun
from tests.conftest import tiny_spec


def test_every_option_reaches_the_training(tmp_path, monkeypatch, capsys):
    """--data as often as it is given, patterns as they are."""
    seen = {}

    def train_codec(recipe, data, run):
        seen.update(recipe=recipe, data=data, run=run)
        return run.run_dir / "codec"

    monkeypatch.setattr("pipelines.training.train_codec.train_codec", train_codec)
    (tmp_path / "a").mkdir()
    (tmp_path / "b-1.tar").touch()
    data = ["--data", str(tmp_path / "a"), "--data", str(tmp_path / "b-*.tar")]
    where = ["--run-dir", str(tmp_path / "run"), "--init-from", "speech_24khz"]
    how = ["--steps", "7", "--threads", "1", "--processes", "4", "--data-workers", "2"]
    assert main(["train", "codec", "speech_24khz", *data, *where, *how]) == 0
    assert seen == {
        "recipe": "speech_24khz",
        "data": [tmp_path / "a", tmp_path / "b-*.tar"],
        "run": TrainingRun(
            run_dir=tmp_path / "run",
            steps=7,
            init_from="speech_24khz",
            num_processes=4,
            data_workers=2,
            threads=1,
        ),
    }
    assert str(tmp_path / "run" / "codec") in capsys.readouterr().out


def test_every_option_reaches_the_training_of_a_language_model(tmp_path, monkeypatch, capsys):
    """As many datasets as are given; the recipe of the bundled codec where none is named."""
    seen = {}

    def train_lm(recipe, datasets, run, **rest):
        seen.update(recipe=recipe, datasets=datasets, run=run, **rest)
        return run.run_dir / "lm"

    monkeypatch.setattr("pipelines.training.train_lm.train_lm", train_lm)
    datasets = [str(tmp_path / name) for name in ("a", "b")]
    for dataset in datasets:
        Path(dataset).mkdir()
        Path(dataset, "dataset.json").touch()
    options = ["--steps", "7", "--init-from", "start", "--processes", "4", "--threads", "1", "--bandwidth", "6"]
    said = tmp_path / "said.jsonl"
    said.touch()
    options += ["--transcripts", str(said)]
    assert main(["train", "lm", *datasets, "--run-dir", str(tmp_path / "run"), *options]) == 0
    run = TrainingRun(run_dir=tmp_path / "run", steps=7, init_from="start", num_processes=4, data_workers=0, threads=1)
    rest = {"bandwidth_kbps": 6.0, "transcripts": said}
    assert seen == {"recipe": "lm_speech_24khz", "datasets": datasets, "run": run, **rest}
    assert str(tmp_path / "run" / "lm") in capsys.readouterr().out
    assert main(["train", "lm", datasets[0], "--recipe", "mine.yaml", "--run-dir", str(tmp_path / "run")]) == 0
    assert (seen["recipe"], seen["bandwidth_kbps"], seen["transcripts"]) == ("mine.yaml", None, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nowhere"], "nowhere: not a token dataset"),
        (["tokens", "--recipe", "speech_24khz"], "no recipe 'speech_24khz'"),
        (["tokens", "--threads", "0"], "threads"),
        (["tokens", "--transcripts", "nowhere.jsonl"], "--transcripts nowhere.jsonl: no such file"),
    ],
    ids=["dataset", "recipe", "threads", "transcripts"],
)
def test_wrong_usage_of_train_lm_is_one_line_and_exit_code_2(options, reason, tmp_path, monkeypatch, capsys):
    """Before any token is read."""
    monkeypatch.chdir(tmp_path)
    Path("tokens").mkdir()
    Path("tokens/dataset.json").touch()
    assert main(["train", "lm", *options, "--run-dir", "run"]) == 2
    assert reason in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["speech_24khz", "--data", "nowhere"], "nowhere: no such file"),
        (["speech_24khz", "--data", ".", "--init-from", "nothing"], "nothing"),
        (["no_recipe", "--data", "."], "no recipe 'no_recipe'"),
        (["speech_24khz", "--data", ".", "--processes", "0"], "processes"),
    ],
    ids=["data", "codec", "recipe", "processes"],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, reason, tmp_path, monkeypatch, capsys):
    """Before anything is decoded or trained."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "codec", *arguments, "--run-dir", "run"]) == 2
    assert reason in capsys.readouterr().err
    assert not Path("run/audio").exists()


def test_a_loss_that_is_not_finite_ends_with_exit_code_1(tmp_path, speech_folder, capsys):
    """With its name; the run directory stays as it was after the last checkpoint."""
    recipe = {
        "name": "tiny",
        "codec": tiny_spec("patch").to_dict(),
        "objective": {"mel": {"windows": [64]}, "discriminator": None, "balanced": False, "time_weight": 1.0e38},
        "optimizer": {"learning_rate": 1.0e30, "gradient_clip": 1.0e30},
        "data": {"sampling": {"one": 1.0}},
        "schedule": {"steps": 50, "batch_size": 2, "crop_seconds": 0.05, "checkpoint_every": 50, "log_every": 50},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--data", str(speech_folder), "--run-dir", str(tmp_path / "run"), "--data-workers", "0"]
    assert main(["train", "codec", str(tmp_path / "tiny.yaml"), *options]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(("error: a loss is not finite", "error: the gradient"))


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    """Training needs packages that a plain install leaves out: one line says how to get them."""
    for module in (
        "pipelines.training.train_codec",
        "pipelines.training.training_loop",
        "pipelines.training.training_log",
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["train", "codec", "speech_24khz", "--data", str(tmp_path), "--run-dir", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.strip().endswith("pip install 'quantone[train]'")
