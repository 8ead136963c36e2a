"""The seanet family: EnCodec's encoder and decoder, convolutions between the sample rate and the frame rate.

    encoder  conv 7 ─ for each stride r [residual units ─ ELU ─ conv 2r / r, width x 2] ─ LSTM ─ ELU ─ conv 7
    decoder  conv 7 ─ LSTM ─ for each r, last first [ELU ─ conv^T 2r / r, width / 2 ─ residual units] ─ ELU ─ conv 7

Everything is causal, and both directions stream: see `tokenizer.convolution` for what a state is. The order of layers
and the names of parameters follow EnCodec's checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenizer.convolution import CausalConv1d, CausalConvTranspose1d, Chain, State, StreamingLayer
from tokenizer.spec import CodecSpec, SeanetConfig


class ResidualUnit(StreamingLayer):
    """A dilated convolution into a narrow space and a 1x1 back, added to a 1x1 of the input: [B, C, S] -> [B, C, S]."""

    def __init__(self, width: int, config: SeanetConfig, dilation: int) -> None:
        super().__init__()
        narrow, pad_mode = max(1, width // config.compress), config.pad_mode
        self.block = Chain(
            nn.ELU(),
            CausalConv1d(width, narrow, config.residual_kernel_size, dilation=dilation, pad_mode=pad_mode),
            nn.ELU(),
            CausalConv1d(narrow, width, 1, pad_mode=pad_mode),
        )
        self.shortcut = CausalConv1d(width, width, 1, pad_mode=pad_mode)

    def initial_state(self, batch_size: int) -> State:
        """State of the dilated convolution; the 1x1 shortcut needs none."""
        return self.block.initial_state(batch_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next chunk."""
        y, state = self.block.step(x, state)
        return self.shortcut(x) + y, state

    def forward(self, x: Tensor) -> Tensor:
        """Process whole streams."""
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


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


class SeanetEncoder(nn.Module):
    """Waveform to latents. Source: EnCodec, arXiv:2210.13438, 3.1, after SEANet, arXiv:2009.02095."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        config = _config(spec)
        self.hop_length = spec.hop_length
        pad_mode = config.pad_mode
        width = config.num_filters
        layers: list[nn.Module] = [CausalConv1d(spec.channels, width, config.kernel_size, pad_mode=pad_mode)]
        for stride in config.strides:
            layers += _residual_units(width, config)
            layers += [nn.ELU(), CausalConv1d(width, 2 * width, 2 * stride, stride=stride, pad_mode=pad_mode)]
            width *= 2
        layers += _lstm(width, config)
        layers += [nn.ELU(), CausalConv1d(width, spec.latent_dim, config.last_kernel_size, pad_mode=pad_mode)]
        self.model = Chain(*layers)

    def initial_state(self, batch_size: int) -> State:
        """State of streams that have heard nothing. Raises ValueError with reflect padding, which cannot stream."""
        return self.model.initial_state(batch_size)

    def step(self, waveform: Tensor, state: State) -> tuple[Tensor, State]:
        """Whole hops of waveform [B, C, T * hop_length] to latents [B, D, T]; T may be 0."""
        if waveform.shape[-1] % self.hop_length:
            raise ValueError(f"{waveform.shape[-1]} samples are not a multiple of hop_length {self.hop_length}")
        return self.model.step(waveform, state)

    def forward(self, waveform: Tensor) -> Tensor:
        """Whole waveform [B, C, S] to latents [B, D, ceil(S / hop_length)]: one step from a fresh state.

        Where S is not a multiple of hop_length, every strided layer pads its own input on the right, as EnCodec does.
        """
        latents: Tensor = self.model(waveform)
        return latents


class SeanetDecoder(nn.Module):
    """Latents to waveform: the encoder's mirror image. Source: EnCodec, arXiv:2210.13438, 3.1."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        config = _config(spec)
        pad_mode = config.pad_mode
        width = config.num_filters * 2 ** len(config.strides)
        layers: list[nn.Module] = [CausalConv1d(spec.latent_dim, width, config.kernel_size, pad_mode=pad_mode)]
        layers += _lstm(width, config)
        for stride in reversed(config.strides):
            layers += [nn.ELU(), CausalConvTranspose1d(width, width // 2, 2 * stride, stride=stride)]
            width //= 2
            layers += _residual_units(width, config)
        layers += [nn.ELU(), CausalConv1d(width, spec.channels, config.last_kernel_size, pad_mode=pad_mode)]
        self.model = Chain(*layers)

    def initial_state(self, batch_size: int) -> State:
        """State of streams that have said nothing. Raises ValueError with reflect padding, which cannot stream."""
        return self.model.initial_state(batch_size)

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Latents [B, D, T] to waveform [B, C, T * hop_length]; T may be 0."""
        return self.model.step(latents, state)

    def forward(self, latents: Tensor) -> Tensor:
        """All frames [B, D, T] to waveform [B, C, T * hop_length]: one step from a fresh state."""
        waveform: Tensor = self.model(latents)
        return waveform


def _config(spec: CodecSpec) -> SeanetConfig:
    if not isinstance(spec.network, SeanetConfig):
        raise TypeError(f"a seanet codec needs seanet settings, not {type(spec.network).__name__}")
    return spec.network


def _residual_units(width: int, config: SeanetConfig) -> list[nn.Module]:
    return [ResidualUnit(width, config, config.dilation_base**index) for index in range(config.num_residual_layers)]


def _lstm(width: int, config: SeanetConfig) -> list[nn.Module]:
    return [SkipLstm(width, config.num_lstm_layers)] if config.num_lstm_layers else []
