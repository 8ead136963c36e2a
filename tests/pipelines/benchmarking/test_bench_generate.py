"""Speed of generation: every layout, alone or many streams at once."""

import torch

from lm_head.lm_checkpoint import LMCard, save_lm
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.benchmarking.bench_generate import GenerationBench, bench_generate, generation_table

QUICK = GenerationBench(num_frames=4, prompt_frames=3, num_codebooks=2, batch_sizes=(1, 3), rounds=1)


def test_every_layout_is_measured():
    """Without a model: random weights in each; tokens are counted over levels and rows."""
    speeds = bench_generate(settings=QUICK)
    assert [(speed.name, speed.batch_size) for speed in speeds] == [
        (name, batch_size) for name in ("parallel", "delay", "coarse_first") for batch_size in (1, 3)
    ]
    for speed in speeds:
        assert speed.tokens_per_second == speed.frames_per_second * speed.batch_size * 2
        assert 0 < speed.first_frames_s <= 4 / speed.frames_per_second
    assert generation_table(speeds).row_count == 6


def test_a_model_is_measured_alone(tmp_path):
    """Whatever can be loaded."""
    with torch.random.fork_rng():
        lm = TokenLM(LMConfig(num_codebooks=2, dim=16, num_heads=2, num_layers=1, hidden_dim=16))
    save_lm(lm, tmp_path, LMCard("tiny", {}))
    assert [speed.name for speed in bench_generate(str(tmp_path), settings=QUICK)] == [str(tmp_path)] * 2
