"""Layers in bfloat16 for a GPU: rows of channels side by side, as its matrix units want them.

A tensor stays [B, C, S] by its shape; its memory is [B, S, C], so that no library turns it around before a product and
back after it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.engine.cuda.device import exact_product
from tokenizer.seanet import SkipLstm
from tokenizer.streaming_layer import State, StreamingLayer, StreamStart

_HALF_LIMIT = 6e4  # float16 ends at 65504; gates are shut or open long before it
_ALIGNED = 8  # factors of a product in 16 bits come in eights on tensor cores


def rows_of(x: Tensor) -> Tensor:
    """[B, C, S] to [B, S, C] in that order in memory, without a copy where it lies so."""
    return x.transpose(1, 2).contiguous()


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Two pieces of a stream [B, C, S] as one, channels last."""
    return torch.cat([first.transpose(1, 2), second.transpose(1, 2)], dim=1).transpose(1, 2)


class RowConvolution(nn.Module):
    """A convolution of channels-last memory: [B, C, S] to [B, O, S / stride]. cuDNN has it for images."""

    def __init__(self, plain: nn.Conv1d) -> None:
        super().__init__()
        weight = plain.weight.detach().bfloat16()[:, :, None]
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = _bfloat_bias(plain.bias)
        self.stride, self.dilation = (1, *plain.stride), (1, *plain.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """All full windows."""
        image = x[:, :, None].contiguous(memory_format=torch.channels_last)  # [B, C, 1, S]
        return functional.conv2d(image, self.weight, self.bias, stride=self.stride, dilation=self.dilation)[:, :, 0]


class SoundConvolution(nn.Module):
    """The first convolution: float32 sound [B, C, S] to bfloat16 [B, O, S], as one product of its windows.

    Sound needs more digits than a bfloat16 has: each sample is the sum of two of them, and every weight stands twice.
    """

    def __init__(self, plain: nn.Conv1d) -> None:
        super().__init__()
        self.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)  # float32: so is the state
        self.bias = _bfloat_bias(plain.bias)
        self._taps, self._stride, self._dilation = plain.kernel_size[0], plain.stride[0], plain.dilation[0]
        both = torch.cat([self.weight, self.weight], dim=1)  # [O, 2 * C, taps]
        # taps of zero before the others, so that a window has a number of values that tensor cores take
        more = next(count for count in range(_ALIGNED) if both.shape[1] * (self._taps + count) % _ALIGNED == 0)
        self.register_buffer("matrix", functional.pad(both, (more, 0)).flatten(1).bfloat16(), persistent=False)
        self._before = more * self._dilation
        self._reach = (self._taps + more - 1) * self._dilation + 1

    matrix: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """All full windows."""
        upper = x.bfloat16()
        parts = functional.pad(torch.cat([upper, (x - upper).bfloat16()], dim=1), (self._before, 0))  # [B, 2 * C, S]
        windows = parts.unfold(2, self._reach, self._stride)[..., :: self._dilation]  # [B, 2 * C, S', taps]
        return functional.linear(windows.transpose(1, 2).flatten(2), self.matrix, self.bias).transpose(1, 2)


class BfloatConv1d(Conv1d):
    """A convolution with one of those in it, that joins chunks as they lie in memory."""

    def __init__(self, plain: Conv1d, convolution: RowConvolution | SoundConvolution) -> None:
        (taps,), (dilation,) = plain.conv.kernel_size, plain.conv.dilation
        with torch.device("meta"):  # the weights are there already
            super().__init__(plain.in_channels, plain.out_channels, taps, stride=plain.stride, dilation=dilation)
        self.left, self.right, self.pad_mode = plain.left, plain.right, plain.pad_mode
        self.conv = convolution  # type: ignore[assignment]
        self.norm = None if plain.norm is None else copy.deepcopy(plain.norm).bfloat16()

    def step(self, x: Tensor, state: Tensor | StreamStart) -> tuple[Tensor, Tensor | StreamStart]:
        """As the plain layer; the samples that a mirror shows are joined to the others as any past is."""
        if isinstance(state, StreamStart):
            x = side_by_side(state.held, x) if state.held.shape[-1] else x
            if x.shape[-1] <= self.left:
                return self._nothing(x), StreamStart(x.clone())
            state = mirrored(x, self.left)
        known = side_by_side(state, x) if state.shape[-1] else x
        count = max(0, (known.shape[-1] - self.reach) // self.stride + 1)
        if count == 0:
            return self._nothing(x), known.clone()
        y: Tensor = self.conv(known)
        return y, known[..., count * self.stride :].clone()

    def _nothing(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], self.out_channels, 0, dtype=torch.bfloat16, device=x.device)


