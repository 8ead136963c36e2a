"""Layers that stream: the state is an argument and a result, and no cut of a stream changes a sample."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.convolution import Conv1d, ConvTranspose1d, apply_weight_norm, fold_weight_norm
from tokenizer.streaming_layer import Chain, StreamStart


@given(cuts=CUTS, kernel_size=st.integers(1, 9), stride=st.integers(1, 4), units=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_strided_convolution_streams(cuts, kernel_size, stride, units):
    """Any chunks of whole strides, empty ones included, give the whole call's output."""
    layer = seeded(Conv1d, 2, 3, kernel_size + stride - 1, stride=stride)
    x = noise(2, 2, units * stride)
    whole = layer(x)
    assert whole.shape == (2, 3, units)
    torch.testing.assert_close(stream(layer, x, cuts, stride), whole, atol=1e-5, rtol=0)


@given(cuts=CUTS, kernel_size=st.integers(1, 5), dilation=st.integers(1, 4), length=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_dilated_convolution_streams(cuts, kernel_size, dilation, length):
    """Chunks shorter than what the kernel reaches back are no exception."""
    layer = seeded(Conv1d, 2, 3, kernel_size, dilation=dilation)
    x = noise(1, 2, length)
    torch.testing.assert_close(stream(layer, x, cuts), layer(x), atol=1e-5, rtol=0)


@given(cuts=CUTS, stride=st.integers(1, 4), overlap=st.integers(0, 9), length=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_transposed_convolution_streams(cuts, stride, overlap, length):
    """Tails that reach over several chunks are added once, and so is the bias."""
    layer = seeded(ConvTranspose1d, 2, 3, stride + overlap, stride=stride)
    x = noise(2, 2, length)
    expected = layer.convtr(x)[..., : length * stride]  # trimmed right
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(layer, x, cuts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_partial_stride_is_filled_with_silence(length):
    """The whole-file call takes any length, and gives ceil(S / stride) samples."""
    layer = seeded(Conv1d, 1, 2, 8, stride=4)
    padded = nn.functional.pad(noise(1, 1, length), (0, -length % 4))
    torch.testing.assert_close(layer(noise(1, 1, length)), stream(layer, padded, []), atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [0, 1, 3, 6, 7, 20])
def test_reflect_padding_mirrors_the_start(length):
    """As in EnCodec: too short an input gets zeros on its right before it is mirrored, and loses them again."""
    layer = seeded(Conv1d, 1, 2, 7, pad_mode="reflect")
    x = noise(1, 1, length)
    if length == 0:
        assert layer(x).shape == (1, 2, 0)
        return
    longer = nn.functional.pad(x, (0, max(0, 7 - length)))
    mirrored = torch.cat([longer[..., 1:7].flip(-1), x], dim=-1)
    torch.testing.assert_close(layer(x), layer.conv(mirrored), atol=1e-6, rtol=0)


@given(cuts=CUTS, kernel_size=st.integers(1, 5), dilation=st.integers(1, 3), length=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_mirrored_starts_stream(cuts, kernel_size, dilation, length):
    """The first samples are held until they can be mirrored, or until the stream ends too short for it."""
    layer = seeded(Conv1d, 2, 3, kernel_size, dilation=dilation, pad_mode="reflect")
    x = noise(2, 2, length)
    torch.testing.assert_close(stream(layer, x, cuts), layer(x), atol=1e-5, rtol=0)


@given(cuts=CUTS, half=st.integers(0, 4), dilation=st.integers(1, 3), length=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_centred_windows_stream(cuts, half, dilation, length):
    """A layer that looks ahead answers when what it looks at has arrived, and as many samples in all."""
    layer = seeded(Conv1d, 2, 3, 2 * half + 1, dilation=dilation, causal=False)
    x = noise(2, 2, length)
    expected = nn.functional.conv1d(x, layer.conv.weight, layer.conv.bias, dilation=dilation, padding=half * dilation)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(layer, x, cuts), expected, atol=1e-5, rtol=0)


@given(cuts=CUTS, stride=st.integers(1, 5), length=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_trimmed_transposed_convolutions_stream(cuts, stride, length):
    """What is trimmed at both ends of the whole is trimmed at both ends of the stream."""
    trim = -(-stride // 2)
    layer = seeded(ConvTranspose1d, 2, 3, 2 * stride, stride=stride, trim=(trim, trim))
    x = noise(2, 2, length)
    torch.testing.assert_close(stream(layer, x, cuts), layer(x), atol=1e-5, rtol=0)
    if length:
        expected = nn.functional.conv_transpose1d(x, layer.convtr.weight, layer.convtr.bias, stride, padding=trim)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)


def test_what_cannot_stream_says_so():
    """A norm over time, and a mirror at the end, need samples that have not been heard."""
    with pytest.raises(ValueError, match="time_group_norm"):
        Conv1d(1, 1, 3, causal=False, norm="time_group_norm").initial_state(1)
    with pytest.raises(ValueError, match="time_group_norm"):
        ConvTranspose1d(1, 1, 4, stride=2, norm="time_group_norm").initial_state(1)
    with pytest.raises(ValueError, match="reflect"):
        Conv1d(1, 1, 3, causal=False, pad_mode="reflect").initial_state(1)
    assert Conv1d(1, 1, 1, pad_mode="reflect").initial_state(1).shape == (1, 1, 0)


def test_a_held_start_says_so():
    """The type of the state tells a stream at its start from one under way."""
    layer = seeded(Conv1d, 1, 1, 4, pad_mode="reflect")
    y, state = layer.step(noise(1, 1, 3), layer.initial_state(1))
    assert y.shape[-1] == 0
    assert isinstance(state, StreamStart)
    y, state = layer.step(noise(1, 1, 1), state)
    assert y.shape[-1] == 4
    assert not isinstance(state, StreamStart)


@pytest.mark.parametrize("layer", [Conv1d, ConvTranspose1d])
def test_kernels_shorter_than_the_stride_are_refused(layer):
    """They would skip samples."""
    with pytest.raises(ValueError, match="shorter than stride"):
        layer(1, 1, 2, stride=3)


def test_states_belong_to_the_caller():
    """A step leaves its state as it was: the same step twice gives the same, and the module keeps nothing."""
    layer = seeded(Chain, Conv1d(1, 2, 3), nn.ELU(), ConvTranspose1d(2, 1, 4, stride=2))
    x = noise(1, 1, 6)
    _, state = layer.step(x, layer.initial_state(1))
    before = copy.deepcopy(state)
    first, _ = layer.step(x, state)
    second, _ = layer.step(x, state)
    assert torch.equal(first, second)
    torch.testing.assert_close(state, before, atol=0, rtol=0)


def test_a_state_does_not_keep_its_chunk_alive():
    """After a long chunk only the few samples that are needed stay in memory."""
    for layer in (Conv1d(1, 1, 7), ConvTranspose1d(1, 1, 8, stride=2)):
        _, state = layer.step(torch.zeros(1, 1, 10_000), layer.initial_state(1))
        assert state.untyped_storage().nbytes() == 4 * state.numel() == 4 * 6


def test_weight_norm_comes_and_goes_without_a_trace():
    """Applying and folding keep the output; twice is once; afterwards the parameters have their plain names again."""
    layer = seeded(Chain, Conv1d(2, 4, 3), nn.ELU(), ConvTranspose1d(4, 2, 4, stride=2))
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
