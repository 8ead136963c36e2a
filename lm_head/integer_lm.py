"""The token language model in integers: the same distributions, bit for bit, on every machine.

Floating point sums depend on their order, and so on batch, threads and processor: a decoder that evaluates the model in
another way than the encoder reads noise. Here every sum is one of integers that fit into the mantissa of its type, and
so exact in any order, by whatever matrix product the machine has. What is not exact, it does once per number: multiply,
add, divide, square root and round to the nearest, as IEEE 754 defines them. Everything else comes out of tables.

Source: Ballé, Johnston, Minnen, Integer networks for data compression with latent-variable models, ICLR 2019.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lm_head.activation_grid import LIMIT, OUTPUT_SLOT, Slot
from lm_head.integer_layer import FINE, HIDDEN_BY_MASK, Affine, IntegerLayer, LayerMemory, rounded
from lm_head.integer_norm import MAX_CHANNELS, IntegerNorm
from lm_head.integer_tables import LOGIT_SCALE, frequency_table, position_table
from lm_head.integer_weights import IntegerWeights
from tokenizer.errors import CheckpointError

MAX_FRAMES = 4096  # of one stream: so many positions have a table


@dataclass(slots=True)
class IntegerState:
    """Where streams stand that are predicted side by side. `IntegerLM.step` changes it."""

    layers: list[LayerMemory]
    position: int = 0

    def first(self, count: int) -> IntegerState:
        """The first streams alone, in the same memory."""
        return IntegerState([layer.first(count) for layer in self.layers], self.position)


class IntegerLM:
    """Frequencies of the next codes as integers.

    Args:
        weights: of the model.
        device: where it computes; the frequencies are the same on all.

    Raises:
        CheckpointError: sizes whose sums would not be exact.
    """

    def __init__(self, weights: IntegerWeights, device: str = "cpu") -> None:
        config = self.config = weights.config
        self.device = torch.device(device)
        if config.layout != "parallel" or config.text:
            raise CheckpointError("only a model of layout 'parallel' without text has an integer form")
        if config.dim > MAX_CHANNELS or config.dim // config.num_heads * LIMIT**2 >= -HIDDEN_BY_MASK:
            raise CheckpointError(f"{config.dim} channels, {config.num_heads} heads: too wide to be exact")
        shift = torch.exp2(weights.shifts.float())
        self._embeddings = (weights.embeddings.float() * shift[:, None, None]).flatten(0, 1).to(self.device)
        size = config.codebook_size + 1
        self._first_rows = torch.arange(0, config.num_codebooks * size, size, device=self.device)[:, None]
        _require_exact(float(self._embeddings.abs().max()) * config.num_codebooks, "embeddings")
        steps = weights.steps
        fine = float(steps[0, Slot.INPUT]) / FINE
        self._norm_input = IntegerNorm(weights.norm_input, fine, self.device)
        self._positions = position_table(MAX_FRAMES, config.dim, config.max_period, fine).to(self.device)
        self.layers = [IntegerLayer(weights, index, self.device) for index in range(config.num_layers)]
        _require_exact(float(LIMIT * LIMIT * max(config.dim, config.hidden_dim, config.context_frames + 1)), "layers")
        self._heads = Affine(weights.heads, float(steps[-1, OUTPUT_SLOT]), 1 / LOGIT_SCALE, self.device)
        self._frequencies = frequency_table(config.codebook_size).to(self.device)
        self.identity = self._fingerprint()

    def begin(self, batch_size: int, chunk_frames: int = 1) -> IntegerState:
        """Streams that have seen nothing.

        Args:
            batch_size: streams side by side.
            chunk_frames: the most frames that one `step` will get.
        """
        return IntegerState([layer.begin(batch_size, chunk_frames) for layer in self.layers])

    @torch.inference_mode()
    def step(self, shifted: Tensor, state: IntegerState) -> Tensor:
        """Frequencies of the frame behind each of some frames.

        Args:
            shifted: [B, K, T] integers: codes + 1, or 0 for all levels of the frame before the first.
            state: of these streams; it goes on by T frames.

        Returns:
            [B, T, K, V] float32 integers of at least 1, whose sum over V is at most 2 ** 24: exact in float32.
        """
        num_frames, levels = shifted.shape[2], shifted.shape[1]
        x = self._embed(shifted, state.position)
        for layer, memory in zip(self.layers, state.layers, strict=True):
            x = layer.step(x, memory)
        state.position += num_frames
        frequencies = self._weigh(x, levels)
        return frequencies.view(-1, num_frames, *frequencies.shape[1:])

    def _embed(self, shifted: Tensor, position: int) -> Tensor:
        """[B, K, T] to [B * T, D] int8."""
        rows = shifted + self._first_rows[: shifted.shape[1]]
        summed = functional.embedding(rows, self._embeddings).sum(dim=1)  # [B, T, D]
        fine = self._norm_input.unrounded(summed).round_()
        fine.add_(self._positions[position : position + shifted.shape[2]])
        return rounded(fine.mul_(1 / FINE), LIMIT).char().flatten(0, 1)

    def _weigh(self, x: Tensor, levels: int) -> Tensor:
        """[R, D] int8 to frequencies [R, K, V]."""
        size = self.config.codebook_size
        logits = self._heads(x, levels * size).round_().view(-1, levels, size)
        below = logits.amax(dim=-1, keepdim=True).sub(logits).clamp_(max=len(self._frequencies) - 1)
        return self._frequencies.index_select(0, below.int().view(-1)).view(below.shape)

    def _fingerprint(self) -> str:
        """sha256 of every number that the result depends on."""
        sizes = (self.config.num_codebooks, self.config.num_heads, self.config.context_frames)
        digest = hashlib.sha256(repr(sizes).encode())  # all other sizes are those of the tensors below
        own = [
            self._embeddings,
            *self._norm_input.constants(),
            self._positions,
            *self._heads.constants(),
            self._frequencies,
        ]
        for tensor in [*own, *(constant for layer in self.layers for constant in layer.constants())]:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _require_exact(bound: float, what: str) -> None:
    if bound >= 2**24:
        raise CheckpointError(f"sums in the {what} could reach {bound:.0f}, beyond the 2 ** 24 that are exact")
