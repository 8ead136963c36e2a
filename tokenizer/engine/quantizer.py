"""The quantizer that the kernels run: distances to all entries of a level as one product, exact float32."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.engine.library import Kernels
from tokenizer.engine.row_threads import in_threads
from tokenizer.engine.structures import Result, SearchStruct
from tokenizer.quantizer import ResidualQuantizer

_PANEL = 64  # entries that the kernels read at once, at most
_MOST_BYTE = 127


class PackedOffsets(NamedTuple):
    """Offsets [K, V, D] as the kernels multiply them."""

    levels: list[Tensor]
    values: Tensor  # what they stand for
    scales: Tensor | None = None  # [K, V] of bytes
    starts: Tensor | None = None  # [K, V] int32 of their sums


class EngineQuantizer(ResidualQuantizer):
    """Another quantizer's codebooks, packed."""

    def __init__(self, plain: ResidualQuantizer, kernels: Kernels) -> None:
        with torch.device("meta"):  # the codebooks are there already
            super().__init__(*plain.codebooks.shape)
        self.codebooks, self.centres = plain.codebooks, plain.centres
        self._kernels = kernels
        missing = -plain.codebooks.shape[1] % _PANEL
        offsets = functional.pad(plain.offsets * -2.0, (0, 0, 0, missing))  # norm - 2 x.c is then a product alone
        packed = _packed(offsets, kernels)
        self._levels, self._scales, self._starts = packed.levels, packed.scales, packed.starts
        self._narrow = packed.values.dtype == torch.bfloat16
        self._pointers = (ctypes.c_void_p * len(offsets))(*(level.data_ptr() for level in self._levels))
        self._norms = functional.pad(plain.norms, (0, missing), value=torch.finfo(torch.float32).max)
        self._lengths = offsets.norm(dim=2)
        self._longest = self._lengths.amax(dim=1)
        rounding = (offsets.double() - packed.values.double()).norm(dim=2)
        self._roundings = (rounding / self._lengths.clamp_min(1e-30)).amax(dim=1).float()

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
                pitch=self._norms.shape[1],
                norms=self._norms.data_ptr(),
                lengths=self._lengths.data_ptr(),
                centres=self.centres.data_ptr(),
                codebooks=self.codebooks.data_ptr(),
                starts=_address(self._starts),
                entry_scales=_address(self._scales),
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


def _packed(offsets: Tensor, kernels: Kernels) -> PackedOffsets:
    width = offsets.shape[2]
    if kernels.has_bytes and width % 16 == 0:
        scales = (offsets.abs().amax(dim=2) / _MOST_BYTE).clamp_min(1e-30)
        values = (offsets / scales[..., None]).round().to(torch.int8)
        words = values.view(torch.float32)  # four of them in each
        levels = [kernels.pack(level, narrow=False) for level in words]
        starts = -128 * values.sum(dim=2, dtype=torch.int32)
        return PackedOffsets(levels, values.double() * scales.double()[..., None], scales, starts)
    narrow = kernels.has_bfloat and width % 2 == 0
    levels = [kernels.pack(level, narrow=narrow) for level in offsets]
    return PackedOffsets(levels, offsets.bfloat16() if narrow else offsets)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
