"""Residual vector quantization: latents to codes and back, level by level.

Source: SoundStream, algorithm 1, arXiv:2107.03312.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Quantizer(nn.Module, ABC):
    """K codebooks in a fixed order; each quantizes what the levels before it left over.

    Levels past those asked for are never computed. What the search needs beside the codebooks is computed once, when
    they are set or loaded: change them by `set_codebooks` or `load_state_dict`, not in place.
    """

    codebooks: Tensor  # [K, V, d]
    centres: Tensor  # [K, d]
    offsets: Tensor  # [K, V, d], entries less their centre
    norms: Tensor  # [K, V], of the offsets, squared

    def __init__(self, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, codebook_dim))
        self.register_buffer("centres", torch.zeros(num_codebooks, codebook_dim), persistent=False)
        self.register_buffer("offsets", torch.zeros_like(self.codebooks), persistent=False)
        self.register_buffer("norms", torch.zeros(num_codebooks, codebook_size), persistent=False)
        self.register_load_state_dict_post_hook(_prepare_search)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def set_codebooks(self, codebooks: Tensor) -> None:
        """Copy codebooks [K, V, d] in."""
        self.codebooks.copy_(codebooks)
        self.prepare_search()

    @torch.no_grad()
    def prepare_search(self) -> None:
        """Mean entry of each level, the others relative to it, and their squared norms."""
        entries = self._compared()
        self.centres.copy_(entries.mean(dim=1))
        self.offsets.copy_(entries - self.centres[:, None])
        self.norms.copy_(self.offsets.square().sum(dim=2))

    def nearest(self, points: Tensor, level: int) -> Tensor:
        """Numbers of the nearest entries: [N, d] to [N] int64.

        argmin |x - c|^2 = argmin (|c|^2 - 2 x.c), as the norm of x is the same for every entry: one matrix product.
        x and c are taken relative to the mean entry, which changes no distance: |c|^2 and x.c are then small where
        entries lie close together but far from zero, and their difference keeps its digits. With codebooks fitted to an
        untrained encoder (a mean 100 times the spread) flips by rounding became 50 to 400 times rarer.
        """
        relative = points - self.centres[level]
        return torch.addmm(self.norms[level], relative, self.offsets[level].t(), alpha=-2.0).argmin(dim=1)

    @abstractmethod
    def search(self, residual: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Quantize what is left.

        Args:
            residual: [N, D] float32.
            level: which codebook.

        Returns:
            [N] int64 codes, and the vectors [N, D] that they stand for.
        """

    @abstractmethod
    def decode_level(self, codes: Tensor, level: int) -> Tensor:
        """Codes of one level [...] to the vectors [..., D] that they stand for."""

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """Nearest entry of each level to what is left.

        Args:
            latents: [B, D, T] float.
            num_codebooks: levels in use, 1 to K, already checked.

        Returns:
            [B, K, T] int64 codes.
        """
        batch_size, latent_dim, num_frames = latents.shape
        residual = latents.transpose(1, 2).reshape(batch_size * num_frames, latent_dim)  # [B * T, D]
        levels = []
        for level in range(num_codebooks):
            codes, vectors = self.search(residual, level)
            residual = residual - vectors
            levels.append(codes)
        return torch.stack(levels, dim=1).view(batch_size, num_frames, num_codebooks).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the vectors that the codes stand for.

        Args:
            codes: [B, K, T] int64 in [0, V), already checked.

        Returns:
            [B, D, T] latents.
        """
        latents = self.decode_level(codes[:, 0], 0)  # [B, T, D]
        for level in range(1, codes.shape[1]):
            latents = latents + self.decode_level(codes[:, level], level)
        return latents.transpose(1, 2)

    @abstractmethod
    def _compared(self) -> Tensor:
        """What latents are compared with: [K, V, d]."""


class ResidualQuantizer(Quantizer):
    """Codebooks in the latent space itself, nearest by Euclidean distance. Source: EnCodec, arXiv:2210.13438, 3.2."""

    def search(self, residual: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The nearest entries."""
        codes = self.nearest(residual, level)
        return codes, self.codebooks[level][codes]

    def decode_level(self, codes: Tensor, level: int) -> Tensor:
        """Entries by number."""
        return self.codebooks[level][codes]

    def _compared(self) -> Tensor:
        return self.codebooks


class FactorizedQuantizer(Quantizer):
    """Codebooks in a small space between two projections, nearest by angle. Source: DAC, arXiv:2306.06546, 3.2."""

    def __init__(self, num_codebooks: int, codebook_size: int, codebook_dim: int, latent_dim: int) -> None:
        super().__init__(num_codebooks, codebook_size, codebook_dim)
        self.in_weight = nn.Parameter(torch.randn(num_codebooks, codebook_dim, latent_dim) / latent_dim**0.5)
        self.in_bias = nn.Parameter(torch.zeros(num_codebooks, codebook_dim))
        self.out_weight = nn.Parameter(torch.randn(num_codebooks, latent_dim, codebook_dim) / codebook_dim**0.5)
        self.out_bias = nn.Parameter(torch.zeros(num_codebooks, latent_dim))

    def search(self, residual: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Project down, compare directions, project the entry itself up again."""
        projected = functional.linear(residual, self.in_weight[level], self.in_bias[level])
        codes = self.nearest(functional.normalize(projected), level)
        return codes, self.decode_level(codes, level)

    def decode_level(self, codes: Tensor, level: int) -> Tensor:
        """Entries by number, projected up to the latent space."""
        return functional.linear(self.codebooks[level][codes], self.out_weight[level], self.out_bias[level])

    def _compared(self) -> Tensor:
        return functional.normalize(self.codebooks, dim=2)


def _prepare_search(quantizer: Any, _: Any) -> None:
    quantizer.prepare_search()
