"""Patch networks as programs: products at the frame rate, and an inverse Fourier transform as one of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tokenizer.engine.library import Kernels
from tokenizer.engine.program import Operation, Program, UnsupportedNetworkError, Window
from tokenizer.engine.program_builder import ProgramBuilder
from tokenizer.engine.structures import Activation, Kind
from tokenizer.network_config import PatchConfig
from tokenizer.patch import BlockStack, ConvNextBlock, PatchDecoder, PatchEncoder
from tokenizer.spec import CodecSpec

BLOCK_FRAMES = 256  # their values take about 1 MB between two layers; all weights are read once for so many


def plan_patch(network: PatchEncoder | PatchDecoder, spec: CodecSpec, kernels: Kernels, *, fast: bool) -> Program:
    """The program of an encoder or a decoder.

    Raises:
        UnsupportedNetworkError: the kernels have no operation for one of its layers.
    """
    if not isinstance(spec.network, PatchConfig):
        raise UnsupportedNetworkError("a patch network of another family's codec")
    widths = (spec.network.width, spec.network.hidden_width, spec.network.patch_width, spec.latent_dim)
    even = all(width % 2 == 0 for width in (*widths, spec.hop_length * spec.channels))
    builder = ProgramBuilder(
        kernels, fast=fast, even=even, whole_files=False, rows_per_frame=1, block_frames=BLOCK_FRAMES
    )
    planner = PatchPlanner(builder)
    return planner.encoder(network) if isinstance(network, PatchEncoder) else planner.decoder(network)


class PatchPlanner:
    """Adds the operations of one network."""

    def __init__(self, builder: ProgramBuilder) -> None:
        self._builder = builder

    def encoder(self, network: PatchEncoder) -> Program:
        """Patches of several hops, the newest last, to latents."""
        frames, channels, hop = network.context_frames, network.channels, network.hop_length
        source = self._builder.buffer(channels * hop)
        self._builder.buffers[source].left = frames - 1
        weights = network.patch.weight.view(-1, channels, frames, hop).permute(0, 2, 3, 1).flatten(1)
        patches = self._builder.buffer(network.patch.out_features)
        window = Window(source, 1 - frames, frames * channels * hop)
        gelu = {"active": patches, "activation": Activation.GELU}
        self._builder.matrix([window], weights, network.patch.bias, **gelu)
        x = self._blocks(network.blocks, self._norm(self._linear(patches, network.mix), network.norm, narrow=False))
        latents = self._linear(self._norm(x, network.head_norm), network.head)
        return self._builder.build(self._norm(latents, None, narrow=False))

    def decoder(self, network: PatchDecoder) -> Program:
        """Latents to frames by inverse Fourier transforms, and frames to sound."""
        builder, channels = self._builder, network.channels
        source = builder.buffer(network.mix.in_features)
        x = self._blocks(network.blocks, self._norm(self._linear(source, network.mix), network.norm, narrow=False))
        polar = self._linear(self._norm(x, network.head_norm), network.head)
        bins = network.frame_length // 2 + 1
        parts, frames = builder.buffer(2 * bins, narrow=False), builder.buffer(network.frame_length, narrow=False)
        numbers = {"up": channels, "length": bins}
        builder.add(Operation(Kind.SPECTRUM, work=0, inputs=[polar], output=parts, numbers=numbers))
        builder.matrix([Window(parts, 0, 2 * bins)], _inverse_transform(network), None, output=frames)
        builder.buffers[frames].left = channels  # the frame before, of each channel
        sound = builder.buffer(channels, narrow=False)
        numbers = {"stride": channels, "length": network.hop_length}
        builder.add(Operation(Kind.OVERLAP_ADD, work=0, inputs=[frames], output=sound, numbers=numbers))
        return builder.build(sound)

    def _linear(self, source: int, layer: nn.Linear) -> int:
        output = self._builder.buffer(layer.out_features, narrow=False)
        self._builder.matrix([Window(source, 0, layer.in_features)], layer.weight, layer.bias, output=output)
        return output

    def _norm(self, source: int, layer: nn.LayerNorm | None, *, narrow: bool | None = None) -> int:
        """Layer norm; None for one without weights."""
        output = self._builder.buffer(self._builder.buffers[source].width, narrow=narrow)
        tensors = {} if layer is None else {"gain": layer.weight.detach().clone(), "shift": layer.bias.detach().clone()}
        self._builder.add(Operation(Kind.LAYER_NORM, work=0, inputs=[source], output=output, tensors=tensors))
        return output

    def _blocks(self, blocks: BlockStack, x: int) -> int:
        for block in blocks:
            x = self._block(cast("ConvNextBlock", block), x)
        return x

    def _block(self, block: ConvNextBlock, x: int) -> int:
        """The gain is multiplied into the last weights; the input is added inside their product."""
        taps, width = block.taps.shape
        self._builder.buffers[x].left = taps - 1
        filtered = self._builder.buffer(width)
        tensors = {"weights": block.taps, "bias": block.bias, "gain": block.norm.weight, "shift": block.norm.bias}
        self._builder.add(
            Operation(
                Kind.DEPTHWISE,
                work=0,
                inputs=[x],
                output=filtered,
                numbers={"length": taps},
                tensors={name: tensor.detach().clone() for name, tensor in tensors.items()},
            )
        )
        hidden, output = self._builder.buffer(block.expand.out_features), self._builder.buffer(width, narrow=False)
        gelu = {"active": hidden, "activation": Activation.GELU}
        self._builder.matrix([Window(filtered, 0, width)], block.expand.weight, block.expand.bias, **gelu)
        weights, bias = block.contract.weight * block.gain[:, None], block.contract.bias * block.gain
        self._builder.matrix([Window(hidden, 0, block.expand.out_features)], weights, bias, second=x, output=output)
        return output


def _inverse_transform(network: PatchDecoder) -> Tensor:
    """[frame_length, real and imaginary bins]: what irfft does, with the window."""
    bins = network.frame_length // 2 + 1
    units = torch.eye(bins, dtype=torch.float64)
    zeros = torch.zeros_like(units)
    parts = torch.cat([torch.complex(units, zeros), torch.complex(zeros, units)])
    frames: Tensor = torch.fft.irfft(parts, n=network.frame_length)
    return (frames * network.window.double()).T.float()
