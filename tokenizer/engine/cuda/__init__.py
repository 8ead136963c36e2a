"""The fast engine on a CUDA device: networks in bfloat16, with graphs for small chunks and a Triton kernel.

Where a part of it fails, torch takes its place, with a warning that says why: first at a check when the engine is
built, later when a graph cannot be recorded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from tokenizer.engine.cuda.agreement import engine_problem
from tokenizer.engine.cuda.bfloat_network import in_bfloat, input_type, takes
from tokenizer.engine.cuda.device import CudaRecorder, Recorder
from tokenizer.engine.cuda.graph_cache import GraphCache
from tokenizer.engine.cuda.network import CudaNetwork
from tokenizer.engine.cuda.quantizer import CudaQuantizer
from tokenizer.engine.cuda.residual_unit import FusedUnit, Kernel, checked, find_kernel
from tokenizer.networks import Networks
from tokenizer.quantizer import ResidualQuantizer
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import StreamingLayer


@dataclass(frozen=True, slots=True)
class CudaEngine:
    """Networks, and what they run on now."""

    networks: Networks
    graphs: GraphCache
    is_fused: bool

    @property
    def name(self) -> str:
        """As "cuda, bfloat16, graphs, triton"; what failed is left out."""
        parts = ["cuda", "bfloat16", *["graphs"] * self.graphs.works, *["triton"] * self.is_fused]
        return ", ".join(parts)


@torch.inference_mode(mode=False)  # weights made in that mode could not be moved together for cuDNN
@torch.no_grad()
def build_cuda_engine(
    networks: Networks, spec: CodecSpec, recorder: Recorder | None = None, kernel: Kernel | None = None
) -> CudaEngine | None:
    """Networks that do the same faster, in bfloat16; None where there is no engine for them, or a check finds it wrong.

    Args:
        networks: torch modules on the device, in float32.
        spec: of their codec.
        recorder: of graphs; None for those of the device.
        kernel: for residual units; None for Triton's, where that is installed.
    """
    encoder, decoder, quantizer = networks
    if not (isinstance(quantizer, ResidualQuantizer) and takes(encoder) and takes(decoder)):
        return None
    graphs = GraphCache(recorder or CudaRecorder(next(encoder.parameters()).device))
    fast = _in_bfloat((encoder, decoder), kernel or find_kernel())
    ready = Networks(
        CudaNetwork("encoder", fast[0], spec.hop_length, input_type(encoder), graphs),
        CudaNetwork("decoder", fast[1], 1, input_type(decoder), graphs),
        CudaQuantizer(quantizer, graphs),
    )
    problem = engine_problem(ready, networks, spec)
    if problem:
        _warn(f"the CUDA engine is off, the codec computes in float32: {problem}")
        return None
    is_fused = any(isinstance(part, FusedUnit) for network in fast for part in network.modules())
    return CudaEngine(ready, graphs, is_fused)


def _in_bfloat(plain: tuple[StreamingLayer, ...], kernel: Kernel | None) -> list[StreamingLayer]:
    """With the kernel where all of its units pass their check."""
    fast = [in_bfloat(network, kernel) for network in plain]
    problem = next(filter(None, map(checked, fast)), "")
    if problem:
        _warn(f"the Triton kernel is off, torch computes what it would: {problem}")
        return [in_bfloat(network) for network in plain]
    return fast


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)
