"""How far what the engine computes is from what torch computes, and whether a new engine can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenizer.networks import Networks, is_streamable
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import StreamingLayer

TOLERANCE = 0.1  # of bfloat16 networks against float32 ones: they are wrong by 0.02 at most, if nothing is amiss
_CHECK_FRAMES = 64
_DIFFERENT_CODES = 0.01  # near-ties of latents that no codec made
_CHECK_POINTS = 2048  # more than the search takes as one graph


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, of integers the share that differs; infinite for other shapes and for NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    if not ours.is_floating_point():
        return float((ours != theirs).float().mean()) if ours.numel() else 0.0
    difference, length = float((ours.float() - theirs.float()).norm()), float(theirs.float().norm())
    if difference == 0.0:
        return 0.0
    return difference / length if length > 0 and math.isfinite(difference) else math.inf


@torch.no_grad()
def engine_problem(fast: Networks, plain: Networks, spec: CodecSpec) -> str:
    """What an engine gets wrong on noise, "" for nothing that shows."""
    generator = torch.Generator().manual_seed(0)
    device = plain.quantizer.codebooks.device
    sound = torch.randn(2, spec.channels, _CHECK_FRAMES * spec.hop_length, generator=generator).to(device) / 10
    latents = _whole(plain.encoder, sound, spec)
    points = latents.mean() + latents.std() * torch.randn(1, spec.latent_dim, _CHECK_POINTS, generator=generator).to(
        device
    )
    try:
        errors = {
            "encoder": relative_error(_whole(fast.encoder, sound, spec), latents) / TOLERANCE,
            "decoder": relative_error(_whole(fast.decoder, latents, spec), _whole(plain.decoder, latents, spec))
            / TOLERANCE,
            "search": relative_error(
                fast.quantizer.encode(points, spec.num_codebooks), plain.quantizer.encode(points, spec.num_codebooks)
            )
            / _DIFFERENT_CODES,
        }
    except Exception as failure:  # noqa: BLE001 - of whatever library a device has: torch in float32 is still there
        return first_line(failure)
    wrong = [f"the {part} is {error:.1f} times as far from torch as it may be" for part, error in errors.items()]
    return next((text for text, error in zip(wrong, errors.values(), strict=True) if not error <= 1.0), "")


def first_line(failure: Exception) -> str:
    """Of what an exception says, or its name where it says nothing."""
    return str(failure).partition("\n")[0] or type(failure).__name__


def _whole(network: StreamingLayer, x: Tensor, spec: CodecSpec) -> Tensor:
    """As streams where that is how the codec uses it."""
    if not is_streamable(spec):
        y: Tensor = network(x)
        return y
    return network.step(x, network.initial_state(len(x)))[0]
