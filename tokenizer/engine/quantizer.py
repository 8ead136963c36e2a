"""The quantizer that the kernels run: distances to all entries of a level as one product, exact float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.engine.integer_weights import integer_weights, part_lengths
from tokenizer.engine.library import Kernels
from tokenizer.engine.row_threads import in_threads
from tokenizer.engine.structures import Result, SearchStruct
from tokenizer.quantizer import ResidualQuantizer


class EngineQuantizer(ResidualQuantizer):
    """Another quantizer's codebooks, packed."""

    def __init__(self, plain: ResidualQuantizer, kernels: Kernels) -> None:
        with torch.device("meta"):  # the codebooks are there already
            super().__init__(*plain.codebooks.shape)
        self.codebooks, self.centres = plain.codebooks, plain.centres
        offsets = plain.offsets * -2.0  # norm - 2 x.c is then a product alone
        self._kernels = kernels
        self._packed, rounded, self._entry_scales = _packed(offsets, kernels)
        self._narrow = rounded.dtype == torch.bfloat16
        self._pointers = (ctypes.c_void_p * len(self._packed))(*(packed.data_ptr() for packed in self._packed))
        self._norms = _and_a_panel(plain.norms)
        self._longest = offsets.norm(dim=2).amax(dim=1)
        self._roundings = (offsets.double() - rounded.double()).norm(dim=2).amax(dim=1).float()

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """Nearest entry of each level to what is left: [B, D, T] to [B, K, T] int64."""
        batch_size, width, num_frames = latents.shape
        frames = latents.float().transpose(1, 2).reshape(-1, width).contiguous()
        codes = torch.empty(len(frames), num_codebooks, dtype=torch.int64)

        def part(begin: int, end: int) -> int:
            search = SearchStruct(
                packed=self._pointers,
                narrow=int(self._narrow),
                levels=num_codebooks,
                entries=self.codebooks.shape[1],
                width=width,
                norms=self._norms.data_ptr(),
                centres=self.centres.data_ptr(),
                codebooks=self.codebooks.data_ptr(),
                entry_scales=None if self._entry_scales is None else self._entry_scales.data_ptr(),
                longest=self._longest.data_ptr(),
                roundings=self._roundings.data_ptr(),
                frames=end - begin,
                latents=frames[begin:end].data_ptr(),
                codes=codes[begin:end].data_ptr(),
            )
            done: int = self._kernels.library.quantone_search(self._kernels.level, ctypes.byref(search))
            return done

        if Result.NO_MEMORY in in_threads(part, len(frames)):
            raise MemoryError("the engine found no memory for its buffers")
        return codes.view(batch_size, num_frames, num_codebooks).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the vectors that the codes stand for: [B, K, T] to [B, D, T]."""
        batch_size, num_codebooks, num_frames = codes.shape
        entries = self.codebooks.shape[1]
        levels = torch.arange(0, num_codebooks * entries, entries)[:, None]
        bags = (codes + levels).transpose(1, 2).reshape(-1, num_codebooks)
        latents = functional.embedding_bag(bags, self.codebooks.flatten(0, 1), mode="sum")
        return latents.view(batch_size, num_frames, self.codebooks.shape[2]).transpose(1, 2)


def _packed(offsets: Tensor, kernels: Kernels) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Offsets [K, V, D] level by level as the kernels multiply them, what they stand for, and scales of integers."""
    width = offsets.shape[2]
    if kernels.fast_numbers == "int16" and part_lengths([(width, width)]) == [width]:
        levels = [integer_weights(level, [width]) for level in offsets]
        packed = [kernels.pack(level.words.view(torch.float32), narrow=False) for level in levels]
        scales = torch.stack([level.scales for level in levels])
        values = torch.stack([level.words.view(torch.int16) for level in levels])
        return packed, values.double() * scales.double()[..., None], _and_a_panel(scales)
    narrow = kernels.has_bfloat and width % 2 == 0
    packed = [kernels.pack(level, narrow=narrow) for level in offsets]
    return packed, offsets.bfloat16() if narrow else offsets, None


def _and_a_panel(values: Tensor) -> Tensor:
    """[K, V] in a row, and zeros for the kernels to read where a last panel ends early."""
    return torch.cat([values.flatten(), torch.zeros(64)])
