"""A residual unit in one pass over its input, for Triton: what is read once and written once is all that it costs.

Near the sample rate a unit does so little arithmetic that the time is that of its memory: five passes over the
activations in torch, one here. Importing this room imports triton.

    y = shortcut(x) + pointwise(elu(convolution(elu(x))))

Roundings to bfloat16 stand where torch has them, so that only the order of sums differs.
"""

# ruff: noqa: ANN001, ANN202, N803, N806 - triton reads no annotations, and its constants are in capitals
# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SAMPLES = 128  # of one row, in one program


@triton.jit
def _rounded(x):
    return x.to(tl.bfloat16).to(tl.float32)


@triton.jit
def _elu(x):
    """Of bfloat16 values in float32, rounded as torch rounds it. exp(x) - 1 keeps enough digits for bfloat16."""
    small = x * (1.0 + x * (0.5 + x * (1.0 / 6.0)))  # near zero the difference would have none
    below = tl.where(x > -0.03, small, tl.exp(tl.minimum(x, 0.0)) - 1.0)
    return tl.where(x > 0.0, x, below).to(tl.bfloat16)


@triton.jit
def _unit(
    x_at,  # [B, S, WIDTH] bfloat16
    past_at,  # [B, LEFT, WIDTH] bfloat16, after ELU
    taps_at,  # [TAPS, WIDTH, NARROW] bfloat16
    taps_bias_at,  # [NARROW] float32
    point_at,  # [NARROW, WIDTH] bfloat16
    point_bias_at,  # [WIDTH] float32
    beside_at,  # [WIDTH, WIDTH] bfloat16
    beside_bias_at,  # [WIDTH] float32
    y_at,  # [B, S, WIDTH] bfloat16
    num_samples,
    WIDTH: tl.constexpr,
    NARROW: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    SHORTCUT: tl.constexpr,
    FACTOR: tl.constexpr,  # the type of factors: bfloat16
    BLOCK: tl.constexpr,
) -> None:
    LEFT: tl.constexpr = (TAPS - 1) * DILATION
    blocks = (num_samples + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    samples = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channels, inner = tl.arange(0, WIDTH), tl.arange(0, NARROW)
    x_row, past_row = x_at + row * num_samples * WIDTH, past_at + row * LEFT * WIDTH
    hidden = tl.full((BLOCK, NARROW), 0.0, tl.float32)
    for tap in tl.static_range(TAPS):
        seen = samples + (tap * DILATION - LEFT)
        heard = (seen >= 0) & (seen < num_samples)
        present = tl.load(x_row + seen[:, None] * WIDTH + channels[None, :], mask=heard[:, None], other=0.0)
        before = tl.load(
            past_row + (seen + LEFT)[:, None] * WIDTH + channels[None, :], mask=(seen < 0)[:, None], other=0.0
        )
        active = tl.where((seen < 0)[:, None], before, _elu(present.to(tl.float32)))
        weights = tl.load(taps_at + (tap * WIDTH + channels)[:, None] * NARROW + inner[None, :])
        hidden = tl.dot(active.to(FACTOR), weights.to(FACTOR), hidden)
    hidden = _rounded(hidden + tl.load(taps_bias_at + inner)[None, :])
    point = tl.load(point_at + inner[:, None] * WIDTH + channels[None, :])
    y = _rounded(tl.dot(_elu(hidden).to(FACTOR), point.to(FACTOR)) + tl.load(point_bias_at + channels)[None, :])
    inside = (samples < num_samples)[:, None]
    place = samples[:, None] * WIDTH + channels[None, :]
    x = tl.load(x_row + place, mask=inside, other=0.0)
    if SHORTCUT:
        beside = tl.load(beside_at + channels[:, None] * WIDTH + channels[None, :])
        y += _rounded(tl.dot(x.to(FACTOR), beside.to(FACTOR)) + tl.load(beside_bias_at + channels)[None, :])
    else:
        y += x.to(tl.float32)
    tl.store(y_at + row * num_samples * WIDTH + place, y.to(tl.bfloat16), mask=inside)


def run_unit(x: Tensor, past: Tensor, weights: tuple[Tensor, ...], *, dilation: int, shortcut: bool) -> Tensor:
    """The unit over a chunk.

    Args:
        x: [B, S, width] bfloat16, contiguous.
        past: [B, (taps - 1) * dilation, width] bfloat16, contiguous: what stood before x, after ELU.
        weights: [taps, width, narrow], [narrow], [narrow, width], [width], [width, width], [width]: matrices in
            bfloat16, biases in float32. Without a shortcut the last two are not read.
        dilation: distance between taps.
        shortcut: whether a matrix stands beside the unit, or x itself.

    Returns:
        [B, S, width] bfloat16.
    """
    num_taps, width, narrow = weights[0].shape
    y = torch.empty_like(x)
    programs = x.shape[0] * triton.cdiv(x.shape[1], BLOCK_SAMPLES)
    _unit[(programs,)](
        x,
        past,
        *weights,
        y,
        x.shape[1],
        WIDTH=width,
        NARROW=narrow,
        TAPS=num_taps,
        DILATION=dilation,
        SHORTCUT=shortcut,
        FACTOR=tl.bfloat16 if x.is_cuda else tl.float32,  # triton's interpreter would multiply the bits of bfloats
        BLOCK=BLOCK_SAMPLES,
    )
    return y
