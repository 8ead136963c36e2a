"""Layers that stream: the state is an argument and a result, and no cut of a stream changes a sample."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenizer.convolution import (
    CausalConv1d,
    CausalConvTranspose1d,
    Chain,
    apply_weight_norm,
    fold_weight_norm,
)

CUTS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def seeded(build, *args, **kwargs):
    """A layer with the same random weights in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs).eval().requires_grad_(requires_grad=False)


def noise(*shape):
    """The same noise in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stream(layer, x, cuts, unit=1):
    """Step through x [B, C, S] in chunks of `cuts` units, then the rest."""
    state, pieces, position = layer.initial_state(x.shape[0]), [], 0
    for cut in [*(unit * cut for cut in cuts), x.shape[-1]]:
        y, state = layer.step(x[..., position : position + cut], state)
        pieces.append(y)
        position += cut
    return torch.cat(pieces, dim=-1)


@given(cuts=CUTS, kernel_size=st.integers(1, 9), stride=st.integers(1, 4), units=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_strided_convolution_streams(cuts, kernel_size, stride, units):
    """Any chunks of whole strides, empty ones included, give the whole call's output."""
    layer = seeded(CausalConv1d, 2, 3, kernel_size + stride - 1, stride=stride)
    x = noise(2, 2, units * stride)
    whole = layer(x)
    assert whole.shape == (2, 3, units)
    torch.testing.assert_close(stream(layer, x, cuts, stride), whole, atol=1e-5, rtol=0)


@given(cuts=CUTS, kernel_size=st.integers(1, 5), dilation=st.integers(1, 4), length=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_dilated_convolution_streams(cuts, kernel_size, dilation, length):
    """Chunks shorter than what the kernel reaches back are no exception."""
    layer = seeded(CausalConv1d, 2, 3, kernel_size, dilation=dilation)
    x = noise(1, 2, length)
    torch.testing.assert_close(stream(layer, x, cuts), layer(x), atol=1e-5, rtol=0)


@given(cuts=CUTS, stride=st.integers(1, 4), overlap=st.integers(0, 9), length=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_transposed_convolution_streams(cuts, stride, overlap, length):
    """Tails that reach over several chunks are added once, and so is the bias."""
    layer = seeded(CausalConvTranspose1d, 2, 3, stride + overlap, stride=stride)
    x = noise(2, 2, length)
    expected = layer.convtr(x)[..., : length * stride]  # trimmed right
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(layer, x, cuts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_partial_stride_is_filled_with_silence(length):
    """The whole-file call takes any length, and gives ceil(S / stride) samples."""
    layer = seeded(CausalConv1d, 1, 2, 8, stride=4)
    padded = nn.functional.pad(noise(1, 1, length), (0, -length % 4))
    torch.testing.assert_close(layer(noise(1, 1, length)), stream(layer, padded, []), atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [0, 1, 3, 6, 7, 20])
def test_reflect_padding_mirrors_the_start(length):
    """As in EnCodec: too short an input gets zeros on its right before it is mirrored, and loses them again."""
    layer = seeded(CausalConv1d, 1, 2, 7, pad_mode="reflect")
    x = noise(1, 1, length)
    if length == 0:
        assert layer(x).shape == (1, 2, 0)
        return
    longer = nn.functional.pad(x, (0, max(0, 7 - length)))
    mirrored = torch.cat([longer[..., 1:7].flip(-1), x], dim=-1)
    torch.testing.assert_close(layer(x), layer.conv(mirrored), atol=1e-6, rtol=0)


def test_reflect_padding_refuses_to_stream():
    """It would need samples that have not been heard; a kernel of one needs no padding, and streams."""
    with pytest.raises(ValueError, match="reflect"):
        CausalConv1d(1, 1, 3, pad_mode="reflect").initial_state(1)
    assert CausalConv1d(1, 1, 1, pad_mode="reflect").initial_state(1).shape == (1, 1, 0)


@pytest.mark.parametrize("layer", [CausalConv1d, CausalConvTranspose1d])
def test_kernels_shorter_than_the_stride_are_refused(layer):
    """They would skip samples."""
    with pytest.raises(ValueError, match="shorter than stride"):
        layer(1, 1, 2, stride=3)


def test_states_belong_to_the_caller():
    """A step leaves its state as it was: the same step twice gives the same, and the module keeps nothing."""
    layer = seeded(Chain, CausalConv1d(1, 2, 3), nn.ELU(), CausalConvTranspose1d(2, 1, 4, stride=2))
    x = noise(1, 1, 6)
    _, state = layer.step(x, layer.initial_state(1))
    before = copy.deepcopy(state)
    first, _ = layer.step(x, state)
    second, _ = layer.step(x, state)
    assert torch.equal(first, second)
    torch.testing.assert_close(state, before, atol=0, rtol=0)


def test_a_state_does_not_keep_its_chunk_alive():
    """After a long chunk only the few samples that are needed stay in memory."""
    for layer in (CausalConv1d(1, 1, 7), CausalConvTranspose1d(1, 1, 8, stride=2)):
        _, state = layer.step(torch.zeros(1, 1, 10_000), layer.initial_state(1))
        assert state.untyped_storage().nbytes() == 4 * state.numel() == 4 * 6


def test_chains_nest():
    """A chain is a streaming layer itself, so the state of a chain in a chain is not lost."""
    layer = seeded(Chain, CausalConv1d(1, 2, 3), Chain(nn.ELU(), CausalConv1d(2, 1, 5)))
    x = noise(1, 1, 12)
    torch.testing.assert_close(stream(layer, x, [1, 0, 3, 2]), layer(x), atol=1e-5, rtol=0)


def test_weight_norm_comes_and_goes_without_a_trace():
    """Applying and folding keep the output; twice is once; afterwards the parameters have their plain names again."""
    layer = seeded(Chain, CausalConv1d(2, 4, 3), nn.ELU(), CausalConvTranspose1d(4, 2, 4, stride=2))
    x, names = noise(1, 2, 10), set(layer.state_dict())
    expected = layer(x)
    for _ in range(2):
        apply_weight_norm(layer)
    assert "0.conv.parametrizations.weight.original0" in layer.state_dict()
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(stream(layer, x, [3, 4]), expected, atol=1e-5, rtol=0)
    for _ in range(2):
        fold_weight_norm(layer)
    assert set(layer.state_dict()) == names
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=0)
