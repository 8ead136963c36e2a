"""An encoder or decoder that the kernels run: it streams as the torch module does that it was made from."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.engine.program import Program
from tokenizer.streaming_layer import State, StreamingLayer, StreamStart, joined


class EngineNetwork(StreamingLayer):
    """A program with the states of its streams: one row of floats each.

    Where a network mirrors the start of a stream, the first samples are held until every layer can mirror it.

    Args:
        plain: the torch module; it takes what is too short to be mirrored, and files that it alone can take.
        program: what `plain` is for the kernels.
        whole_files: whether the network looks at the end of a file, and cannot stream.
    """

    def __init__(self, plain: StreamingLayer, program: Program, *, whole_files: bool) -> None:
        super().__init__()
        self._plain, self._program, self._whole_files = plain, program, whole_files

    def initial_state(self, batch_size: int) -> State:
        """[B, floats], zeros; a StreamStart [B, C, 0] where the start of the stream is mirrored.

        Raises:
            ValueError: the network cannot stream.
        """
        if self._whole_files:
            return self._plain.initial_state(batch_size)
        if self._program.start_rows:
            return StreamStart(torch.zeros(batch_size, self._program.input_width, 0))
        return torch.zeros(batch_size, self._program.state_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next chunk of every stream, whole frames, to what became known."""
        start = isinstance(state, StreamStart)
        if start:
            x = torch.cat([state.held, x], dim=-1) if state.held.shape[-1] else x
            state = torch.zeros(x.shape[0], self._program.state_size)
        known = self._rows(x)
        if known.shape[1] < max(1, self._program.start_rows if start else 0):
            nothing = torch.zeros(x.shape[0], self._program.output_width, 0)
            return nothing, StreamStart(x.clone()) if start else state
        result = self._program.run(known, state, start=start)
        if result is None:
            raise RuntimeError("a stream of enough rows was too short to be mirrored")
        y, state = result
        return y.transpose(1, 2), state

    def finish(self, state: State) -> Tensor | None:
        """What was held back: the whole of streams that were too short to be mirrored."""
        if not isinstance(state, StreamStart) or state.held.shape[-1] == 0:
            return None
        y, kept = self._plain.step(state.held, self._plain.initial_state(len(state.held)))
        return joined(y, self._plain.finish(kept))

    def forward(self, x: Tensor) -> Tensor:
        """Whole files [B, C, S]."""
        if self._whole_files and x.shape[-1]:
            state = torch.zeros(x.shape[0], 0)
            result = self._program.run(self._rows(x), state, start=True)
            if result is not None:
                return result[0].transpose(1, 2)
        y: Tensor = self._plain(x)
        return y

    def _rows(self, x: Tensor) -> Tensor:
        """[B, C, S] channels last, as rows of the program's width."""
        width = self._program.input_width
        return x.float().transpose(1, 2).contiguous().view(x.shape[0], x.shape[1] * x.shape[2] // width, width)
