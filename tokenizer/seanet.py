"""The seanet family: EnCodec's encoder and decoder, convolutions between the sample rate and the frame rate.

    encoder  conv 7 ─ for each stride r [residual units ─ ELU ─ conv 2r / r, width x 2] ─ LSTM ─ ELU ─ conv 7
    decoder  conv 7 ─ LSTM ─ for each r, last first [ELU ─ conv^T 2r / r, width / 2 ─ residual units] ─ ELU ─ conv 7

A residual unit is a dilated convolution into a narrow space and a 1x1 back, added to a 1x1 of its input. SoundStream is
the same without LSTM, with three wide units of growing dilation and the bare input beside them.

Causal networks stream, in both directions: see `tokenizer.convolution` for what a state is. The order of layers and the
names of parameters follow EnCodec's checkpoints.
"""

from __future__ import annotations

from functools import reduce
from itertools import groupby

import torch
from torch import Tensor, nn

from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.network_config import SeanetConfig
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import Chain, Network, Residual, StreamingLayer


class SkipLstm(StreamingLayer):
    """LSTM layers over the frames, added to their input: [B, C, T] -> [B, C, T]."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers)

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Hidden and cell state, zeros [B, num_layers, C] each."""
        zeros = self.lstm.all_weights[0][0].new_zeros(batch_size, self.lstm.num_layers, self.lstm.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Process the next frames. torch wants the batch second in the state, we keep it first."""
        if x.shape[-1] == 0:
            return x, state
        hidden, cell = (part.transpose(0, 1).contiguous() for part in state)
        y, (hidden, cell) = self.lstm(x.permute(2, 0, 1), (hidden, cell))
        return x + y.permute(1, 2, 0), (hidden.transpose(0, 1), cell.transpose(0, 1))


class SeanetEncoder(Network):
    """Waveform [B, C, S] to latents [B, D, ceil(S / hop_length)].

    Where S is not a multiple of hop_length, `forward` lets every strided layer pad its own input on the right, as
    EnCodec does. Source: EnCodec, arXiv:2210.13438, 3.1, after SEANet, arXiv:2009.02095.
    """

    def __init__(self, spec: CodecSpec) -> None:
        config = _config(spec)
        width = config.num_filters
        layers: list[nn.Module] = [_conv(spec.channels, width, config.kernel_size, config)]
        for stride in config.strides:
            layers += _residual_units(width, config)
            layers += [nn.ELU(), _conv(width, 2 * width, 2 * stride, config, stride=stride)]
            width *= 2
        layers += _lstm(width, config)
        super().__init__(*layers, nn.ELU(), _conv(width, spec.latent_dim, config.latent_kernel_size, config))
        self.start_frames = _start_frames(self.chain, spec.hop_length)

    def forward(self, x: Tensor) -> Tensor:
        """Whole waveforms at once."""
        return _whole(self.chain, x)


class SeanetDecoder(Network):
    """Latents [B, D, T] to waveform [B, C, T * hop_length]: the encoder's mirror image."""

    def __init__(self, spec: CodecSpec) -> None:
        config = _config(spec)
        width = config.num_filters * 2 ** len(config.strides)
        layers: list[nn.Module] = [_conv(spec.latent_dim, width, config.kernel_size, config)]
        layers += _lstm(width, config)
        for stride in reversed(config.strides):
            layers += [nn.ELU(), _conv_transpose(width, width // 2, stride, config)]
            width //= 2
            layers += _residual_units(width, config)
        super().__init__(*layers, nn.ELU(), _conv(width, spec.channels, config.last_kernel_size, config))

    def forward(self, x: Tensor) -> Tensor:
        """All frames at once."""
        return _whole(self.chain, x)


def _config(spec: CodecSpec) -> SeanetConfig:
    if not isinstance(spec.network, SeanetConfig):
        raise TypeError(f"a seanet codec needs seanet settings, not {type(spec.network).__name__}")
    return spec.network


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, config: SeanetConfig, *, stride: int = 1, dilation: int = 1
) -> Conv1d:
    return Conv1d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        dilation=dilation,
        causal=config.causal,
        pad_mode=config.pad_mode,
        norm=config.norm,
    )


def _conv_transpose(in_channels: int, out_channels: int, stride: int, config: SeanetConfig) -> ConvTranspose1d:
    trim = None if config.causal else (stride - stride // 2, stride // 2)  # the overlap of 2r / r is one stride
    return ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, trim=trim, norm=config.norm)


def _residual_units(width: int, config: SeanetConfig) -> list[nn.Module]:
    narrow = max(1, width // config.compress)
    return [
        Residual(
            width,
            Chain(
                nn.ELU(),
                _conv(width, narrow, config.residual_kernel_size, config, dilation=config.dilation_base**index),
                nn.ELU(),
                _conv(narrow, width, 1, config),
            ),
            _conv(width, width, 1, config) if config.conv_shortcut else None,
        )
        for index in range(config.num_residual_layers)
    ]


def _lstm(width: int, config: SeanetConfig) -> list[nn.Module]:
    return [SkipLstm(width, config.num_lstm_layers)] if config.num_lstm_layers else []


def _whole(model: Chain, x: Tensor) -> Tensor:
    """Every layer over whole rows.

    For inference on a CPU the rows of a batch take turns, so that activations stay in its caches, except in the LSTM:
    it reads all its weights for every frame, and does so once for all rows.
    """
    if x.device.type != "cpu" or len(x) == 1 or torch.is_grad_enabled():
        y: Tensor = model(x)
        return y
    for together, layers in groupby(model, key=lambda layer: isinstance(layer, SkipLstm)):
        part = list(layers)
        rows = [x] if together else x.split(1)  # type: ignore[no-untyped-call]
        x = torch.cat([reduce(lambda y, layer: layer(y), part, row) for row in rows])
    return x


def _start_frames(model: Chain, hop_length: int) -> int:
    """Frames that must have been heard before every layer can mirror the start of the stream; 0 without mirrors."""
    frames, samples_per_input = 0, 1
    for layer in model.modules():
        if isinstance(layer, Conv1d):
            if layer.mirrors:
                frames = max(frames, -(-(layer.left + 1) * samples_per_input // hop_length))
            samples_per_input *= layer.stride
    return frames
