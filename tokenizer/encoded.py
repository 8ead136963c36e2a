"""What encoding gives: codes with what decoding needs beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import CodesError
from tokenizer.spec import CodecSpec

_PIECE_FRAMES = 2**14  # of a CodeBuffer: some minutes


@dataclass(frozen=True, slots=True)
class Encoded:
    """Codes of one waveform, or of several that are equally long."""

    codes: Tensor  # [B, K, T] int64 in [0, V)
    scales: Tensor | None  # [B, N] loudness of each segment; None for codecs that do not normalise
    num_samples: int  # at the codec's rate, before the last frame was filled with silence
    source_sample_rate: int | None = None  # Hz of what was encoded; None: the codec's
    source_num_samples: int | None = None  # at source_sample_rate

    def num_samples_at(self, sample_rate: int, spec: CodecSpec) -> int:
        """Samples of the decoded waveform at a sample rate: as long as what was encoded, to the sample."""
        if self.source_sample_rate is None or self.source_num_samples is None:
            return -(-self.num_samples * sample_rate // spec.sample_rate)
        return -(-self.source_num_samples * sample_rate // self.source_sample_rate)

    def num_codebooks_at(self, bandwidth_kbps: float | None, spec: CodecSpec) -> int:
        """Levels of the codes that make up a bandwidth; None asks for all that there are.

        Raises:
            CodesError: the codes have fewer levels.
            ValueError: the codec does not have the bandwidth.
        """
        have = self.codes.shape[1]
        if bandwidth_kbps is None:
            return have
        wanted = spec.num_codebooks_at(bandwidth_kbps)
        if wanted > have:
            raise CodesError(f"{bandwidth_kbps:g} kbps needs {wanted} levels, the codes have {have}")
        return wanted


class CodeBuffer:
    """Codes of a stream of unknown length, two bytes each in few large pieces.

    As int64, ten hours of them would be the largest thing in memory; as many small tensors, they would lie between the
    temporary ones of the networks and keep the allocator from using that memory again.
    """

    def __init__(self, codebook_size: int) -> None:
        self._dtype = torch.int16 if codebook_size <= 2**15 else torch.int32
        self._full: list[Tensor] = []
        self._open: Tensor | None = None  # [B, K, _PIECE_FRAMES]
        self._used = 0  # frames of it

    def append(self, codes: Tensor) -> None:
        """Codes [B, K, T] of the next frames."""
        while codes.shape[-1]:
            if self._open is None:
                self._open = torch.empty(*codes.shape[:-1], _PIECE_FRAMES, dtype=self._dtype, device=codes.device)
                self._used = 0
            fitting = codes[..., : _PIECE_FRAMES - self._used]
            self._open[..., self._used : self._used + fitting.shape[-1]] = fitting
            self._used += fitting.shape[-1]
            codes = codes[..., fitting.shape[-1] :]
            if self._used == _PIECE_FRAMES:
                self._full.append(self._open)
                self._open = None

    def gathered(self) -> Tensor:
        """All codes [B, K, T] as int64. Something must have been appended."""
        pieces = self._full if self._open is None else [*self._full, self._open[..., : self._used]]
        num_frames = sum(piece.shape[-1] for piece in pieces)
        codes = torch.empty(*pieces[0].shape[:-1], num_frames, dtype=torch.int64, device=pieces[0].device)
        start = 0
        for piece in pieces:
            codes[..., start : start + piece.shape[-1]] = piece
            start += piece.shape[-1]
        return codes
