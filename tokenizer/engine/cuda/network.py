"""An encoder or decoder on a CUDA device: packed states, float32 at its ends, and graphs for small chunks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from tokenizer.engine.cuda.device import on_device
from tokenizer.engine.cuda.graph_cache import Function, GraphCache, Result
from tokenizer.engine.cuda.packed_state import Layout, PackedState, packed
from tokenizer.streaming_layer import State, StreamingLayer

GRAPH_FRAMES = 1024  # rows times frames of a graph at most: larger chunks keep the device busy as they are


class CudaNetwork(StreamingLayer):
    """A network of any type inside, for streams of float32.

    Args:
        name: "encoder" or "decoder", to tell their graphs apart.
        network: in the types that it computes in.
        frame: samples of input a frame: the hop of an encoder, 1 for a decoder.
        input_type: what the network is fed.
        graphs: of the codec.
    """

    def __init__(
        self, name: str, network: StreamingLayer, frame: int, input_type: torch.dtype, graphs: GraphCache
    ) -> None:
        super().__init__()
        self._name, self._network, self._frame = name, network, frame
        self._input_type, self._graphs = input_type, graphs
        self._device = next(network.parameters()).device

    def initial_state(self, batch_size: int) -> PackedState:
        """Of streams that have heard nothing. Raises ValueError where the network cannot stream."""
        return packed(self._network.initial_state(batch_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next chunk of every stream to what became known."""
        layout: Layout = state.layout

        def run(inputs: Sequence[Tensor]) -> Result:
            y, after = self._network.step(inputs[0].to(self._input_type), layout.unpacked(inputs[1]))
            values, next_layout = packed(after)
            return [y.float(), values], next_layout

        (y, values), next_layout = self._run((self._name, layout), run, [x, state.values])
        return y, PackedState(values, next_layout)

    def finish(self, state: State) -> Tensor | None:
        """What was held back."""
        with on_device(self._device):
            y = self._network.finish(state.layout.unpacked(state.values))
        return None if y is None else y.float()

    def forward(self, x: Tensor) -> Tensor:
        """Whole files."""

        def run(inputs: Sequence[Tensor]) -> Result:
            return [self._network(inputs[0].to(self._input_type)).float()], None

        return self._run((self._name, "whole"), run, [x])[0][0]

    def _run(self, name: Hashable, run: Function, inputs: list[Tensor]) -> Result:
        frames = inputs[0].shape[0] * inputs[0].shape[-1] / self._frame  # 0 for an empty chunk
        inputs = [tensor.contiguous() for tensor in inputs]  # as graphs keep them: other strides, another order of sums
        with on_device(self._device), torch.no_grad():
            if 0 < frames <= GRAPH_FRAMES:
                return self._graphs.run(name, run, inputs)
            return run(inputs)
