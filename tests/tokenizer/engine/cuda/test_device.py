"""What is asked of CUDA, and in which order, by stand-ins that take what torch's own classes take."""

import inspect
from contextlib import contextmanager

import pytest
import torch

from tests.tokenizer.streaming import noise
from tokenizer.engine.cuda.device import CudaRecorder, exact_product, on_device

DEVICE = torch.device("cuda", 0)


def takes_as(real, *arguments, **named):
    """Whether torch's own would take these arguments."""
    inspect.signature(real).bind(*arguments, **named)


@pytest.fixture
def asked(monkeypatch):
    """What was done, one word each."""
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

        def record_event(self):
            log.append(f"{self.name} records")
            return f"event {log.count(f'{self.name} records')}"

    class Graph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def inside(name):
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    def graph(*arguments, **named):
        takes_as(real_graph.__init__, None, *arguments, **named)
        assert named["capture_error_mode"] == "thread_local"
        return inside(f"capture on {named['stream'].name}")

    real_graph, main = torch.cuda.graph, Stream("main")
    for method in ("wait_stream", "wait_event", "record_event"):
        assert hasattr(torch.cuda.Stream, method)
    assert hasattr(torch.cuda.CUDAGraph, "replay")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: inside(str(device)))
    return log


def test_a_function_warms_up_on_a_stream_of_its_own_before_it_is_captured(asked):
    replay, outputs = CudaRecorder(DEVICE).record(lambda: asked.append("run") or "outputs")
    assert asked == [
        "side waits for main",
        "enter side",
        *["run"] * 3,
        "leave side",
        "main waits for side",
        "enter capture on side",
        "run",
        "leave capture on side",
    ]
    assert outputs == "outputs"
    replay()
    assert asked[-1] == "replay"


def test_each_use_waits_for_the_one_before(asked):
    """Whichever stream that was on, and although it raised."""
    recorder = CudaRecorder(DEVICE)
    with recorder.turn():
        asked.append("first")
    with pytest.raises(KeyError), recorder.turn():
        raise KeyError
    with recorder.turn():
        asked.append("third")
    assert asked == [
        *["first", "main records"],
        *["main waits for event 1", "main records"],
        *["main waits for event 2", "third", "main records"],
    ]


def test_settling_waits_for_the_device(asked):
    CudaRecorder(DEVICE).settle()
    assert asked == ["synchronize cuda:0"]


def test_only_cuda_devices_are_made_current(asked):
    with on_device(torch.device("cpu")):
        pass
    assert asked == []
    with on_device(DEVICE):
        pass
    assert asked == ["enter cuda:0", "leave cuda:0"]


def test_products_of_bfloats_are_not_rounded():
    """On CUDA by a form of torch.mm that says in which type to add up."""
    a, b = noise(30, 40).bfloat16(), noise(40, 20).bfloat16()
    torch.testing.assert_close(exact_product(a, b).double(), a.double() @ b.double(), rtol=1e-6, atol=1e-5)
    assert "ScalarType out_dtype" in str(torch.ops.aten.mm.dtype._schema)
