"""What the engine asks of a CUDA device; everything else in this package runs on tensors of any device.

Nothing here has run in our own tests unless they found a GPU: what it does is kept as small as it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor

_WARM_UPS = 3  # runs before a capture: libraries choose their algorithms and kernels are compiled in them

Recorded = TypeVar("Recorded")


class Recorder(Protocol):
    """Something that can run a function again without its Python."""

    def record(self, function: Callable[[], Recorded]) -> tuple[Callable[[], None], Recorded]:
        """Run a function that reads and writes fixed tensors.

        Returns:
            What runs its operations again, and what the function returned: each replay writes into those same tensors.

        Raises:
            RuntimeError: it cannot be recorded.
        """

    def turn(self) -> AbstractContextManager[None]:
        """While what was recorded is used: after all earlier uses, whichever thread they came from."""

    def settle(self) -> None:
        """Wait until no replay is under way, so that memory can be given back."""


class CudaRecorder:
    """CUDA graphs of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_use: torch.cuda.Event | None = None

    def record(self, function: Callable[[], Recorded]) -> tuple[Callable[[], None], Recorded]:
        """Capture a graph, after some runs on a stream of their own."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile, as copying the next batch, is not captured and fails nothing
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, outputs

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Threads may compute on streams of their own; the tensors that graphs read and write are the same ones."""
        stream = torch.cuda.current_stream(self._device)
        if self._last_use is not None:
            stream.wait_event(self._last_use)
        try:
            yield
        finally:
            self._last_use = stream.record_event()

    def settle(self) -> None:
        """Wait for all of the device."""
        torch.cuda.synchronize(self._device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Kernels and graphs start on the current device: make it this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """[N, D] and [D, V] in bfloat16 to [N, V] in float32: products are exact, sums are in float32."""
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
