"""Speeds of entropy coding: both take turns in one run, on the same tokens and weights."""

import numpy as np
import pytest
import torch

from lm_head import LMCard, LMConfig, TokenLM, save_lm
from lm_head.lm_training import calibrated_steps
from pipelines.benchmarking.bench_lm import LMBenchSettings, bench_lm
from pipelines.cli import main
from tokenizer import CheckpointError, load_codec


@pytest.fixture(scope="module")
def lm_dir(tmp_path_factory, tiny_codec_dir):
    """A language model of the tiny codec, of the shape that the original's have."""
    codec = load_codec(tiny_codec_dir)
    config = LMConfig(
        num_codebooks=4, codebook_size=16, dim=32, num_layers=1, num_heads=8, hidden_dim=64, context_frames=20
    )
    torch.manual_seed(0)
    lm = TokenLM(config).eval()
    steps = calibrated_steps(lm, torch.randint(0, 16, (4, 4, 30)))
    directory = tmp_path_factory.mktemp("bench") / "lm"
    save_lm(lm, directory, LMCard("tiny", codec.card() | {"name": str(tiny_codec_dir)}), steps)
    return directory


def test_the_reference_takes_turns_with_ours(lm_dir):
    settings = LMBenchSettings(seconds=0.02, bandwidths_kbps=(24.0, 48.0), rounds=1)
    rows = bench_lm(str(lm_dir), settings)
    assert [row.bandwidth_kbps for row in rows] == [24.0] * 3 + [48.0] * 3
    for row in rows:
        assert row.ratio == pytest.approx(row.speed / row.reference_speed)
        assert np.isfinite(row.bits_per_code)


def test_the_command_prints_a_table(lm_dir, capsys):
    arguments = [str(lm_dir), "--seconds", "0.1", "--rounds", "1", "--bandwidth", "48"]
    assert main(["bench", "lm", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "decompress 8 streams" in shown
    assert "encodec" not in shown
    assert main(["bench", "lm", *arguments, "--against", "opus"]) == 2


def test_a_model_of_another_codec_is_told(lm_dir, tmp_path, tiny_codec_dir):
    lm = TokenLM(LMConfig(num_codebooks=4, codebook_size=16, dim=32, num_layers=1, hidden_dim=64))
    card = LMCard("other", {"name": str(tiny_codec_dir), "sha256": "0" * 64})
    save_lm(lm, tmp_path / "lm", card, torch.ones(2, 8))
    with pytest.raises(CheckpointError, match="another codec"):
        bench_lm(str(tmp_path / "lm"))
