"""Codebooks while they are learned: residual vector quantization in training form.

Each level is a `VectorQuantize` of vector-quantize-pytorch: k-means start, moving averages of the vectors that each
entry stands for, entries that nothing uses replaced by vectors of the batch. What is here is the way through the
levels, when an entry counts as dead, and what several processes must do alike.

Source: SoundStream, 3.3, arXiv:2107.03312; EnCodec, 3.2, arXiv:2210.13438; projections: DAC, 3.2, arXiv:2306.06546.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from vector_quantize_pytorch import VectorQuantize

from tokenizer.network_config import DacConfig
from tokenizer.quantizer import FactorizedQuantizer, Quantizer
from tokenizer.spec import CodecSpec

WARM_UP = 10  # batches after which a level's averages are half as long as they are old
SETTLED = 10**6  # batches after which any decay has its full length


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerTraining:
    """How the codebooks are learned."""

    decay: float = 0.99
    kmeans_iterations: int = 10
    dead_share: float = 0.1  # an entry used less than this share of the average entry's use is replaced
    dropout: bool = True  # each batch at one of the codec's bandwidths, drawn at random; False: always all levels

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.kmeans_iterations < 1 or not 0 <= self.dead_share < 1:
            raise ValueError("decay and dead_share lie in [0, 1), kmeans_iterations from 1")


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a batch of latents became."""

    latents: Tensor  # [B, D, T], the sum of the entries; its gradient passes straight through to what was quantized
    codes: Tensor  # [B, K, T] int64, K levels in use
    commitment: Tensor  # scalar, mean over the levels in use


