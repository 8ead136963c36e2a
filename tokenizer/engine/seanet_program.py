"""SEANets as programs: each convolution is one product of channels-last rows, with ELU and its unit's sum in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.engine.library import Kernels
from tokenizer.engine.program import Operation, Program, RecurrentLayer, UnsupportedNetworkError, Window
from tokenizer.engine.program_builder import ProgramBuilder, padded
from tokenizer.engine.structures import Activation, Kind
from tokenizer.seanet import SeanetDecoder, SeanetEncoder, SkipLstm
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import Residual


class Value(NamedTuple):
    """What a layer hands on: as it is, after ELU, or both, as the next layer wants it."""

    raw: int | None
    active: int | None


class SeanetPlanner:
    """Walks through the layers of one network, and adds an operation or two for each."""

    def __init__(
        self, network: SeanetEncoder | SeanetDecoder, spec: CodecSpec, kernels: Kernels, *, fast: bool
    ) -> None:
        convolutions = [layer for layer in network.modules() if isinstance(layer, (Conv1d, ConvTranspose1d))]
        encodes = isinstance(network, SeanetEncoder)
        even = all(layer.out_channels % 2 == 0 for layer in convolutions[:-1])
        self._network = network
        self._last = convolutions[-1]
        self._fast = fast
        self._builder = ProgramBuilder(
            kernels,
            fast=fast,
            even=even,
            whole_files=any(layer.right for layer in convolutions if isinstance(layer, Conv1d)),
            rows_per_frame=spec.hop_length if encodes else 1,
        )
        width = spec.channels if encodes else spec.latent_dim
        narrow_input = (
            self._builder.narrow and not encodes and width % 2 == 0
        )  # sound needs more digits than bfloats have
        self._input = self._builder.buffer(width, narrow=narrow_input)
        self._rate = float(spec.hop_length if encodes else 1)  # rows per frame

    def plan(self) -> Program:
        """The whole network."""
        value = Value(self._input, None)
        layers = list(self._network.chain)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, Conv1d):
                value = self._convolution(layer, _present(value), following)
            elif isinstance(layer, ConvTranspose1d):
                value = self._transposed(layer, _present(value), following)
            elif isinstance(layer, Residual):
                value = self._residual(layer, value, following)
            elif isinstance(layer, SkipLstm):
                value = self._lstm(layer, value, following)
            elif isinstance(layer, nn.ELU):
                value = Value(None, value.active)
            else:
                raise UnsupportedNetworkError(type(layer).__name__)
        return self._builder.build(_present(value))

    def _wanted(self, width: int, following: nn.Module | None) -> Value:
        """Buffers for what the next layer wants."""
        raw = active = None
        if following is None:
            raw = self._builder.buffer(width, narrow=False)
        elif isinstance(following, (nn.ELU, Residual)):
            active = self._builder.buffer(width)
        if isinstance(following, (Residual, SkipLstm)):
            raw = self._builder.buffer(width)
        return Value(raw, active)

    def _convolution(self, layer: Conv1d, source: int, following: nn.Module | None) -> Value:
        windows = self._windows(layer, source)
        weights = layer.conv.weight.permute(0, 2, 1).flatten(1)  # [O, k * C]
        self._rate /= layer.stride
        numbers = {"stride": layer.stride, "together": self._windows_together()}
        return self._written(layer, windows, weights, layer.conv.bias, following, **numbers)

    def _windows_together(self) -> int:
        """As many as divide the rows of a frame: however a stream is cut, the same ones are multiplied together."""
        return next(most for most in (4, 2, 1) if self._builder.whole_files or self._rate % most == 0)

    def _windows(self, layer: Conv1d, source: int) -> list[Window]:
        """What a convolution's taps see, in one piece where they lie side by side."""
        buffer = self._builder.buffers[source]
        buffer.left, buffer.right = max(buffer.left, layer.left), max(buffer.right, layer.right)
        buffer.mirrored = buffer.mirrored or layer.pad_mode == "reflect"
        if layer.mirrors:
            self._builder.start_frames = max(self._builder.start_frames, math.ceil((layer.left + 1) / self._rate))
        (taps,), (dilation,) = layer.conv.kernel_size, layer.conv.dilation
        if dilation == 1:
            return [Window(source, -layer.left, taps * buffer.width)]
        return [Window(source, tap * dilation - layer.left, buffer.width) for tap in range(taps)]

    def _transposed(self, layer: ConvTranspose1d, source: int, following: nn.Module | None) -> Value:
        stride, (before, _) = layer.stride, layer.trim
        if layer.overlap != stride:
            raise UnsupportedNetworkError("a transposed convolution that reaches over more or less than one stride")
        buffer = self._builder.buffers[source]
        buffer.left = 1
        buffer.right = 1 if self._builder.whole_files else 0
        weight = layer.convtr.weight  # [C, O, 2 * stride]: a frame and the one before make `stride` rows
        both = torch.cat([weight[..., stride:], weight[..., :stride]])  # [2 * C, O, stride]
        columns = both.permute(2, 1, 0).flatten(0, 1)  # [stride * O, 2 * C]
        bias = None if layer.convtr.bias is None else layer.convtr.bias.repeat(stride)
        numbers = {"up": stride, "extra": int(self._builder.whole_files), "trim": before}
        numbers["together"] = self._windows_together()
        self._rate *= stride
        return self._written(layer, [Window(source, -1, 2 * buffer.width)], columns, bias, following, **numbers)

    def _written(
        self,
        layer: Conv1d | ConvTranspose1d,
        windows: list[Window],
        weights: Tensor,
        bias: Tensor | None,
        following: nn.Module | None,
        **numbers: int,
    ) -> Value:
        """One product, and the norm after it where there is one."""
        if layer.norm is None:
            wanted = self._wanted(layer.out_channels, following)
            self._builder.matrix(windows, weights, bias, **_outputs(wanted), **numbers)
            return wanted
        summed = self._summed(layer.out_channels, windows, weights, bias, **numbers)
        wanted = self._wanted(layer.out_channels, following)
        self._normalized([(*summed, layer.norm)], wanted)
        return wanted

    def _summed(
        self, width: int, windows: list[Window], weights: Tensor, bias: Tensor | None, **numbers: int
    ) -> tuple[int, int]:
        """One product with the sums that a norm needs: its buffer, and the place of the sums."""
        output, statistics = self._builder.buffer(width, narrow=False), self._builder.statistics()
        self._builder.matrix(windows, weights, bias, output=output, statistics=statistics, **numbers)
        return output, statistics

    def _normalized(self, inputs: list[tuple[int, int, nn.GroupNorm]], wanted: Value) -> None:
        (source, statistics, norm), *others = inputs
        tensors = {"gain": norm.weight, "shift": norm.bias}
        numbers = {"statistics": statistics}
        for _, second_statistics, second_norm in others:
            tensors |= {"second_gain": second_norm.weight, "second_shift": second_norm.bias}
            numbers["second_statistics"] = second_statistics
        self._builder.add(
            Operation(
                Kind.GROUP_NORM,
                work=0,
                inputs=[source],
                second=others[0][0] if others else None,
                numbers=numbers,
                tensors={name: tensor.detach().clone() for name, tensor in tensors.items()},
                **_outputs(wanted),
            )
        )

    def _residual(self, layer: Residual, value: Value, following: nn.Module | None) -> Value:
        _, convolution, _, narrow = layer.block
        if not (isinstance(convolution, Conv1d) and isinstance(narrow, Conv1d) and value.raw is not None):
            raise UnsupportedNetworkError("a residual unit of other layers")
        hidden = _present(self._convolution(convolution, _present(Value(None, value.active)), nn.ELU()))
        windows = self._windows(narrow, hidden)
        weights, bias = narrow.conv.weight.flatten(1), narrow.conv.bias
        shortcut = layer.shortcut
        if narrow.norm is not None:
            if not isinstance(shortcut, Conv1d) or shortcut.norm is None:
                raise UnsupportedNetworkError("a norm beside a bare input")
            ahead = self._summed(layer.width, windows, weights, bias)
            beside_weights = shortcut.conv.weight.flatten(1)
            beside = self._summed(layer.width, self._windows(shortcut, value.raw), beside_weights, shortcut.conv.bias)
            wanted = self._wanted(layer.width, following)
            self._normalized([(*ahead, narrow.norm), (*beside, shortcut.norm)], wanted)
            return wanted
        wanted = self._wanted(layer.width, following)
        if isinstance(shortcut, Conv1d):  # both products end in the same sums
            windows += self._windows(shortcut, value.raw)
            weights = torch.cat([weights, shortcut.conv.weight.flatten(1)], dim=1)
            bias = _sum(bias, shortcut.conv.bias)
            self._builder.matrix(windows, weights, bias, **_outputs(wanted))
        else:
            self._builder.matrix(windows, weights, bias, second=value.raw, **_outputs(wanted))
        return wanted

    def _lstm(self, layer: SkipLstm, value: Value, following: nn.Module | None) -> Value:
        source = _present(value)
        buffer = self._builder.buffers[source]
        layers = []
        kernels, narrow = self._builder.kernels, buffer.narrow
        for input_weights, recurrent, *biases in layer.lstm.all_weights:
            weights = self._recurrent_weights(recurrent, narrow=narrow)
            bias = padded(biases[0] + biases[1], len(recurrent))
            inputs = self._builder.integers(input_weights, [(buffer.width, buffer.width)])
            packed, scales = inputs or (kernels.pack(input_weights, narrow=narrow), None)
            layers.append(RecurrentLayer(packed, scales, *weights, bias))
        numbers = {"recurrent_bytes": int(layers[0].recurrent is None)}
        wanted = self._wanted(buffer.width, following)
        zeros = torch.zeros(-(-4 * buffer.width // 64) * 64)
        self._builder.add(
            Operation(Kind.LSTM, 0, [source], numbers, layers=layers, tensors={"shift": zeros}, **_outputs(wanted))
        )
        return wanted

    def _recurrent_weights(self, weights: Tensor, *, narrow: bool) -> tuple[Tensor | None, Tensor | None]:
        """As many streams read them, and as few do; bytes are for all."""
        kernels = self._builder.kernels
        in_bytes = kernels.pack_compact(weights, in_bytes=True) if self._fast else None
        if in_bytes is not None:
            return None, in_bytes
        compact = None if narrow else kernels.pack_compact(weights, in_bytes=False)
        if compact is not None:  # many streams have no use for fewer bytes, but are to have the very same weights
            weights = kernels.unpack_fixed(compact, *weights.shape)
        return kernels.pack(weights, narrow=narrow), compact


def plan_seanet(network: SeanetEncoder | SeanetDecoder, spec: CodecSpec, kernels: Kernels, *, fast: bool) -> Program:
    """The program of an encoder or a decoder.

    Raises:
        UnsupportedNetworkError: the kernels have no operation for one of its layers.
    """
    return SeanetPlanner(network, spec, kernels, fast=fast).plan()


def _present(value: Value) -> int:
    buffer = value.raw if value.active is None else value.active
    if buffer is None:
        raise UnsupportedNetworkError("layers in an unknown order")
    return buffer


def _outputs(wanted: Value) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    if wanted.raw is not None:
        outputs["output"] = wanted.raw
    if wanted.active is not None:
        outputs |= {"active": wanted.active, "activation": Activation.ELU}
    return outputs


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first + second
