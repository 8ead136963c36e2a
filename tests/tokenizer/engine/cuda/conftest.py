"""Tiny codecs on the CUDA engine, with a recorder in place of CUDA's."""

import pytest
import torch

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.engine.cuda.replayer import Replayer
from tokenizer.engine import cuda
from tokenizer.engine.cuda import build_cuda_engine
from tokenizer.networks import Networks


def on_engine(codec, recorder, kernel=None):
    """The codec as it would be on a device, with tensors on the CPU; every shape is recorded when it first comes."""
    twin = codec.with_precision("fast")
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    twin._engine, twin._engine_device = build_cuda_engine(networks, codec.spec, recorder, kernel), torch.device("cpu")
    twin._engine.graphs._calls_before = 0
    return twin


@pytest.fixture
def without_triton(monkeypatch):
    """Whether it is installed here or not."""
    monkeypatch.setattr(cuda, "find_kernel", lambda: None)


@pytest.fixture
def plain(request):
    """A tiny codec in torch, of the kind that a test names."""
    return make_codec(tiny_spec(request.param))


@pytest.fixture
def graphed(plain, without_triton):
    """The same on the engine, with graphs."""
    return on_engine(plain, Replayer())


@pytest.fixture
def eager(plain, without_triton):
    """The same on the engine, without graphs."""
    codec = on_engine(plain, Replayer())
    codec._engine.graphs.works = False
    return codec