class TrainableQuantizer(nn.Module):
    """The levels of a codec's quantizer."""

    def __init__(self, spec: CodecSpec, settings: QuantizerTraining) -> None:
        super().__init__()
        self.spec, self.settings = spec, settings
        self.projected = isinstance(spec.network, DacConfig)
        codebook_dim = spec.network.codebook_dim if isinstance(spec.network, DacConfig) else spec.latent_dim
        self.layers = nn.ModuleList(
            VectorQuantize(
                dim=spec.latent_dim,
                codebook_dim=codebook_dim,
                codebook_size=spec.codebook_size,
                decay=settings.decay,
                kmeans_init=True,
                kmeans_iters=settings.kmeans_iterations,
                threshold_ema_dead_code=settings.dead_share,
                use_cosine_sim=self.projected,
                rotation_trick=False,
                sync_codebook=distributed.is_initialized(),
            )
            for _ in range(spec.num_codebooks)
        )
        self.updates = [0] * spec.num_codebooks  # of each level so far
        for layer in self.levels:
            layer._codebook.sample_fn = layer._codebook.replace_sample_fn = _sample  # noqa: SLF001

    @property
    def levels(self) -> list[Any]:
        """The library's modules, coarse to fine."""
        return list(self.layers)

    def draw_num_codebooks(self, generator: torch.Generator) -> int:
        """How many levels the next batch uses: those of one of the codec's customary bandwidths."""
        if not self.settings.dropout:
            return self.spec.num_codebooks
        choices = [self.spec.num_codebooks_at(kbps) for kbps in self.spec.bandwidths_kbps]
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def forward(self, latents: Tensor, num_codebooks: int) -> Quantized:
        """Quantize level by level and, in training mode, learn from it.

        Without projections the gradient of the sum reaches the latents once, however many levels there are. (Summing
        straight-through levels, as `ResidualVQ` does, multiplies it by their number: high bandwidths would decide what
        the encoder learns.) With projections each level's gradient passes through its own two.

        Args:
            latents: [B, D, T] float32.
            num_codebooks: levels in use, 1 to K.
        """
        vectors = latents.transpose(1, 2)  # [B, T, D]
        self._prepare(num_codebooks)
        residual, total = vectors, torch.zeros_like(vectors)
        codes, commitments = [], []
        for layer in self.levels[:num_codebooks]:
            entries, chosen, commitment = layer(residual)
            entries = entries if self.projected else entries.detach()
            residual, total = residual - entries, total + entries
            codes.append(chosen)
            commitments.append(commitment)
        if not self.projected:
            total = vectors + (total - vectors).detach()
        return Quantized(total.transpose(1, 2), torch.stack(codes, dim=1), torch.stack(commitments).mean())

    def copy_into(self, quantizer: Quantizer) -> None:
        """Give the inference form what was learned."""
        quantizer.set_codebooks(torch.stack([layer._codebook.embed[0] for layer in self.levels]))  # noqa: SLF001
        if isinstance(quantizer, FactorizedQuantizer):
            with torch.no_grad():
                for level, layer in enumerate(self.levels):
                    quantizer.in_weight[level] = layer.project_in.weight
                    quantizer.in_bias[level] = layer.project_in.bias
                    quantizer.out_weight[level] = layer.project_out.weight
                    quantizer.out_bias[level] = layer.project_out.bias

    def start_from(self, quantizer: Quantizer) -> None:
        """Go on from the codebooks of an inference form, each entry as if it had been used as often as any other."""
        with torch.no_grad():
            for level, layer in enumerate(self.levels):
                learned, entries = layer._codebook, quantizer.codebooks[level]  # noqa: SLF001
                if self.projected:
                    entries = nn.functional.normalize(entries, dim=1)
                learned.embed.copy_(entries[None])
                learned.embed_avg.copy_(entries[None])
                learned.cluster_size.fill_(1.0)
                learned.initted.fill_(value=True)
                self.updates[level] = SETTLED
                if isinstance(quantizer, FactorizedQuantizer):
                    layer.project_in.weight.copy_(quantizer.in_weight[level])
                    layer.project_in.bias.copy_(quantizer.in_bias[level])
                    layer.project_out.weight.copy_(quantizer.out_weight[level])
                    layer.project_out.bias.copy_(quantizer.out_bias[level])

    def _prepare(self, num_codebooks: int) -> None:
        """Say how fast each level follows the latents now, and when its entries are dead.

        Averages start short and grow to their full length: what the first, untrained latents looked like is forgotten
        within a few batches, and entries that they left behind die as fast. (At full length from the start a SEANet
        used 3 entries of 1024 after 25 steps.)

        Dead is what is used less than a share of the average entry, whatever the size of the batch. A replacement
        starts with that average, and has the time that falling from there takes to find its place. (The library starts
        it at the threshold itself: hardly used once, it would be replaced again. And a fixed threshold of 2 uses lies
        above the average where batches are small: such codebooks never settle.)
        """
        for level, layer in enumerate(self.levels[:num_codebooks]):
            codebook = layer._codebook  # noqa: SLF001
            average = codebook.cluster_size.mean()
            codebook.reset_cluster_size = average
            codebook.threshold_ema_dead_code = self.settings.dead_share * average
            if self.training:
                codebook.decay = min(self.settings.decay, (1 + self.updates[level]) / (WARM_UP + self.updates[level]))
                self.updates[level] += 1

    def get_extra_state(self) -> list[int]:
        """How often each level has been updated, for checkpoints."""
        return self.updates

    def set_extra_state(self, state: list[int]) -> None:
        """Go on from `get_extra_state`."""
        self.updates = list(state)


def codebook_use(codes: Tensor, codebook_size: int) -> tuple[list[float], list[float]]:
    """How much of each level's codebook a batch used.

    Args:
        codes: [B, K, T] int64.
        codebook_size: V.

    Returns:
        Per level, the share of entries used at all, and the perplexity (the number of equally frequent entries that
        would surprise as much).
    """
    shares, perplexities = [], []
    for level in codes.unbind(1):
        counts = torch.bincount(level.flatten(), minlength=codebook_size).double()
        probability = counts / counts.sum()
        entropy = -torch.special.xlogy(probability, probability).sum()
        shares.append(float((counts > 0).double().mean()))
        perplexities.append(float(entropy.exp()))
    return shares, perplexities


def _sample(vectors: Tensor, count: int) -> Tensor:
    """Draw `count` of the vectors [1, N, d] of all processes: the same ones whatever their number, and on each of them.

    All processes seed torch alike before each step; their vectors in the order of ranks are those of one big batch.
    """
    pool = vectors[0].contiguous()
    if distributed.is_initialized():
        parts = [torch.empty_like(pool) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, pool)
        pool = torch.cat(parts)
    order = torch.randperm(len(pool)) if len(pool) >= count else torch.randint(len(pool), (count,))
    return pool[order[:count].to(pool.device)][None]
