"""Residual vector quantization."""

import pytest
import torch

from tokenizer.quantizer import ResidualQuantizer


@pytest.fixture
def quantizer():
    """Four levels of sixteen entries in eight dimensions, each level finer than the one before."""
    torch.manual_seed(0)
    made = ResidualQuantizer(4, 16, 8)
    made.codebooks.copy_(torch.randn(4, 16, 8) * torch.tensor([1.0, 0.5, 0.25, 0.125])[:, None, None])
    return made


def test_each_level_takes_the_entry_nearest_to_what_is_left(quantizer):
    """The definition, written out with loops."""
    latents = torch.randn(2, 8, 5)
    codes = quantizer.encode(latents, 4)
    for item in range(2):
        for frame in range(5):
            residual = latents[item, :, frame]
            for level in range(4):
                nearest = (quantizer.codebooks[level] - residual).norm(dim=1).argmin()
                assert codes[item, level, frame] == nearest
                residual = residual - quantizer.codebooks[level, nearest]


def test_decoding_sums_the_entries(quantizer):
    """Level by level."""
    codes = torch.randint(0, 16, (2, 3, 5))
    expected = sum(quantizer.codebooks[level][codes[:, level]] for level in range(3)).transpose(1, 2)
    torch.testing.assert_close(quantizer.decode(codes), expected)


def test_a_sum_of_first_level_entries_is_found_again(quantizer):
    """Latents that are exactly an entry cost the first level only: the rest sees zeros."""
    codes = torch.arange(16)[None, None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes), 1), codes)


def test_levels_beyond_the_bandwidth_are_never_computed(quantizer):
    """Poisoned codebooks past the requested level change nothing."""
    latents = torch.randn(1, 8, 5)
    expected = quantizer.encode(latents, 4)[:, :2]
    quantizer.codebooks[2:] = torch.nan
    assert torch.equal(quantizer.encode(latents, 2), expected)


def test_no_frames_give_no_codes(quantizer):
    """A stream may be silent for a step."""
    assert quantizer.encode(torch.zeros(2, 8, 0), 3).shape == (2, 3, 0)
    assert quantizer.decode(torch.zeros(2, 3, 0, dtype=torch.int64)).shape == (2, 8, 0)
