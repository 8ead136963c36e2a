"""The command `quantone evaluate-lm`: a model and a dataset in, a table and a file out."""

import json

import pytest
import torch

from lm_head.lm_checkpoint import LMCard, save_lm
from lm_head.lm_training import calibrated_steps
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.cli import main
from tests.pipelines.token_datasets import counting_codes, write_codes


@pytest.fixture
def lm_dir(tmp_path):
    """A tiny model on disk in floating point, and beside it one in integers, `coder`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = TokenLM(LMConfig(num_codebooks=4, codebook_size=16, dim=16, num_layers=1, num_heads=2, hidden_dim=32))
    save_lm(lm, tmp_path / "lm", LMCard("tiny", {}))
    codes = torch.randint(0, 16, (4, 4, 50), generator=torch.Generator().manual_seed(0))
    save_lm(lm, tmp_path / "coder", LMCard("tiny", {}), calibrated_steps(lm, codes))
    return str(tmp_path / "lm")


def test_a_model_is_judged_on_a_dataset(lm_dir, tiny_codec_dir, tmp_path, capsys):
    """The table on stdout, every figure in the file; --bandwidth and --limit choose."""
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, counting_codes(3, 20))
    output = tmp_path / "bits.json"
    options = ["--bandwidth", "24", "--limit", "2", "--quiet", "-o", str(output)]
    assert main(["evaluate-lm", lm_dir, dataset, *options]) == 0
    shown, scores = capsys.readouterr(), json.loads(output.read_text())["scores"]
    assert "2 utterances, 40 frames" in shown.out
    assert f"{scores[0]['bits'][1]:.3f}" in shown.out
    assert [score["bandwidth_kbps"] for score in scores] == [24.0]
    assert shown.err == ""
    assert ".qtn" not in shown.out


def test_a_model_in_integers_is_judged_by_its_streams_too(lm_dir, tiny_codec_dir, tmp_path, capsys):
    """Without being asked."""
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, counting_codes(3, 20))
    output = tmp_path / "bits.json"
    assert main(["evaluate-lm", str(tmp_path / "coder"), dataset, "--quiet", "-o", str(output)]) == 0
    shown, scores = capsys.readouterr(), json.loads(output.read_text())["scores"]
    assert f"{scores[0]['integer_excess']:.2%}" in shown.out
    assert [score["streams"]["codes_bytes"] for score in scores] == [60 * 2 * 4 // 8, 60 * 4 * 4 // 8]


@pytest.mark.parametrize(
    ("arguments", "reason", "code"),
    [
        (["LM", "nowhere"], "nowhere: not a token dataset", 2),
        (["nothing", "TOKENS"], "no language model 'nothing'", 1),
        (["LM", "TOKENS", "--bandwidth", "25"], "bandwidth 25 kbps is not available", 2),
    ],
    ids=["dataset", "model", "bandwidth"],
)
def test_what_is_not_there_is_one_line(arguments, reason, code, lm_dir, tiny_codec_dir, tmp_path, capsys):
    """On stderr, with the exit code of wrong usage or of a model that cannot be loaded."""
    dataset = write_codes(tmp_path / "tokens", tiny_codec_dir, counting_codes(1, 20))
    places = {"LM": lm_dir, "TOKENS": dataset}
    assert main(["evaluate-lm", *(places.get(argument, argument) for argument in arguments)]) == code
    assert reason in capsys.readouterr().err
