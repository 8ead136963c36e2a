"""Sizes of real streams: packed, by frequencies, by a language model in integers."""

import numpy as np
import pytest
import torch

from lm_head import TokenLM, compress, decompress_many
from lm_head.integer_coder import IntegerCoder
from lm_head.integer_lm import IntegerLM
from lm_head.integer_weights import dequantize, quantize
from lm_head.lm_training import calibrated_steps
from lm_head.order_zero_coder import OrderZeroCoder
from lm_head.token_lm import LMConfig
from pipelines.datasets.stored_codes import StoredUtterance
from pipelines.evaluating import stream_sizes
from pipelines.evaluating.lm_evaluation import block_bits
from pipelines.evaluating.stream_sizes import frequency_bits, measure_streams
from pipelines.progress import Progress
from tests.lm_head.small_coders import CODEC, predictable_codes
from tokenizer import BitstreamError

SIZES = {"codebook_size": 16, "dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "context_frames": 10}


def make_weights(*, knows):
    """A model in integers that knows the frequencies of `predictable_codes`, or that has random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = TokenLM(LMConfig(num_codebooks=4, **SIZES)).eval().requires_grad_(requires_grad=False)
        steps = calibrated_steps(lm, torch.randint(0, 16, (4, 4, 50)))
    if knows:
        lm.head_weight.zero_()
        lm.head_bias.copy_(-np.log(2) * torch.arange(1, 17.0))
    return quantize(lm, steps)


def make_coder(*, knows=True):
    return IntegerCoder(IntegerLM(make_weights(knows=knows)))


def utterance(name, num_frames, seed=0):
    return StoredUtterance(name, max(0, num_frames * 320 - 5), predictable_codes(4, num_frames, seed))


UTTERANCES = [utterance(f"u{seed}", frames, seed) for seed, frames in enumerate([100, 0, 30, 1700])]


def measure(coder, utterances=UTTERANCES, num_codebooks=4):
    with Progress("compressing", shown=False) as progress:
        return measure_streams(coder, utterances, num_codebooks, CODEC, progress)


@pytest.mark.parametrize("levels", [1, 4])
def test_sizes_are_those_of_the_files_that_compress_writes(levels):
    """Byte by byte, of all utterances, with the levels asked for."""
    coder, order_0 = make_coder(), OrderZeroCoder(4, 16)
    sizes = measure(coder, num_codebooks=levels)
    encoded = [StoredUtterance(each.id, each.num_samples, each.codes[:levels]).encoded() for each in UTTERANCES]
    assert sizes.files.packed == sum(len(compress(each, CODEC)) for each in encoded)
    assert sizes.files.model == sum(len(compress(each, CODEC, coder)) for each in encoded)
    assert sizes.files.order_0 == sum(len(compress(each, CODEC, order_0, 4096)) for each in encoded)
    assert sizes.codes_bytes == 1830 * levels * 4 / 8
    whole = np.concatenate([each.codes for each in UTTERANCES], axis=1)[:levels]
    assert sizes.joined.packed == len(compress(whole, CODEC))
    assert sizes.joined.model == len(compress(whole, CODEC, coder))
    assert sizes.seconds == pytest.approx((1830 * 320 - 15) / 24000)


def test_what_is_saved_is_what_the_model_knows():
    """Two bits a code of four; headers cost many short files more than one long stream."""
    sizes = measure(make_coder())
    assert sizes.integer_bits == pytest.approx([2.0] * 4, rel=0.05)
    assert 0.45 < sizes.saved_of_codes < sizes.files.saved < 0.5
    assert sizes.joined.saved > sizes.files.saved
    assert 0 < sizes.files.saved_of_order_0 < 0.1
    plain = sizes.to_dict()
    assert plain["files"]["saved"] == sizes.files.saved
    assert plain["saved_of_codes"] == sizes.saved_of_codes
    assert sizes.kbps(sizes.codes_bytes) == pytest.approx(1.2, rel=1e-3)  # 75 frames of four codes of four bits


def test_bits_of_frequencies_are_those_of_the_bytes_and_near_those_in_floats():
    """Block by block from a fresh state, in a model with something to see."""
    coder = make_coder(knows=False)
    codes = UTTERANCES[0].codes
    blocks = list(frequency_bits(coder, codes, 40))
    assert [bits.shape for bits in blocks] == [(4, 40), (4, 40), (4, 20)]
    for start, bits in zip((0, 40, 80), blocks, strict=True):
        payload = coder.encode([codes[:, start : start + 40]])[0]
        assert bits.sum() <= 8 * len(payload) <= bits.sum() + 72
    floats = np.concatenate(list(block_bits(dequantize(make_weights(knows=False)), codes, 40)), axis=1)
    assert np.concatenate(blocks, axis=1).sum() == pytest.approx(floats.sum(), rel=0.02)


def test_streams_that_give_other_codes_are_an_error(monkeypatch):
    """Some are read again, and compared."""

    def misread(streams, lm=None, *, codec=None):
        read = decompress_many(streams, lm, codec=codec)
        read[-1].codes[0, -1, -1] ^= 1
        return read

    monkeypatch.setattr(stream_sizes, "decompress_many", misread)
    with pytest.raises(BitstreamError, match="u3: its stream gives other codes"):
        measure(make_coder())
