"""Residual vector quantization, in the latent space and in a small one."""

import pytest
import torch
from torch.nn import functional

from tokenizer.quantizer import FactorizedQuantizer, ResidualQuantizer

SCALES = torch.tensor([1.0, 0.5, 0.25, 0.125])[:, None, None]


def plain_search(quantizer, residual, level):
    """The definition, one vector [D] at a time and without matrix products: a code and its vector."""
    codebook = quantizer.codebooks[level]
    if isinstance(quantizer, ResidualQuantizer):
        code = (codebook - residual).norm(dim=1).argmin()
        return code, codebook[code]
    point = quantizer.in_weight[level] @ residual + quantizer.in_bias[level]
    code = functional.cosine_similarity(codebook, point[None], dim=1).argmax()
    return code, quantizer.out_weight[level] @ codebook[code] + quantizer.out_bias[level]


@pytest.fixture(params=["residual", "factorized"])
def quantizer(request):
    """Four levels of sixteen entries, each level finer than the one before."""
    torch.manual_seed(0)
    made = ResidualQuantizer(4, 16, 8) if request.param == "residual" else FactorizedQuantizer(4, 16, 3, 8)
    made.set_codebooks(torch.randn(made.codebooks.shape) * SCALES)
    return made.requires_grad_(requires_grad=False)


def test_each_level_takes_the_entry_nearest_to_what_is_left(quantizer):
    """The definition, written out with loops."""
    latents = torch.randn(2, 8, 5)
    codes = quantizer.encode(latents, 4)
    for item in range(2):
        for frame in range(5):
            residual = latents[item, :, frame]
            for level in range(4):
                nearest, vector = plain_search(quantizer, residual, level)
                assert codes[item, level, frame] == nearest
                residual = residual - vector


def test_decoding_sums_the_vectors(quantizer):
    """Level by level."""
    codes = torch.randint(0, 16, (2, 3, 5))
    expected = sum(quantizer.decode_level(codes[:, level], level) for level in range(3)).transpose(1, 2)
    torch.testing.assert_close(quantizer.decode(codes), expected)


def test_a_sum_of_first_level_entries_is_found_again():
    """Latents that are exactly an entry cost the first level only: the rest sees zeros."""
    quantizer = ResidualQuantizer(2, 16, 8)
    quantizer.set_codebooks(torch.randn(2, 16, 8))
    codes = torch.arange(16)[None, None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes), 1), codes)


def test_entries_far_from_zero_are_told_apart():
    """Distances are taken around the mean entry: float32 keeps their digits where |c|^2 would swallow them."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 64, 8)
    quantizer.set_codebooks(1000 + 0.01 * torch.randn(1, 64, 8))
    latents = 1000 + 0.01 * torch.randn(1, 8, 500)
    exact = torch.cdist(latents[0].T.double(), quantizer.codebooks[0].double()).argmin(dim=1)
    assert (quantizer.encode(latents, 1)[0, 0] != exact).sum() <= 5


def test_levels_beyond_the_bandwidth_are_never_computed(quantizer):
    """Poisoned codebooks past the requested level change nothing."""
    latents = torch.randn(1, 8, 5)
    expected = quantizer.encode(latents, 4)[:, :2]
    poisoned = quantizer.codebooks.clone()
    poisoned[2:] = torch.nan
    quantizer.set_codebooks(poisoned)
    assert torch.equal(quantizer.encode(latents, 2), expected)


def test_loaded_codebooks_are_ready_to_be_searched(quantizer):
    """What the search needs beside them is computed when they are loaded, and is no part of the weights."""
    latents = torch.randn(1, 8, 50)
    kind = type(quantizer)
    other = kind(4, 16, 8) if kind is ResidualQuantizer else kind(4, 16, 3, 8)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.encode(latents, 4), quantizer.encode(latents, 4))
    assert not {"centres", "offsets", "norms"} & set(quantizer.state_dict())


def test_no_frames_give_no_codes(quantizer):
    """A stream may be silent for a step."""
    assert quantizer.encode(torch.zeros(2, 8, 0), 3).shape == (2, 3, 0)
    assert quantizer.decode(torch.zeros(2, 3, 0, dtype=torch.int64)).shape == (2, 8, 0)
