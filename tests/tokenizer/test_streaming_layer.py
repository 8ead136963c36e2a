"""Chains and residuals: layers that lag behind are waited for, and nothing is lost at the end."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.streaming_layer import Chain, Residual


def test_chains_nest():
    """A chain is a streaming layer itself, so the state of a chain in a chain is not lost."""
    layer = seeded(Chain, Conv1d(1, 2, 3), Chain(nn.ELU(), Conv1d(2, 1, 5)))
    x = noise(1, 1, 12)
    torch.testing.assert_close(stream(layer, x, [1, 0, 3, 2]), layer(x), atol=1e-5, rtol=0)


@given(cuts=CUTS, length=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_chain_of_layers_that_lag_ends_whole(cuts, length):
    """What an earlier layer gives at the end goes through the later ones, whose own ends come after it."""
    layer = seeded(
        Chain,
        Conv1d(1, 2, 5, causal=False),
        nn.ELU(),
        Conv1d(2, 2, 3, pad_mode="reflect"),
        ConvTranspose1d(2, 2, 6, stride=3, trim=(2, 1)),
        Conv1d(2, 1, 7, dilation=2, causal=False),
    )
    x = noise(2, 1, length)
    assert layer(x).shape == (2, 1, 3 * length)
    torch.testing.assert_close(stream(layer, x, cuts), layer(x), atol=1e-5, rtol=0)


@given(cuts=CUTS, length=st.integers(1, 40), look=st.sampled_from(["behind", "ahead", "mirror"]), beside=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_input_waits_for_the_block_beside_it(cuts, length, look, beside):
    """However late the block answers, each sample is added to its own input."""
    inner = Conv1d(2, 2, 5, causal=look != "ahead", pad_mode="reflect" if look == "mirror" else "constant")
    layer = seeded(Residual, 2, Chain(nn.ELU(), inner), Conv1d(2, 2, 1) if beside else None)
    x = noise(1, 2, length)
    expected = (layer.shortcut(x) if beside else x) + inner(nn.functional.elu(x))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(layer, x, cuts), expected, atol=1e-5, rtol=0)
