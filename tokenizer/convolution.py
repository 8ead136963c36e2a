"""Convolutions that stream: each layer takes a chunk and its state, and returns its output and the next state.

Cutting a stream into chunks changes nothing, because the state holds what later windows still need:

    left padding = 0 0                   kernel 3: the window of d is (b, c, d),
        0 0 | a b c | d e f              so (b, c) is the state after the first chunk
              └─┬─┘   └─┬─┘
              chunk   chunk

A causal layer answers at once. A layer that looks ahead answers when what it looks at has arrived, and `finish` gives
the rest at the end of the stream. So does a layer that mirrors the start of the stream (`pad_mode` "reflect", as the
released EnCodec weights need it): what stands before the first sample are the samples after it, backwards, so the
first chunk is held until as many have arrived as the mirror shows.

Names of parameters are those of EnCodec's checkpoints with the doubled wrapper taken out: `...conv.conv.weight` there
is `...conv.weight` here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tokenizer.network_config import Norm, PadMode
from tokenizer.streaming_layer import StreamingLayer, StreamStart


class Conv1d(StreamingLayer):
    """A convolution: [B, C_in, S] -> [B, C_out, S / stride].

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: taps; at least `stride`.
        stride: samples per output sample.
        dilation: distance between taps.
        causal: whether it sees only the present and the past; otherwise the windows are centred.
        pad_mode: what stands before the first sample and, where the layer looks ahead, after the last one.
        norm: "time_group_norm" adds a normalisation over all channels and samples. Such a layer cannot stream.

    Source: EnCodec, arXiv:2210.13438, 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        pad_mode: PadMode = "constant",
        norm: Norm = "weight_norm",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation)
        self.norm = nn.GroupNorm(1, out_channels) if norm == "time_group_norm" else None
        self.in_channels, self.out_channels, self.stride, self.pad_mode = in_channels, out_channels, stride, pad_mode
        self.reach = (kernel_size - 1) * dilation + 1  # samples that one window spans
        context = self.reach - stride
        if context < 0:
            raise ValueError(f"kernel_size {kernel_size} is shorter than stride {stride}: samples would be skipped")
        self.right = 0 if causal else context // 2
        self.left = context - self.right

    @property
    def mirrors(self) -> bool:
        """Whether the start of a stream must be heard before its first window is known."""
        return self.pad_mode == "reflect" and self.left > 0

    def initial_state(self, batch_size: int) -> Tensor | StreamStart:
        """The left padding, [B, C_in, left] zeros; an empty StreamStart where the padding mirrors what comes.

        Raises:
            ValueError: the layer normalises over time, or mirrors the end of the stream.
        """
        if self.norm is not None:
            raise ValueError("time_group_norm cannot stream: it averages over samples that have not been heard")
        if self.mirrors and self.right > 0:
            raise ValueError("pad_mode 'reflect' streams in causal layers only")
        width = 0 if self.mirrors else self.left
        zeros = self.conv.weight.new_zeros(batch_size, self.in_channels, width)
        return StreamStart(zeros) if self.mirrors else zeros

    def step(self, x: Tensor, state: Tensor | StreamStart) -> tuple[Tensor, Tensor | StreamStart]:
        """All windows that are full now; the samples that later windows need are kept."""
        if not isinstance(state, StreamStart):
            return self._windows(torch.cat([state, x], dim=-1) if state.shape[-1] else x)
        held = torch.cat([state.held, x], dim=-1)
        if held.shape[-1] <= self.left:
            return x.new_zeros(x.shape[0], self.out_channels, 0), StreamStart(held)
        return self._windows(functional.pad(held, (self.left, 0), mode="reflect"))

    def finish(self, state: Tensor | StreamStart) -> Tensor | None:
        """The windows that reach beyond the end, and those of a stream that was too short to be mirrored."""
        if isinstance(state, StreamStart):
            if state.held.shape[-1] == 0:
                return None
            y: Tensor = self.conv(_reflect_pad(state.held, (self.left, 0)))
            return y
        return self._windows(functional.pad(state, (0, self.right)))[0] if self.right else None

    def forward(self, x: Tensor) -> Tensor:
        """Whole file [B, C_in, S] -> [B, C_out, ceil(S / stride)]: padded to whole strides on the right, if need be."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        padding = (self.left, self.right + -x.shape[-1] % self.stride)
        if any(padding):
            x = _reflect_pad(x, padding) if self.pad_mode == "reflect" else functional.pad(x, padding)
        y: Tensor = self.conv(x)
        return y if self.norm is None else self.norm(y)

    def _windows(self, known: Tensor) -> tuple[Tensor, Tensor]:
        count = max(0, (known.shape[-1] - self.reach) // self.stride + 1)
        if count == 0:
            return known.new_zeros(known.shape[0], self.out_channels, 0), known
        y: Tensor = self.conv(known)
        return y, known[..., count * self.stride :].clone()  # a view would keep the whole chunk alive


class ConvTranspose1d(StreamingLayer):
    """Upsampling by overlap-add: [B, C_in, T] -> [B, C_out, T * stride].

    Each input frame adds `kernel_size` samples to the output, starting at its own hop. What reaches beyond the last
    hop of a chunk is its tail, [B, C_out, kernel_size - stride]: it waits in the state, without the bias, which every
    output sample must get once.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: samples that a frame adds to; at least `stride`.
        stride: samples per frame.
        trim: samples dropped at the start and at the end of a stream; None drops the last tail only, which is causal.
        norm: as in Conv1d, before trimming.

    Source: EnCodec, arXiv:2210.13438, 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        trim: tuple[int, int] | None = None,
        norm: Norm = "weight_norm",
    ) -> None:
        super().__init__()
        self.convtr = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride=stride)
        self.norm = nn.GroupNorm(1, out_channels) if norm == "time_group_norm" else None
        self.out_channels, self.stride = out_channels, stride
        self.overlap = kernel_size - stride
        if self.overlap < 0:
            raise ValueError(f"kernel_size {kernel_size} is shorter than stride {stride}: samples would stay empty")
        self.trim = (0, self.overlap) if trim is None else trim

    def initial_state(self, batch_size: int) -> StreamStart:
        """An empty tail: zeros [B, C_out, kernel_size - stride].

        Raises:
            ValueError: the layer normalises over time.
        """
        if self.norm is not None:
            raise ValueError("time_group_norm cannot stream: it averages over samples that have not been heard")
        return StreamStart(self.convtr.weight.new_zeros(batch_size, self.out_channels, self.overlap))

    def step(self, x: Tensor, state: Tensor | StreamStart) -> tuple[Tensor, Tensor | StreamStart]:
        """Frames [B, C_in, T] -> [B, C_out, T * stride], with the tail of the chunk before added in."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0), state
        y = functional.conv_transpose1d(x, self.convtr.weight, stride=self.stride)  # [B, C_out, T * stride + overlap]
        ready, first = x.shape[-1] * self.stride, 0
        if isinstance(state, StreamStart):
            first = self.trim[0]
        else:
            y[..., : self.overlap] += state
        return self._biased(y[..., first:ready]), y[..., ready:].clone()

    def finish(self, state: Tensor | StreamStart) -> Tensor | None:
        """The last tail, as far as it is not trimmed."""
        kept = self.overlap - self.trim[1]
        return None if isinstance(state, StreamStart) or kept <= 0 else self._biased(state[..., :kept])

    def forward(self, x: Tensor) -> Tensor:
        """All frames [B, C_in, T] at once."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        y: Tensor = self.convtr(x)
        y = y if self.norm is None else self.norm(y)
        return y[..., self.trim[0] : y.shape[-1] - self.trim[1]]

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.convtr.bias is None else y + self.convtr.bias[:, None]


def apply_weight_norm(module: nn.Module) -> None:
    """Split every convolution's weight into direction and length, for training. Source: arXiv:1602.07868."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)) and not parametrize.is_parametrized(layer, "weight"):
            parametrizations.weight_norm(layer)


def fold_weight_norm(module: nn.Module) -> None:
    """Undo `apply_weight_norm`, keeping the weights as they are now: the output is the same, inference is faster."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _reflect_pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Mirror both ends; an input that is too short to be mirrored gets zeros on its right first, as in EnCodec."""
    short_by = max(padding) + 1 - x.shape[-1]
    if short_by <= 0:
        return functional.pad(x, padding, mode="reflect")
    padded = functional.pad(functional.pad(x, (0, short_by)), padding, mode="reflect")
    return padded[..., : padded.shape[-1] - short_by]
