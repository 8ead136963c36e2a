"""One layer of the integer language model, with the keys and values of the frames before in a sliding buffer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm_head.activation_grid import FINE_LIMIT, LIMIT, Slot
from lm_head.integer_norm import IntegerNorm
from lm_head.integer_product import FixedFactor, products_by_stream
from lm_head.integer_tables import ATTENTION_SCALE, attention_table, gelu_table
from lm_head.integer_weights import IntegerMatrix, IntegerWeights

FINE = 32  # sums before a normalisation are kept so many times finer than activations
HIDDEN_BY_MASK = -(2**22)  # below any product of query and key, and exact when added to one in float32
SLACK_FRAMES = 256  # the buffer slides only so often


@dataclass(slots=True)
class LayerMemory:
    """Keys and values; those of the last `context_frames` frames before `end` count."""

    key_values: Tensor  # [B, capacity, 2 * D] int8: a key and its value side by side
    end: int

    def first(self, count: int) -> LayerMemory:
        """That of the first streams, in the same buffer."""
        return LayerMemory(self.key_values[:count], self.end)


class IntegerLayer:
    """Attention and feed-forward on integers."""

    def __init__(self, weights: IntegerWeights, index: int, device: torch.device) -> None:
        config = weights.config
        self.num_heads, self.context_frames, self.dim = config.num_heads, config.context_frames, config.dim
        step = {slot: float(value) for slot, value in zip(Slot, weights.steps[index], strict=True)}
        after = float(weights.steps[index + 1, Slot.INPUT])
        parts = torch.tensor([step[Slot.QUERY], step[Slot.KEY], step[Slot.VALUE]]).repeat_interleave(config.dim)
        matrix = {name: weights.matrices[f"{index}.{name}"] for name in ("project", "merge", "widen", "narrow")}
        self._project = Affine(matrix["project"], step[Slot.INPUT], parts, device)
        self._merge = Affine(matrix["merge"], step[Slot.ATTENDED], step[Slot.INPUT] / FINE, device)
        self._widen = Affine(matrix["widen"], step[Slot.MIDDLE], step[Slot.BEFORE_GELU], device)
        self._narrow = Affine(matrix["narrow"], step[Slot.HIDDEN], step[Slot.MIDDLE] / FINE, device)
        self._norm_attended = IntegerNorm(weights.norms[f"{index}.norm_attended"], step[Slot.MIDDLE], device)
        self._norm_output = IntegerNorm(weights.norms[f"{index}.norm_output"], after, device)
        width = config.dim // config.num_heads
        logit = step[Slot.QUERY] * step[Slot.KEY] * width**-0.5 * ATTENTION_SCALE
        mix = step[Slot.VALUE] / step[Slot.ATTENDED]
        self._logit, self._mix = (torch.tensor(v, dtype=torch.float32, device=device) for v in (logit, mix))
        # Looked up in float32: gathering words of 4 bytes and narrowing them is faster than gathering bytes.
        self._attention = attention_table().to(device, torch.float32)
        self._gelu = gelu_table(step[Slot.BEFORE_GELU], step[Slot.HIDDEN]).to(device, torch.float32)
        self._gelu_center = torch.tensor(float(FINE_LIMIT), device=device)
        own_channels = torch.arange(config.dim) // width == torch.arange(config.num_heads)[:, None]
        self._own_channels = own_channels.to(device, torch.int8)  # [H, D]
        self._masks: dict[tuple[int, int], Tensor] = {}

    def constants(self) -> list[Tensor]:
        """Every number that the result depends on."""
        affine = [self._project, self._merge, self._widen, self._narrow]
        numbers = [number for layer in affine for number in layer.constants()]
        norms = [*self._norm_attended.constants(), *self._norm_output.constants()]
        return [*numbers, *norms, self._logit, self._mix, self._attention.char(), self._gelu.char()]

    def begin(self, batch_size: int, chunk_frames: int) -> LayerMemory:
        """The zeros before the first frame: their key and value are the biases."""
        capacity = self.context_frames + chunk_frames + SLACK_FRAMES
        key_values = torch.zeros(batch_size, capacity, 2 * self.dim, dtype=torch.int8, device=self._gelu.device)
        key_values[:, 0] = rounded(self._project.bias[self.dim :].clone(), LIMIT)
        return LayerMemory(key_values, 1)

    def step(self, x: Tensor, memory: LayerMemory) -> Tensor:
        """The next frames of all streams: [B * T, D] int8 to the same. The memory goes on by T frames."""
        projected = rounded(self._project(x), LIMIT).char().view(len(memory.key_values), -1, 3 * self.dim)
        query, key_values = torch.split(projected, [self.dim, 2 * self.dim], dim=-1)
        attended = self._attend(query, self._remember(memory, key_values))
        x = self._norm_attended(self._merge(attended).round_().add_(x, alpha=FINE))
        before = rounded(self._widen(x), FINE_LIMIT).add_(self._gelu_center)
        hidden = self._gelu.index_select(0, before.int().view(-1)).char().view(len(x), -1)
        return self._norm_output(self._narrow(hidden).round_().add_(x, alpha=FINE))

    def _remember(self, memory: LayerMemory, key_values: Tensor) -> Tensor:
        """Append [B, T, 2 * D] to the buffer; all of it that the new frames may see."""
        begin, num_frames, buffer = memory.end, key_values.shape[1], memory.key_values
        if begin + num_frames > buffer.shape[1]:
            buffer[:, : self.context_frames] = buffer[:, begin - self.context_frames : begin].clone()
            begin = self.context_frames
        buffer.narrow(1, begin, num_frames).copy_(key_values)
        memory.end = begin + num_frames
        first = max(0, begin - self.context_frames)
        return buffer.narrow(1, first, memory.end - first)

    def _attend(self, query: Tensor, seen: Tensor) -> Tensor:
        """[B, T, D] and [B, keys, 2 * D] to [B * T, D]; all int8."""
        if query.shape[1] == 1:
            return self._attend_together(query, seen)
        # Long chunks go stream by stream: what one of them needs fits into the cache.
        streams = zip(torch.split(query, 1), torch.split(seen, 1), strict=True)
        return torch.cat([self._attend_together(*stream) for stream in streams])

    def _attend_together(self, query: Tensor, seen: Tensor) -> Tensor:
        """One product for all heads: the query of a head has zeros where the others' channels are."""
        frames = query.shape[0] * query.shape[1]
        keys, values = torch.split(seen, self.dim, dim=-1)
        apart = (query[:, :, None] * self._own_channels).flatten(1, 2)  # [B, T * H, D]
        products = products_by_stream(apart, keys.transpose(1, 2))  # [B, T * H, keys]
        if query.shape[1] > 1:
            mask = self._mask(query.shape[1], seen.shape[1])
            products.view(*query.shape[:2], self.num_heads, -1).add_(mask)
        below = products.amax(dim=-1, keepdim=True).sub(products).mul(self._logit).round_()
        index = below.clamp_(max=len(self._attention) - 1).int().view(-1)
        weights = self._attention.index_select(0, index).view(products.shape)
        mixed = products_by_stream(weights.char(), values)  # [B, T * H, D]
        by_head = mixed.view(frames, self.num_heads, self.num_heads, -1)
        own = by_head.diagonal(dim1=1, dim2=2)  # [B * T, D / H, H]: of each head its own channels
        total = weights.sum(dim=-1).view(frames, 1, self.num_heads)
        mean = rounded(own.mul(self._mix).div_(total), LIMIT)
        return mean.transpose(1, 2).reshape(frames, self.dim).char()

    def _mask(self, num_queries: int, num_keys: int) -> Tensor:
        """[T, 1, keys]: 0 where a frame may look, HIDDEN_BY_MASK elsewhere."""
        sizes = (num_queries, num_keys)
        if sizes not in self._masks:
            if len(self._masks) > 8:  # chunks of many lengths: none is worth keeping
                self._masks.clear()
            age = torch.arange(num_keys - num_queries, num_keys)[:, None, None] - torch.arange(num_keys)
            hidden = (age < 0) | (age > self.context_frames)
            self._masks[sizes] = (hidden * HIDDEN_BY_MASK).to(self._gelu.device, torch.int32)
        return self._masks[sizes]


class Affine:
    """A linear layer between two grids, before rounding."""

    def __init__(self, matrix: IntegerMatrix, step_in: float, step_out: float | Tensor, device: torch.device) -> None:
        self._weight = FixedFactor(matrix.values, device)
        self.factor = (matrix.steps * step_in / step_out).to(device)
        self.bias = (matrix.bias / step_out).to(device)

    def __call__(self, x: Tensor, rows: int | None = None) -> Tensor:
        """[R, M] int8 to [R, N] float32, or the first `rows` of N."""
        product = self._weight.product(x, rows)
        if rows is None:
            return product.mul(self.factor).add_(self.bias)
        return product.mul(self.factor[:rows]).add_(self.bias[:rows])

    def constants(self) -> list[Tensor]:
        """Every number that the result depends on."""
        return [self._weight.values, self.factor, self.bias]


def rounded(x: Tensor, limit: int) -> Tensor:
    """Nearest integers within a limit; x itself is changed."""
    return x.round_().clamp_(-limit, limit)
