"""The fast engine: the networks of a codec as programs for compiled kernels, in place of the torch modules.

The torch modules stay: they are what the engine is tested against, and what runs where there is no engine: on other
processors and devices, without a compiler, and for families that the kernels have no operations for. On a CUDA device
`tokenizer.engine.cuda` stands in their place, for "fast" alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from tokenizer.engine.cuda import CudaEngine, build_cuda_engine
from tokenizer.engine.library import Kernels, find_kernels
from tokenizer.engine.network import EngineNetwork
from tokenizer.engine.patch_program import plan_patch
from tokenizer.engine.program import UnsupportedNetworkError
from tokenizer.engine.quantizer import EngineQuantizer
from tokenizer.engine.seanet_program import plan_seanet
from tokenizer.networks import Networks, is_streamable
from tokenizer.patch import PatchDecoder, PatchEncoder
from tokenizer.quantizer import ResidualQuantizer
from tokenizer.seanet import SeanetDecoder, SeanetEncoder
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import StreamingLayer

__all__ = ["PRECISIONS", "CudaEngine", "Engine", "Precision", "build_engine"]

Precision = Literal["plain", "exact", "fast"]
PRECISIONS: tuple[Precision, ...] = ("plain", "exact", "fast")


class Engine(NamedTuple):
    """Networks, and what they run on."""

    networks: Networks
    name: str  # "torch", or the instruction set and the numbers


def build_engine(networks: Networks, spec: CodecSpec, precision: Precision) -> Engine | CudaEngine:
    """Networks that do the same faster; where there is no engine for them, themselves.

    Args:
        networks: torch modules, with their weights, on a device.
        spec: of their codec.
        precision: "exact" computes in float32; "fast" in what the processor multiplies fastest, see `Kernels`.
    """
    encoder, decoder, quantizer = networks
    device = next(encoder.parameters()).device
    if device.type == "cuda" and precision == "fast":
        return build_cuda_engine(networks, spec) or Engine(networks, "torch")
    kernels = None if precision == "plain" or device.type != "cpu" else find_kernels()
    if kernels is None or not isinstance(quantizer, ResidualQuantizer):
        return Engine(networks, "torch")
    fast = precision == "fast"
    try:
        planned = [_planned(network, spec, kernels, fast=fast) for network in (encoder, decoder)]
    except UnsupportedNetworkError:
        return Engine(networks, "torch")
    numbers = kernels.fast_numbers if fast else "float32"
    return Engine(Networks(planned[0], planned[1], EngineQuantizer(quantizer, kernels)), f"{kernels.name}, {numbers}")


def _planned(network: StreamingLayer, spec: CodecSpec, kernels: Kernels, *, fast: bool) -> EngineNetwork:
    if isinstance(network, (SeanetEncoder, SeanetDecoder)):
        program = plan_seanet(network, spec, kernels, fast=fast)
    elif isinstance(network, (PatchEncoder, PatchDecoder)):
        program = plan_patch(network, spec, kernels, fast=fast)
    else:
        raise UnsupportedNetworkError(type(network).__name__)
    return EngineNetwork(network, program, whole_files=not is_streamable(spec))
