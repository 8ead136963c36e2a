"""Layers in bfloat16: what the plain ones give, but for rounding, however a stream is cut."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.engine.cuda.bfloat_layers import (
    BfloatConv1d,
    BfloatLinear,
    HalfLstm,
    ProductUpsampling,
    RowConvolution,
    SoundConvolution,
    upsampling,
)
from tokenizer.seanet import SkipLstm

CONVOLUTIONS = [
    {"kernel_size": 7},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 3, "dilation": 3},
    {"kernel_size": 1},
    {"kernel_size": 5, "causal": False},
]


def close(y, expected, tolerance=0.01):
    return y.shape == expected.shape and (y.float() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
@given(cuts=CUTS)
@settings(max_examples=15, deadline=None)
def test_convolutions_stream_as_the_plain_ones(sizes, pad_mode, cuts):
    if pad_mode == "reflect" and not sizes.get("causal", True):
        pad_mode = "constant"  # the end of a stream cannot be mirrored
    plain = seeded(Conv1d, 6, 10, pad_mode=pad_mode, **sizes)
    layer = BfloatConv1d(plain, RowConvolution(plain.conv))
    x = noise(2, 6, 44).bfloat16()
    y = stream(layer, x, cuts)
    assert y.dtype == torch.bfloat16
    assert close(y, stream(plain, x.float(), cuts))


@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_first_convolution_sees_more_digits_than_a_bfloat_has(sizes, channels):
    """Quiet sound on an offset that its weights take out again: in one bfloat16 there would be little left of it."""
    plain = seeded(Conv1d, channels, 4, pad_mode="reflect" if sizes.get("causal", True) else "constant", **sizes)
    plain.conv.bias.zero_()
    if plain.conv.kernel_size[0] > 1:
        plain.conv.weight.copy_(plain.conv.weight.sign())  # numbers that bfloats hold
        plain.conv.weight[..., -1] -= plain.conv.weight.sum(dim=2)
        plain.conv.weight.copy_(plain.conv.weight.bfloat16().float())
    x = 0.5 + 1e-3 * noise(2, channels, 64)
    layer = BfloatConv1d(plain, SoundConvolution(plain.conv))
    y, expected = stream(layer, x, [13]), stream(plain, x, [13])
    inside = slice(8, 40)  # where no zeros stand beside the offset
    assert y.shape == expected.shape
    assert close(y[..., inside], expected[..., inside], 0.02)


def test_channels_lie_side_by_side():
    """So that nothing is turned around between two layers."""
    plain = seeded(Conv1d, 16, 32, 4, stride=2)
    layer = BfloatConv1d(plain, RowConvolution(plain.conv))
    y, _ = layer.step(noise(3, 16, 40).bfloat16(), layer.initial_state(3))
    assert y.transpose(1, 2).is_contiguous()
    up = ProductUpsampling(seeded(ConvTranspose1d, 32, 16, 8, stride=4))
    z, _ = up.step(y, up.initial_state(3))
    assert z.transpose(1, 2).is_contiguous()


def test_a_norm_stays_with_its_convolution():
    plain = seeded(Conv1d, 4, 8, 3, causal=False, norm="time_group_norm")
    layer = BfloatConv1d(plain, RowConvolution(plain.conv))
    x = noise(2, 4, 50).bfloat16()
    assert close(layer(x), plain(x.float()), 0.02)
    with pytest.raises(ValueError, match="cannot stream"):
        layer.initial_state(1)


@pytest.mark.parametrize("stride", [2, 5, 8])
@given(cuts=CUTS)
@settings(max_examples=10, deadline=None)
def test_upsampling_is_one_product(stride, cuts):
    plain = seeded(ConvTranspose1d, 12, 6, 2 * stride, stride=stride)
    layer = upsampling(plain)
    assert isinstance(layer, ProductUpsampling)
    x = noise(2, 12, 30).bfloat16()
    assert close(stream(layer, x, cuts), stream(plain, x.float(), cuts))


@pytest.mark.parametrize("sizes", [{"stride": 2, "trim": (1, 1)}, {"stride": 3}], ids=["trimmed", "overlapping"])
def test_other_upsampling_stays_what_it_is(sizes):
    plain = seeded(ConvTranspose1d, 12, 6, 4, **sizes)
    layer = upsampling(plain)
    assert not isinstance(layer, ProductUpsampling)
    x = noise(2, 12, 30).bfloat16()
    assert close(layer(x), plain(x.float()), 0.02)


def test_the_lstm_streams_in_float16():
    plain = seeded(SkipLstm, 24, 2)
    layer = HalfLstm(plain)
    x = noise(3, 24, 40).bfloat16()
    y = stream(layer, x, [1, 0, 7])
    assert y.dtype == torch.bfloat16
    assert close(y, stream(plain, x.float(), []))


def test_the_lstm_takes_values_beyond_float16():
    """Gates are shut or open long before."""
    layer = HalfLstm(seeded(SkipLstm, 8, 1))
    y, _ = layer.step(torch.full((1, 8, 3), 1e6).bfloat16(), layer.initial_state(1))
    assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize("bias", [True, False])
def test_products_among_layers_in_float32(bias):
    """Only their factors are rounded, unless the next layer rounds again."""
    plain = seeded(nn.Linear, 40, 24, bias=bias)
    x = noise(2, 5, 40)
    wide, narrow = BfloatLinear(plain, is_narrow=False), BfloatLinear(plain, is_narrow=True)
    expected = nn.functional.linear(x.bfloat16().float(), plain.weight.bfloat16().float(), plain.bias)
    torch.testing.assert_close(wide(x), expected, rtol=1e-5, atol=1e-5)
    assert narrow(x).dtype == torch.bfloat16
    assert close(narrow(x), expected)
    assert wide(x[:, :0]).shape == (2, 0, 24)
