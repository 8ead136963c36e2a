"""The dac family: wide dilated residual units with Snake activations, centred windows, no LSTM.

    encoder  conv 7 ─ for each stride r [units, dilation 1, 3, 9 ─ Snake ─ conv 2r / r, width x 2] ─ Snake ─ conv 3
    decoder  conv 7 ─ for each r, last first [Snake ─ conv^T 2r / r, width / 2 ─ units] ─ Snake ─ conv 7 ─ tanh

Its layers look ahead, yet it streams: each one answers when what it looks at has arrived. Names of parameters follow
descript's checkpoints, with `.conv` or `.convtr` for our wrapper.

Source: DAC, arXiv:2306.06546, 3.1 to 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.network_config import DacConfig
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import Chain, Network, Residual

_DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with an alpha per channel: [B, C, S] -> [B, C, S]. Source: arXiv:2006.08195."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it; 1e-9 keeps an alpha of zero finite, as in the released code."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Block(Network):
    """Layers under the name `block`, as the checkpoints nest them."""

    chain_name = "block"


class DacEncoder(Block):
    """Waveform [B, C, T * hop_length] to latents [B, D, T]."""

    def __init__(self, spec: CodecSpec) -> None:
        config = _config(spec)
        width = config.encoder_width
        layers: list[nn.Module] = [_conv(spec.channels, width, 7)]
        for stride in config.strides:
            strided = _conv(width, 2 * width, 2 * stride, stride=stride)
            layers.append(Block(*_residual_units(width), Snake(width), strided))
            width *= 2
        super().__init__(*layers, Snake(width), _conv(width, spec.latent_dim, 3))


class DacDecoder(Network):
    """Latents [B, D, T] to waveform [B, C, T * hop_length].

    An odd stride trims one sample too many at the end of the stream, so some of the last samples are missing, as in
    the released code.
    """

    def __init__(self, spec: CodecSpec) -> None:
        config = _config(spec)
        width = config.decoder_width
        layers: list[nn.Module] = [_conv(spec.latent_dim, width, 7)]
        for stride in reversed(config.strides):
            trim = -(-stride // 2)
            upsampling = ConvTranspose1d(width, width // 2, 2 * stride, stride=stride, trim=(trim, trim))
            layers.append(Block(Snake(width), upsampling, *_residual_units(width // 2)))
            width //= 2
        super().__init__(*layers, Snake(width), _conv(width, spec.channels, 7), nn.Tanh())


def _config(spec: CodecSpec) -> DacConfig:
    if not isinstance(spec.network, DacConfig):
        raise TypeError(f"a dac codec needs dac settings, not {type(spec.network).__name__}")
    return spec.network


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1) -> Conv1d:
    return Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, causal=False)


def _residual_units(width: int) -> list[nn.Module]:
    units: list[nn.Module] = []
    for dilation in _DILATIONS:
        layers = (Snake(width), _conv(width, width, 7, dilation=dilation), Snake(width), _conv(width, width, 1))
        units.append(Residual(width, Chain(*layers)))
    return units
