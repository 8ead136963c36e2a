"""Networks in bfloat16, made from those in float32, which stay as they are."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tokenizer.convolution import Conv1d, ConvTranspose1d
from tokenizer.engine.cuda.bfloat_layers import (
    BfloatConv1d,
    BfloatLinear,
    HalfLstm,
    RowConvolution,
    SoundConvolution,
    upsampling,
)
from tokenizer.engine.cuda.residual_unit import Kernel, fused
from tokenizer.patch import PatchDecoder, PatchEncoder
from tokenizer.seanet import SeanetDecoder, SeanetEncoder, SkipLstm
from tokenizer.streaming_layer import Chain, Residual, StreamingLayer

_BEFORE_GELU = ("patch", "expand")  # layers whose results are rounded once more before anything is added to them


def takes(network: StreamingLayer) -> bool:
    """Whether there is a form in bfloat16."""
    return isinstance(network, (SeanetEncoder, SeanetDecoder, PatchEncoder, PatchDecoder))


def input_type(network: StreamingLayer) -> torch.dtype:
    """What its form in bfloat16 is fed."""
    return torch.bfloat16 if isinstance(network, SeanetDecoder) else torch.float32


def in_bfloat(network: StreamingLayer, kernel: Kernel | None = None) -> StreamingLayer:
    """A network in bfloat16.

    Args:
        network: one that `takes` takes, in float32, for inference.
        kernel: for residual units; None leaves them to torch.
    """
    if isinstance(network, (PatchEncoder, PatchDecoder)):
        return _patch(network)
    if not isinstance(network, (SeanetEncoder, SeanetDecoder)):
        raise TypeError(f"no {type(network).__name__} in bfloat16")
    twin = copy.copy(network)
    twin._modules = dict(network._modules)  # noqa: SLF001 - a module with another chain in it, and nothing else new
    first = network.chain[0] if isinstance(network, SeanetEncoder) else None
    layers = [_converted(layer, kernel, is_sound=layer is first) for layer in network.chain]
    twin.add_module(network.chain_name, Chain(*layers))
    return twin


def _patch(network: StreamingLayer) -> StreamingLayer:
    """Products in bfloat16; the values that blocks add to, norms and Fourier transforms stay in float32."""
    twin = copy.deepcopy(network)
    for layer in list(twin.modules()):
        for name, part in list(layer.named_children()):
            if isinstance(part, nn.Linear):
                layer.add_module(name, BfloatLinear(part, is_narrow=name in _BEFORE_GELU))
    return twin


def _converted(layer: nn.Module, kernel: Kernel | None, *, is_sound: bool = False) -> nn.Module:
    if isinstance(layer, Conv1d):
        return _convolution(layer, is_sound=is_sound)
    if isinstance(layer, ConvTranspose1d):
        return upsampling(layer)
    if isinstance(layer, SkipLstm):
        return HalfLstm(layer)
    if isinstance(layer, Residual):
        block = Chain(*(_converted(part, None) for part in layer.block))
        shortcut = None if layer.shortcut is None else _converted(layer.shortcut, None)
        return fused(Residual(layer.width, block, shortcut), kernel)
    return copy.deepcopy(layer).bfloat16()


def _convolution(layer: Conv1d, *, is_sound: bool) -> nn.Module:
    if is_sound:
        return BfloatConv1d(layer, SoundConvolution(layer.conv))
    return BfloatConv1d(layer, RowConvolution(layer.conv))
