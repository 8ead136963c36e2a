"""The work that a codec or a language model cannot avoid: multiplications by layer, weights that each step reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lm_head.token_lm import LMConfig
from tokenizer.networks import build_networks
from tokenizer.patch import ConvNextBlock
from tokenizer.quantizer import FactorizedQuantizer, Quantizer
from tokenizer.spec import CodecSpec

Direction = Literal["encode", "decode"]

_FRAMES = 8  # that are counted: whole frames cost the same each


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One layer's work for a second of audio of one stream.

    What is left out (activation functions, norms, the inverse Fourier transform, transcendentals) only adds to it.
    """

    name: str
    macs: float = 0.0  # multiplications with an addition each, as the layer is defined
    saved_macs: float = 0.0  # of them, that neighbouring windows need not: see tokenizer/engine/kernels/winograd.h
    step_weights: float = 0.0  # weights that every time step needs anew; streams of a batch share them
    memory_bytes: float = 0.0  # that must come from or go to memory: waveform and codes
    in_bytes: bool = False  # in any precision: a search that compares again in float32 what comes into question

    @property
    def least_macs(self) -> float:
        """What is left to multiply."""
        return self.macs - self.saved_macs


def codec_work(spec: CodecSpec, direction: Direction, num_codebooks: int) -> list[LayerWork]:
    """The layers of one direction, as torch's own shape inference sees them; nothing is computed.

    Args:
        spec: of a codec whose networks are built here.
        direction: "encode" or "decode".
        num_codebooks: levels in use.

    Raises:
        ValueError: networks that live in another library.
    """
    num_samples = _FRAMES * spec.hop_length
    seconds = num_samples / spec.sample_rate
    if spec.segment is not None:  # neighbours overlap: their common samples are computed twice
        seconds *= spec.segment.stride / spec.segment.length
    with torch.device("meta"):
        networks = build_networks(spec)
        network = networks.encoder if direction == "encode" else networks.decoder
        shape = (spec.channels, num_samples) if direction == "encode" else (spec.latent_dim, _FRAMES)
        with _counting(network) as counted, torch.no_grad():
            network(torch.zeros(1, *shape))
    counted += [
        LayerWork(f"{name}.taps", macs=block.taps.numel() * _FRAMES)
        for name, block in network.named_modules()
        if isinstance(block, ConvNextBlock)
    ]
    level_macs = _level_macs(networks.quantizer, spec.latent_dim, direction)
    counted += [LayerWork("quantizer", macs=num_codebooks * _FRAMES * level_macs, in_bytes=direction == "encode")]
    traffic = 4.0 * spec.channels * num_samples + 2.0 * num_codebooks * _FRAMES
    return _per_second([*counted, LayerWork("waveform and codes", memory_bytes=traffic)], seconds)


def lm_work(config: LMConfig, num_codebooks: int, num_frames: int, frame_rate: float) -> list[LayerWork]:
    """Predicting a stream of codes; `step_weights` are what a model that goes frame by frame reads for each.

    Args:
        config: of the model.
        num_codebooks: levels in use.
        num_frames: of the stream, as attention sees more and more of it.
        frame_rate: of the codec, Hz.
    """
    dim, hidden = config.dim, config.hidden_dim
    seen = sum(min(frame + 1, config.context_frames + 1) for frame in range(num_frames)) / num_frames
    dense = 4 * dim * dim + 2 * dim * hidden
    heads = num_codebooks * config.codebook_size * dim
    layers = [
        LayerWork(f"layers.{index}", macs=dense + 2 * seen * dim, step_weights=dense)
        for index in range(config.num_layers)
    ]
    return _per_second([*layers, LayerWork("heads", macs=heads, step_weights=heads)], 1.0 / frame_rate)


def total_macs(layers: Iterable[LayerWork]) -> float:
    """Multiplications for a second of audio."""
    return sum(layer.macs for layer in layers)


def _level_macs(quantizer: Quantizer, latent_dim: int, direction: Direction) -> int:
    """Of one level for one frame: every entry is compared; projections where that happens in a smaller space."""
    _, size, width = quantizer.codebooks.shape
    projection = width * latent_dim if isinstance(quantizer, FactorizedQuantizer) else 0
    return size * width + 2 * projection if direction == "encode" else projection


@contextmanager
def _counting(network: nn.Module) -> Iterator[list[LayerWork]]:
    counted: list[LayerWork] = []
    names = {module: name for name, module in network.named_modules()}

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counted.append(_layer_work(names[module], module, inputs[0], output))

    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear, nn.LSTM)
    hooks = [module.register_forward_hook(count) for module in names if isinstance(module, kinds)]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _layer_work(name: str, module: nn.Module, x: Tensor, y: Any) -> LayerWork:
    if isinstance(module, nn.LSTM):
        steps = x.shape[0]
        weights = [weight for layer in module.all_weights for weight in layer if weight.dim() == 2]
        # Those of the input serve all steps in one product; those of the state come again with every step.
        again = sum(weight.numel() for layer in module.all_weights for weight in layer[1:2])
        return LayerWork(name, macs=steps * sum(weight.numel() for weight in weights), step_weights=steps * again)
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        macs = (y if isinstance(module, nn.Conv1d) else x).shape[-1] * module.weight.numel()
        return LayerWork(name, macs=macs, saved_macs=macs * _saved_share(module))
    if isinstance(module, nn.Linear):
        return LayerWork(name, macs=x.numel() // x.shape[-1] * module.weight.numel())
    raise TypeError(f"{name}: a layer of kind {type(module).__name__} is not counted")


def _saved_share(module: nn.Conv1d | nn.ConvTranspose1d) -> float:
    """Of windows of two or three strides: four neighbours need five products of eight, or six of twelve."""
    (taps,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
    return {(2 * stride, 1): 3 / 8, (3 * stride, 1): 1 / 2}.get((taps, dilation), 0.0)


def _per_second(layers: Iterable[LayerWork], seconds: float) -> list[LayerWork]:
    return [
        replace(
            layer,
            macs=layer.macs / seconds,
            saved_macs=layer.saved_macs / seconds,
            step_weights=layer.step_weights / seconds,
            memory_bytes=layer.memory_bytes / seconds,
        )
        for layer in layers
    ]
