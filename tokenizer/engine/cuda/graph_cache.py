"""Graphs by shape: a function of tensors that comes again with the same shapes is recorded once, then replayed.

Rows of a batch are filled up to a few sizes, which changes no row, so that a service whose streams come and go needs
few graphs. Frames are not filled up: streams would hear them.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tokenizer.engine.cuda.agreement import first_line, relative_error
from tokenizer.engine.cuda.device import Recorder

CAPACITY = 32  # graphs; each keeps its own memory
CALLS_BEFORE = 2  # of a shape, before it is recorded: the odd last chunk of a file is not worth it
TOLERANCE = 5e-2  # of a replay against torch: bfloat16 in another order of sums gives 1e-2, a wrong buffer about 1
_REMEMBERED = 1024  # shapes whose calls are counted

Result: TypeAlias = tuple[list[Tensor], Any]
"""Tensors [rows, ...], and what depends on their shapes alone."""
Function: TypeAlias = Callable[[Sequence[Tensor]], Result]
"""Tensors [rows, ...] in float32 to a result. No row depends on another."""


class GraphCache:
    """Graphs of the functions of one codec, the ones used last.

    Where recording fails, or a replay gives anything but what torch gave, functions just run from then on.
    """

    def __init__(self, recorder: Recorder, *, capacity: int = CAPACITY, calls_before: int = CALLS_BEFORE) -> None:
        self._recorder, self._capacity, self._calls_before = recorder, capacity, calls_before
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.Lock()
        self.works = True

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, name: Hashable, function: Function, inputs: Sequence[Tensor]) -> Result:
        """What the function gives for these inputs, in tensors of the caller's own.

        Args:
            name: of the function; all that its operations depend on beside the shapes of its inputs.
            function: to run.
            inputs: tensors with the same number of rows, one at least.
        """
        rows = row_bucket(len(inputs[0]))
        key = (name, rows, tuple((tensor.shape[1:], tensor.dtype) for tensor in inputs))
        if not self.works:
            return function(inputs)
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                self._graphs.move_to_end(key)
                with self._recorder.turn():
                    return graph.run(inputs)
            due = self._counted(key) > self._calls_before
        expected = function(inputs)  # what the caller gets, whatever comes of the recording
        if due:
            with self._lock:
                if self.works and key not in self._graphs:
                    self._record(key, function, inputs, expected)
        return expected

    def _counted(self, key: Hashable) -> int:
        calls = self._calls.pop(key, 0) + 1
        self._calls[key] = calls
        if len(self._calls) > _REMEMBERED:
            self._calls.popitem(last=False)
        return calls

    def _record(
        self, key: tuple[Hashable, int, Any], function: Function, inputs: Sequence[Tensor], expected: Result
    ) -> None:
        try:
            while len(self._graphs) >= self._capacity:
                self._recorder.settle()
                forgotten, _ = self._graphs.popitem(last=False)
                self._calls.pop(forgotten, None)  # else shapes that take turns would be recorded at every call
            with self._recorder.turn():
                graph = _Graph(function, inputs, key[1], self._recorder)
                problem = "" if _agree(graph.run(inputs), expected) else "a replay gave other values than torch"
        except RuntimeError as error:  # of CUDA, memory included
            problem = first_line(error)
        if not problem:
            self._graphs[key] = graph
            return
        self.works = False
        with suppress(RuntimeError):  # of a device that is beyond help: the next operation will say so
            self._recorder.settle()
        self._graphs.clear()
        warnings.warn(f"CUDA graphs are off, the codec runs in torch: {problem}", RuntimeWarning, stacklevel=4)


class _Graph:
    """One recording, and the tensors that it reads and writes."""

    def __init__(self, function: Function, inputs: Sequence[Tensor], rows: int, recorder: Recorder) -> None:
        with torch.inference_mode(mode=False):  # tensors that can be written to in any mode
            # Ones while it is recorded, as no stream has them: what keeps the values of then fails its first check.
            self._inputs = [tensor.new_ones(rows, *tensor.shape[1:]) for tensor in inputs]
        self._replay, (self._outputs, self._known) = recorder.record(lambda: function(self._inputs))

    def run(self, inputs: Sequence[Tensor]) -> Result:
        """Copy in, replay, copy out: the next replay writes over the tensors of this one."""
        rows = len(inputs[0])
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own[:rows].copy_(tensor)
            if rows < len(own):
                own[rows:].zero_()
        self._replay()
        return [tensor[:rows].clone() for tensor in self._outputs], self._known


def row_bucket(rows: int) -> int:
    """The size that so many rows are filled up to: 1, 2, 3, 4, 6, 8, 12, 16, 24 ...; at most half as many again."""
    power = 1 << (rows - 1).bit_length()  # the next power of two
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power


def _agree(replayed: Result, expected: Result) -> bool:
    """Whether all tensors have the shapes and, but for rounding, the values."""
    if replayed[1] != expected[1] or len(replayed[0]) != len(expected[0]):
        return False
    return all(relative_error(*pair) <= TOLERANCE for pair in zip(replayed[0], expected[0], strict=True))
