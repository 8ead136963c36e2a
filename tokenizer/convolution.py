"""Causal convolutions that stream: each layer takes a chunk and its state, and returns its output and the next state.

Zeros stand before the first sample, so that cutting a stream into chunks changes nothing:

    past = what the kernel still needs of earlier chunks, zeros at first

        0 0 | a b c | d e f          kernel 3: the window of d is (b, c, d),
              └─┬─┘   └─┬─┘          so (b, c) is the state after the first chunk
              chunk   chunk

The whole-file call, `forward`, equals one big step from a fresh state. Names of parameters are those of EnCodec's
checkpoints with the doubled wrapper taken out: `...conv.conv.weight` there is `...conv.weight` here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tokenizer.spec import PadMode

State: TypeAlias = Any
"""Nested tuples of tensors, batch first, of a shape that only the layer itself knows. Empty where nothing is kept."""


class StreamingLayer(nn.Module, ABC):
    """A layer whose state is an argument and a result, so that one module serves any number of streams."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """State of `batch_size` streams that have heard nothing yet."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process the next chunk [B, C, S] of every stream; an empty chunk is allowed and changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Process whole streams [B, C, S]: one step from a fresh state."""
        return self.step(x, self.initial_state(x.shape[0]))[0]


class Chain(nn.Sequential, StreamingLayer):
    """Layers one after the other; the state is the tuple of theirs. Layers without a `step` keep none."""

    def initial_state(self, batch_size: int) -> State:
        """State of every layer, () for those that keep none."""
        return tuple(layer.initial_state(batch_size) if isinstance(layer, StreamingLayer) else () for layer in self)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Pass a chunk through every layer."""
        next_state: list[State] = []
        for layer, past in zip(self, state, strict=True):
            x, kept = layer.step(x, past) if isinstance(layer, StreamingLayer) else (layer(x), ())
            next_state.append(kept)
        return x, tuple(next_state)


class CausalConv1d(StreamingLayer):
    """A convolution that sees only the present and the past: [B, C_in, S] -> [B, C_out, S / stride].

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: taps; at least `stride`.
        stride: samples per output sample.
        dilation: distance between taps; 1 where stride is not.
        pad_mode: what stands before the first sample, "constant" for zeros. With "reflect", as in EnCodec's weights,
            the start of the file is mirrored there: then `forward` works and streaming does not.

    Source: EnCodec, arXiv:2210.13438, 3.1 (streamable).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation)
        self.in_channels, self.out_channels, self.stride, self.pad_mode = in_channels, out_channels, stride, pad_mode
        self.context = (kernel_size - 1) * dilation - (stride - 1)  # past samples that the first window reaches
        if self.context < 0:
            raise ValueError(f"kernel_size {kernel_size} is shorter than stride {stride}: samples would be skipped")

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros [B, C_in, context].

        Raises:
            ValueError: the layer pads by reflection.
        """
        if self.pad_mode == "reflect" and self.context > 0:
            raise ValueError(
                "pad_mode 'reflect' cannot stream: reflect padding mirrors samples that a stream has not heard yet"
            )
        return self.conv.weight.new_zeros(batch_size, self.in_channels, self.context)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Whole strides [B, C_in, T * stride] -> [B, C_out, T]; the last `context` samples are kept."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0), state
        known = torch.cat([state, x], dim=-1)
        y: Tensor = self.conv(known)
        return y, known[..., known.shape[-1] - self.context :].clone()  # a view would keep the whole chunk alive

    def forward(self, x: Tensor) -> Tensor:
        """Whole file [B, C_in, S] -> [B, C_out, ceil(S / stride)]: padded to whole strides on the right, if need be."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        missing = -x.shape[-1] % self.stride
        pad = _reflect_pad if self.pad_mode == "reflect" else functional.pad
        y: Tensor = self.conv(pad(x, (self.context, missing)))
        return y


class CausalConvTranspose1d(StreamingLayer):
    """Upsampling by overlap-add: [B, C_in, T] -> [B, C_out, T * stride].

    Each input frame adds `kernel_size` samples to the output, starting at its own hop. What reaches beyond the last
    hop of a chunk is its tail, [B, C_out, kernel_size - stride]: it waits in the state, without the bias, which every
    output sample must get once. At the end of a file the tail is dropped (trimmed right).

    Source: EnCodec, arXiv:2210.13438, 3.1 (streamable).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int) -> None:
        super().__init__()
        self.convtr = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride=stride)
        self.out_channels, self.stride = out_channels, stride
        self.overlap = kernel_size - stride
        if self.overlap < 0:
            raise ValueError(f"kernel_size {kernel_size} is shorter than stride {stride}: samples would stay empty")

    def initial_state(self, batch_size: int) -> Tensor:
        """An empty tail: zeros [B, C_out, kernel_size - stride]."""
        return self.convtr.weight.new_zeros(batch_size, self.out_channels, self.overlap)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, C_in, T] -> [B, C_out, T * stride], with the tail of the chunk before added in."""
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, 0), state
        y = functional.conv_transpose1d(x, self.convtr.weight, stride=self.stride)  # [B, C_out, T * stride + overlap]
        y = y + functional.pad(state, (0, y.shape[-1] - self.overlap))
        ready = x.shape[-1] * self.stride
        bias = self.convtr.bias
        return y[..., :ready] if bias is None else y[..., :ready] + bias[:, None], y[..., ready:].clone()


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
    short_by = max(0, max(padding) + 1 - x.shape[-1])
    padded = functional.pad(functional.pad(x, (0, short_by)), padding, mode="reflect")
    return padded[..., : padded.shape[-1] - short_by]
