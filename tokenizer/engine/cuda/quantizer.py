"""The code search on a GPU: products on tensor cores find nearly all codes, float32 decides about the rest.

A float32 is the sum of two bfloat16 to one part in 2^16. Of x.c the three larger partial products are summed, which is
one product three times as deep. That is wrong by less than a bound from the norms of x and c (Cauchy and Schwarz):
what lies within twice the bound of the best is a shortlist. The best two are compared again in float32; frames with
more of them are searched again as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.engine.cuda.device import exact_product, on_device
from tokenizer.engine.cuda.graph_cache import GraphCache, Result
from tokenizer.quantizer import ResidualQuantizer

BLOCK_FRAMES = 8192  # whose distances to 1,024 entries are 32 MiB: the cache of a large card holds them
GRAPH_FRAMES = 1024  # fewer are a stream's: the float32 search as one graph, without a look at what came out
_SHORTLIST = 2
_SPLIT, _SUM = 2.0**-16, 3 * 2.0**-22
"""Of |x| |c| that a product is wrong by at most, and for each dimension: splits leave 2^-18 of x and of c out, and the
product of the small parts as much. Three sums a dimension in float32 are wrong by 2^-23 each on tensor cores, which
cut digits off. The rest is for what the float32 search itself is wrong by."""


class CudaQuantizer(ResidualQuantizer):
    """Another quantizer's codebooks, split into bfloat16."""

    def __init__(self, plain: ResidualQuantizer, graphs: GraphCache) -> None:
        with torch.device("meta"):  # the codebooks are there already
            super().__init__(*plain.codebooks.shape)
        self.codebooks, self.centres, self.norms = plain.codebooks, plain.centres, plain.norms
        self.offsets = plain.offsets
        self._plain, self._graphs = plain, graphs
        upper, lower = _split(plain.offsets * -2.0)  # norm - 2 x.c is then a sum of products alone
        self.register_buffer("_columns", torch.cat([upper, lower, upper], dim=2), persistent=False)  # [K, V, 3 * D]
        self._longest = 2.0 * plain.offsets.norm(dim=2).amax(dim=1)  # [K]
        self._largest = plain.norms.amax(dim=1)  # [K]

    _columns: Tensor

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """The codes of the plain quantizer: [B, D, T] to [B, K, T] int64."""
        batch_size, width, num_frames = latents.shape
        frames = latents.float().transpose(1, 2).reshape(-1, width)  # [N, D]
        with on_device(latents.device):
            codes = (
                self._few(frames, num_codebooks) if len(frames) <= GRAPH_FRAMES else self._many(frames, num_codebooks)
            )
        return codes.view(batch_size, num_frames, num_codebooks).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the codebook vectors in one operation: [B, K, T] to [B, D, T]."""
        batch_size, num_codebooks, num_frames = codes.shape
        entries = self.codebooks.shape[1]
        levels = torch.arange(0, num_codebooks * entries, entries, device=codes.device)[:, None]
        bags = (codes + levels).transpose(1, 2).reshape(-1, num_codebooks)
        latents = functional.embedding_bag(bags, self.codebooks.flatten(0, 1), mode="sum")
        return latents.view(batch_size, num_frames, self.codebooks.shape[2]).transpose(1, 2)

    def _few(self, frames: Tensor, num_codebooks: int) -> Tensor:
        if len(frames) == 0:
            return torch.zeros(0, num_codebooks, dtype=torch.int64, device=frames.device)

        def run(inputs: Sequence[Tensor]) -> Result:
            return [self._exact(inputs[0], num_codebooks)], None

        return self._graphs.run(("search", num_codebooks), run, [frames])[0][0]

    def _many(self, frames: Tensor, num_codebooks: int) -> Tensor:
        parts = [self._probable(block, num_codebooks) for block in _blocks(frames)]
        codes, unsure = (torch.cat(part) for part in zip(*parts, strict=True))
        (again,) = torch.nonzero(unsure, as_tuple=True)  # the only time that the device is waited for
        for rows in _blocks(again):
            codes[rows] = self._exact(frames[rows], num_codebooks)
        return codes

    def _exact(self, frames: Tensor, num_codebooks: int) -> Tensor:
        """[N, D] to [N, K], all in float32."""
        return self._plain.encode(frames.t()[None], num_codebooks)[0].t()

    def _probable(self, frames: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        """[N, D] to codes [N, K], and whether at some level a third entry may be as near, [N]."""
        residual, codes, unsure = frames, [], torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
        rounding = _SPLIT + _SUM * frames.shape[1]
        for level in range(num_codebooks):
            relative = residual - self.centres[level]
            upper, lower = _split(relative)
            rows = torch.cat([upper, upper, lower], dim=1)  # upper.upper + upper.lower + lower.upper
            distances = exact_product(rows, self._columns[level].t())
            distances += self.norms[level]
            best, first = distances.min(dim=1, keepdim=True)
            bound = rounding * (relative.norm(dim=1) * self._longest[level] + self._largest[level])
            near = (distances <= best + 2.0 * bound[:, None]).sum(dim=1)
            unsure |= (near == 0) | (near > _SHORTLIST)  # none are near where x is no number
            second = distances.scatter_(1, first, torch.inf).argmin(dim=1, keepdim=True)
            nearest = self._nearer(relative, torch.cat([first, second], dim=1), level)
            codes.append(nearest)
            residual = residual - self.codebooks[level][nearest]
        return torch.stack(codes, dim=1), unsure

    def _nearer(self, relative: Tensor, entries: Tensor, level: int) -> Tensor:
        """Of two entries [N, 2] of a level, the nearer one by float32; the first in the codebook of equal ones."""
        entries = entries.sort(dim=1).values
        products = (self.offsets[level][entries] * relative[:, None]).sum(dim=2)
        closer = (self.norms[level][entries] - 2.0 * products).argmin(dim=1, keepdim=True)
        return entries.gather(1, closer)[:, 0]


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 as the sum of two bfloat16."""
    upper = x.bfloat16()
    return upper, (x - upper).bfloat16()


def _blocks(x: Tensor) -> Sequence[Tensor]:
    return torch.split(x, BLOCK_FRAMES)
