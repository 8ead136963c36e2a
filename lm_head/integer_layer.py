"""One layer of the integer language model, with the keys and values of the frames before in a sliding buffer.

All tensors are float32 that hold integers: that is the type whose matrix products are fast on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm_head.activation_grid import FINE_LIMIT, LIMIT, Slot
from lm_head.integer_product import IntegerProduct
from lm_head.integer_tables import ATTENTION_SCALE, attention_table, gelu_table
from lm_head.integer_weights import IntegerMatrix, IntegerWeights

FINE = 32  # sums before a normalisation are kept so many times finer than activations
FINE_RANGE = 2.0**14  # and cut off there: 1024 of them, each squared, stay exact
HIDDEN_BY_MASK = -(2.0**22)  # below any product of query and key, and exact when added to one
SLACK_FRAMES = 256  # the buffer slides only so often


@dataclass(slots=True)
class LayerMemory:
    """Keys and values; those of the last `context_frames` frames before `end` count."""

    keys: Tensor  # [B, H, capacity, D / H]
    values: Tensor  # [B, H, capacity, D / H]
    end: int

    def first(self, count: int) -> LayerMemory:
        """That of the first streams, in the same buffers."""
        return LayerMemory(self.keys[:count], self.values[:count], self.end)


class IntegerLayer:
    """Attention and feed-forward on integers."""

    def __init__(self, weights: IntegerWeights, index: int, device: torch.device) -> None:
        config, steps = weights.config, weights.steps
        self.num_heads, self.context_frames = config.num_heads, config.context_frames
        self._head_dim = config.dim // config.num_heads
        step = [float(value) for value in steps[index]]
        following = float(steps[index + 1, Slot.INPUT])
        parts = torch.tensor([step[Slot.QUERY], step[Slot.KEY], step[Slot.VALUE]]).repeat_interleave(config.dim)
        self._project = Affine(weights.matrices[f"{index}.project"], step[Slot.INPUT], parts, device)
        self._merge = Affine(weights.matrices[f"{index}.merge"], step[Slot.ATTENDED], step[Slot.INPUT] / FINE, device)
        self._widen = Affine(weights.matrices[f"{index}.widen"], step[Slot.MIDDLE], step[Slot.BEFORE_GELU], device)
        self._narrow = Affine(weights.matrices[f"{index}.narrow"], step[Slot.HIDDEN], step[Slot.MIDDLE] / FINE, device)
        self._norms = [
            [v.to(device) for v in norm_constants(weights.norms[f"{index}.{name}"], out)]
            for name, out in (("norm_attended", step[Slot.MIDDLE]), ("norm_output", following))
        ]
        logit = step[Slot.QUERY] * step[Slot.KEY] * self._head_dim**-0.5 * ATTENTION_SCALE
        mix = step[Slot.VALUE] / step[Slot.ATTENDED]
        self._logit, self._mix = (torch.tensor(v, dtype=torch.float32, device=device) for v in (logit, mix))
        self._attention = attention_table(config.context_frames + 1).to(device)
        self._gelu = gelu_table(step[Slot.BEFORE_GELU], step[Slot.HIDDEN]).to(device)
        self._masks: dict[tuple[int, int], Tensor] = {}

    def constants(self) -> list[Tensor]:
        """Every number that the result depends on."""
        affine = [self._project, self._merge, self._widen, self._narrow]
        numbers = [number for layer in affine for number in layer.constants()]
        norms = [number for constants in self._norms for number in constants]
        return [*numbers, *norms, self._logit, self._mix, self._attention, self._gelu]

    def begin(self, batch_size: int, chunk_frames: int) -> LayerMemory:
        """The zeros before the first frame: their key and value are the biases."""
        capacity = self.context_frames + chunk_frames + SLACK_FRAMES
        shape = (batch_size, self.num_heads, capacity, self._head_dim)
        keys, values = (torch.zeros(shape, device=self._gelu.device) for _ in range(2))
        _, key, value = rounded(self._project.bias.clone(), LIMIT).view(3, self.num_heads, self._head_dim)
        keys[:, :, 0], values[:, :, 0] = key, value
        return LayerMemory(keys, values, 1)

    def step(self, x: Tensor, memory: LayerMemory) -> Tensor:
        """The next frames: [B, T, D] integers up to LIMIT to the same. The memory goes on by T frames."""
        projected = rounded(self._project(x), LIMIT).view(*x.shape[:2], 3, self.num_heads, self._head_dim)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # [B, H, T, D / H]
        attended = self._attend(query, *self._remember(memory, key, value)).transpose(1, 2).flatten(2)
        fine = self._merge(attended).round_().add_(x, alpha=FINE).clamp_(-FINE_RANGE, FINE_RANGE)
        x = rounded(integer_norm(fine, *self._norms[0]), LIMIT)
        before = rounded(self._widen(x), FINE_LIMIT).add_(FINE_LIMIT)
        hidden = self._gelu.index_select(0, before.int().flatten()).view(before.shape)
        fine = self._narrow(hidden).round_().add_(x, alpha=FINE).clamp_(-FINE_RANGE, FINE_RANGE)
        return rounded(integer_norm(fine, *self._norms[1]), LIMIT)

    def _remember(self, memory: LayerMemory, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append to the buffer; all keys and values that the new frames may see."""
        num_frames, capacity = key.shape[2], memory.keys.shape[2]
        if memory.end + num_frames > capacity:
            kept = slice(memory.end - self.context_frames, memory.end)
            for buffer in (memory.keys, memory.values):
                buffer[:, :, : self.context_frames] = buffer[:, :, kept].clone()
            memory.end = self.context_frames
        end = memory.end + num_frames
        memory.keys[:, :, memory.end : end] = key
        memory.values[:, :, memory.end : end] = value
        memory.end = end
        seen = slice(max(0, end - num_frames - self.context_frames), end)
        return memory.keys[:, :, seen], memory.values[:, :, seen]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[B, H, T, D / H] integers to the same."""
        products = query @ keys.transpose(-1, -2)  # [B, H, T, keys]
        if query.shape[2] > 1:
            products.add_(self._mask(query.shape[2], keys.shape[2]))
        below = products.amax(dim=-1, keepdim=True).sub(products).mul_(self._logit).round_()
        index = below.clamp_(max=len(self._attention) - 1).int().flatten()
        weights = self._attention.index_select(0, index).view(products.shape)
        mixed = (weights @ values).mul_(self._mix)
        return rounded(mixed.div_(weights.sum(dim=-1, keepdim=True)), LIMIT)

    def _mask(self, num_queries: int, num_keys: int) -> Tensor:
        key = (num_queries, num_keys)
        if key not in self._masks:
            if len(self._masks) > 8:  # chunks of many lengths: none is worth keeping
                self._masks.clear()
            age = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
            visible = (age >= 0) & (age <= self.context_frames)
            self._masks[key] = torch.where(visible, 0.0, HIDDEN_BY_MASK).to(self._gelu.device)
        return self._masks[key]


class Affine:
    """A linear layer between two grids, before rounding."""

    def __init__(self, matrix: IntegerMatrix, step_in: float, step_out: float | Tensor, device: torch.device) -> None:
        self.product = IntegerProduct(matrix.values, device)
        self.factor = (matrix.steps * step_in / step_out).to(device)
        self.bias = (matrix.bias / step_out).to(device)

    def __call__(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[..., M] integers to [..., N] numbers, or the first `rows` of them."""
        return self.product(x, rows).mul(self.factor[:rows]).add_(self.bias[:rows])

    def constants(self) -> list[Tensor]:
        """Every number that the result depends on."""
        return [self.product.values, self.factor, self.bias]


def rounded(x: Tensor, limit: int) -> Tensor:
    """Nearest integers within a limit; x itself is changed."""
    return x.round_().clamp_(-limit, limit)


def norm_constants(gain_and_bias: tuple[Tensor, Tensor], step: float) -> tuple[Tensor, Tensor]:
    """What `integer_norm` needs for an output grid: the gain times sqrt(D), and the bias, both over the step."""
    gain, bias = gain_and_bias
    return gain * (len(gain) ** 0.5 / step), bias / step


def integer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation of integers [..., D], not yet rounded.

    Mean and norm are rounded down to integers; the halves inside keep a last bit of division or root from deciding.
    """
    dim = x.shape[-1]
    mean = x.sum(dim=-1, keepdim=True, dtype=torch.float64).add_(0.5).div_(dim).floor_().float()
    centred = x - mean
    # Squares are rounded to 24 bits one by one, and so are multiples of 2 ** 9 at most: their sum is exact in float64.
    power = centred.square().sum(dim=-1, keepdim=True, dtype=torch.float64)
    norm = power.add_(0.5).sqrt_().floor_().clamp_(min=1).float()
    return centred.mul_(gain).div_(norm).add_(bias)
