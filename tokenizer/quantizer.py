"""Residual vector quantization: latents to codes and back, level by level.

Source: SoundStream, algorithm 1, arXiv:2107.03312.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualQuantizer(nn.Module):
    """K codebooks in a fixed order; each quantizes what the levels before it left over."""

    codebooks: Tensor  # [K, V, D]

    def __init__(self, num_codebooks: int, codebook_size: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, latent_dim))

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """Nearest entry of each level to what is left. Levels past `num_codebooks` are never computed.

        Args:
            latents: [B, D, T] float.
            num_codebooks: levels in use, 1 to K, already checked.

        Returns:
            [B, K, T] int64 codes.
        """
        batch_size, latent_dim, num_frames = latents.shape
        residual = latents.transpose(1, 2).reshape(batch_size * num_frames, latent_dim)  # [B * T, D]
        levels = []
        for codebook in self.codebooks[:num_codebooks].unbind(0):
            # argmin |x - c|^2 = argmin (|c|^2 - 2 x.c): the norm of x is the same for every entry
            distances = torch.addmm(codebook.square().sum(dim=1), residual, codebook.t(), alpha=-2.0)  # [B * T, V]
            codes = distances.argmin(dim=1)
            residual = residual - codebook[codes]
            levels.append(codes)
        return torch.stack(levels, dim=1).view(batch_size, num_frames, num_codebooks).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the entries that the codes name.

        Args:
            codes: [B, K, T] int64 in [0, V), already checked.

        Returns:
            [B, D, T] latents.
        """
        latents = self.codebooks[0][codes[:, 0]]  # [B, T, D]
        for level in range(1, codes.shape[1]):
            latents = latents + self.codebooks[level][codes[:, level]]
        return latents.transpose(1, 2)