def mirrored(x: Tensor, left: int) -> Tensor:
    """What stands before the start of a stream x, backwards: [B, C, left]."""
    return x[..., 1 : left + 1].flip(-1)


class ProductUpsampling(StreamingLayer):
    """A causal transposed convolution over two strides: each frame and the one before, times one matrix.

    The state is that frame, [B, C, 1]; before the first one stand zeros.
    """

    def __init__(self, plain: ConvTranspose1d) -> None:
        super().__init__()
        stride, weight = plain.stride, plain.convtr.weight.detach()  # [C, O, 2 * stride]
        both = torch.cat([weight[..., stride:], weight[..., :stride]])  # [2 * C, O, stride]
        self.matrix = nn.Parameter(both.permute(2, 1, 0).flatten(0, 1).bfloat16(), requires_grad=False)
        bias = plain.convtr.bias
        self.bias = _bfloat_bias(None if bias is None else bias.repeat(stride))
        self._in_channels, self._out_channels = weight.shape[0], plain.out_channels

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence."""
        return self.matrix.new_zeros(batch_size, self._in_channels, 1)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Frames [B, C, T] to samples [B, O, T * stride]."""
        rows = torch.cat([state.transpose(1, 2), x.transpose(1, 2)], dim=1)  # [B, 1 + T, C]
        pairs = torch.cat([rows[:, :-1], rows[:, 1:]], dim=2)  # [B, T, 2 * C]
        y = functional.linear(pairs, self.matrix, self.bias)  # [B, T, stride * O]
        samples = y.view(len(y), y.shape[1] * (y.shape[2] // self._out_channels), self._out_channels)
        return samples.transpose(1, 2), rows[:, -1:].transpose(1, 2).clone()


def upsampling(plain: ConvTranspose1d) -> StreamingLayer:
    """The product where it is one, else the layer in bfloat16."""
    causal = plain.trim == (0, plain.overlap)
    if causal and plain.overlap == plain.stride and plain.norm is None:
        return ProductUpsampling(plain)
    return copy.deepcopy(plain).bfloat16()


class HalfLstm(StreamingLayer):
    """LSTM layers in float16: cuDNN has them in that type and float32 only, and float16 has three digits more."""

    def __init__(self, plain: SkipLstm) -> None:
        super().__init__()
        self._inner = copy.deepcopy(plain.lstm).half()

    def initial_state(self, batch_size: int) -> State:
        """Hidden and cell state, zeros [B, num_layers, C] each."""
        zeros = self._inner.all_weights[0][0].new_zeros(batch_size, self._inner.num_layers, self._inner.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next frames [B, C, T] in bfloat16."""
        if x.shape[-1] == 0:
            return x, state
        hidden, cell = (part.transpose(0, 1).contiguous() for part in state)
        frames = x.permute(2, 0, 1).clamp(-_HALF_LIMIT, _HALF_LIMIT).half().contiguous()  # [T, B, C]
        y, (hidden, cell) = self._inner(frames, (hidden, cell))
        summed = rows_of(x) + y.transpose(0, 1)  # [B, T, C]: bfloat16 and float16 add up in float32
        return summed.bfloat16().transpose(1, 2), (hidden.transpose(0, 1), cell.transpose(0, 1))


class BfloatLinear(nn.Module):
    """A product in bfloat16 among layers in float32.

    Args:
        plain: in float32; its weights stay to be seen, as states take their type from them.
        is_narrow: whether the result is in bfloat16; else it is in float32 and has never been rounded.
    """

    matrix: Tensor

    def __init__(self, plain: nn.Linear, *, is_narrow: bool) -> None:
        super().__init__()
        self.weight, self.is_narrow = plain.weight, is_narrow
        self.register_buffer("matrix", plain.weight.detach().bfloat16(), persistent=False)
        self.bias = _bfloat_bias(plain.bias) if is_narrow else plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        if self.is_narrow:
            return functional.linear(x.bfloat16(), self.matrix, self.bias)
        y = exact_product(x.bfloat16().flatten(0, -2), self.matrix.t()).view(*x.shape[:-1], len(self.matrix))
        return y if self.bias is None else y + self.bias


def _bfloat_bias(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().bfloat16(), requires_grad=False)
