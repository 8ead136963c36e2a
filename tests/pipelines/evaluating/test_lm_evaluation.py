"""Bits per code of a language model over a dataset."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from lm_head.entropy import code_histogram, order_zero_entropy
from lm_head.integer_coder import IntegerCoder
from lm_head.integer_lm import IntegerLM
from lm_head.integer_weights import quantize
from lm_head.lm_training import calibrated_steps
from lm_head.qtn import MAX_FRAMES_PER_BLOCK
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.evaluating.lm_evaluation import block_bits, evaluate_lm
from pipelines.evaluating.lm_evaluation_table import lm_evaluation_table
from tests.pipelines.token_datasets import counting_codes, write_codes
from tokenizer import DatasetError

SIZES = {"codebook_size": 16, "dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "context_frames": 10}


def make_lm(num_codebooks=4, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = TokenLM(LMConfig(num_codebooks=num_codebooks, **SIZES | changes))
        torch.nn.init.normal_(lm.head_bias)
    return lm.eval().requires_grad_(requires_grad=False)


def make_coder(lm):
    codes = torch.randint(0, 16, (4, 4, 50), generator=torch.Generator().manual_seed(0))
    return IntegerCoder(IntegerLM(quantize(lm, calibrated_steps(lm, codes))))


@pytest.fixture
def utterances():
    """Three of 50 frames and one of one frame."""
    return counting_codes(3, 50) | {"single": np.array([[1], [2], [3], [4]])}


@pytest.fixture
def dataset(tiny_codec_dir, utterances, tmp_path):
    """They as a dataset."""
    return write_codes(tmp_path / "tokens", tiny_codec_dir, utterances)


@torch.no_grad()
def stepwise_bits(lm, codes, block_frames):
    """What the entropy coder pays: frame after frame, from a fresh state at each block. [K, T]."""
    bits = np.zeros(codes.shape)
    for frame in range(codes.shape[1]):
        if frame % block_frames == 0:
            logits, state = lm.begin(1, len(codes))
        else:
            logits, state = lm.step(torch.from_numpy(codes[None, :, frame - 1 : frame]), state)
        costs = -logits[0, 0].log_softmax(dim=-1) / np.log(2)  # [K, V]
        bits[:, frame] = costs.gather(1, torch.from_numpy(codes[:, frame, None]))[:, 0]
    return bits


def test_blocks_cost_what_a_coder_pays_that_starts_afresh(utterances):
    """Cut at 20 frames, in blocks of 20, 20 and 10: the bits of the stepwise model."""
    lm, codes = make_lm(), utterances["u000"]
    blocks = list(block_bits(lm, codes, 20))
    assert [block.shape for block in blocks] == [(4, 20), (4, 20), (4, 10)]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), stepwise_bits(lm, codes, 20), atol=1e-4)


def test_each_bandwidth_is_judged_with_its_own_levels(dataset, utterances):
    """The mean over all codes, by level; the model knows only the levels that are sent."""
    lm = make_lm()
    evaluation = evaluate_lm(lm, dataset, shown=False)
    assert (evaluation.num_utterances, evaluation.num_frames) == (4, 151)
    assert evaluation.block_frames == MAX_FRAMES_PER_BLOCK  # ten seconds of the tiny codec would be 30,000
    assert [len(score.bits) for score in evaluation.scores] == [2, 4]
    for score in evaluation.scores:
        levels = len(score.bits)
        costs = [stepwise_bits(lm, codes[:levels], MAX_FRAMES_PER_BLOCK) for codes in utterances.values()]
        expected = np.concatenate(costs, axis=1).mean(axis=1)
        np.testing.assert_allclose(score.bits, expected, rtol=1e-4)
        assert score.saved == pytest.approx(1 - expected.mean() / 4, rel=1e-3)
        order_0 = order_zero_entropy(code_histogram(np.concatenate(list(utterances.values()), axis=1), 16))
        np.testing.assert_allclose(score.order_0_bits, order_0[:levels])
        assert score.saved_of_order_0 == pytest.approx(1 - expected.mean() / order_0[:levels].mean(), rel=1e-3)
        assert score.raw_bits == 4


def test_a_uniform_model_saves_nothing(dataset):
    """Every code costs log2 V bits."""
    lm = make_lm()
    lm.head_weight.zero_()
    lm.head_bias.zero_()
    for score in evaluate_lm(lm, dataset, shown=False).scores:
        assert score.bits == pytest.approx([4.0] * len(score.bits))
        assert score.saved == pytest.approx(0, abs=1e-6)
        assert score.saved_of_order_0 <= 0


def test_a_smaller_model_is_judged_on_what_it_has(dataset):
    """Two levels of four; more cannot be asked for."""
    lm = make_lm(num_codebooks=2)
    scores = evaluate_lm(lm, dataset, shown=False).scores
    assert [len(score.bits) for score in scores] == [2]
    assert scores[0].bandwidth_kbps == 24.0
    with pytest.raises(ValueError, match="48 kbps: dataset and model have 24 kbps"):
        evaluate_lm(lm, dataset, bandwidths_kbps=[48.0], shown=False)
    assert [
        score.bandwidth_kbps for score in evaluate_lm(make_lm(3), dataset, bandwidths_kbps=[36.0], shown=False).scores
    ] == [36.0]


def test_another_codebook_size_is_refused(dataset):
    """Codes of 16 to a model of 32."""
    with pytest.raises(DatasetError, match=r"codes up to 16, the model up to 32"):
        evaluate_lm(make_lm(codebook_size=32), dataset, shown=False)


def test_a_dataset_without_codes_is_refused(tiny_codec_dir, tmp_path):
    """There is no mean of nothing."""
    empty = write_codes(tmp_path / "empty", tiny_codec_dir, {"u0": np.zeros((4, 0))})
    with pytest.raises(DatasetError, match="no codes"):
        evaluate_lm(make_lm(), empty, shown=False)


def test_the_table_and_the_file_have_every_figure(dataset, tmp_path):
    """A row a level, a column a bandwidth, what is saved below; the same as JSON."""
    evaluation = evaluate_lm(make_lm(), dataset, limit=2, shown=False)
    assert evaluation.num_utterances == 2
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(lm_evaluation_table(evaluation))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["level", "raw", "order", "0", "24", "kbps", "48", "kbps"]
    low, high = evaluation.scores
    assert lines[1] == ["0", "4", f"{high.order_0_bits[0]:.3f}", f"{low.bits[0]:.3f}", f"{high.bits[0]:.3f}"]
    assert lines[4] == ["3", "4", f"{high.order_0_bits[3]:.3f}", f"{high.bits[3]:.3f}"]
    assert lines[-2] == ["saved", "of", "raw", f"{low.saved:.1%}", f"{high.saved:.1%}"]
    evaluation.write(tmp_path / "bits.json")
    saved = json.loads((tmp_path / "bits.json").read_text())
    assert saved["scores"][1]["bits"] == pytest.approx(high.bits)
    assert saved["scores"][0]["saved"] == pytest.approx(low.saved)
    assert saved["num_frames"] == 100
    assert "streams" not in saved["scores"][0]


def test_a_coder_is_judged_by_its_streams_too(dataset, utterances, tmp_path):
    """The same bits per code, and beside them those in integers and the sizes of files at each bandwidth."""
    lm = make_lm()
    plain = evaluate_lm(lm, dataset, shown=False)
    evaluation = evaluate_lm(lm, dataset, coder=make_coder(lm), shown=False)
    assert [score.bits for score in evaluation.scores] == [score.bits for score in plain.scores]
    assert plain.scores[0].integer_excess is None
    for score in evaluation.scores:
        assert len(score.streams.integer_bits) == len(score.bits)
        assert score.integer_excess == pytest.approx(sum(score.streams.integer_bits) / sum(score.bits) - 1)
        assert abs(score.integer_excess) < 0.02
        num_frames = sum(codes.shape[1] for codes in utterances.values())
        assert score.streams.codes_bytes == -(-num_frames * len(score.bits) * 4 // 8)
        assert score.streams.seconds == num_frames * 8 / 24000
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(lm_evaluation_table(evaluation))
    lines = [line.rsplit(maxsplit=2) for line in console.export_text().splitlines()]
    cells = {name.strip(): values for name, *values in lines}
    scores = evaluation.scores
    assert cells["more than in floats"] == [f"{score.integer_excess:.2%}" for score in scores]
    assert cells["kbps .qtn"] == [f"{score.streams.kbps(score.streams.files.model):.3f}" for score in scores]
    assert cells["saved of packed"] == [f"{score.streams.files.saved:.1%}" for score in scores]
    assert cells["saved of one order 0"] == [f"{score.streams.joined.saved_of_order_0:.1%}" for score in scores]
    evaluation.write(tmp_path / "bits.json")
    saved = json.loads((tmp_path / "bits.json").read_text())["scores"][1]
    assert saved["streams"]["files"]["saved"] == scores[1].streams.files.saved
    assert saved["integer_excess"] == scores[1].integer_excess
