"""What encoding gives: codes with what decoding needs beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import CodesError
from tokenizer.spec import CodecSpec


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
    """Codes of a stream of unknown length, at rest: two bytes each, not eight, which counts in ten hours of them."""

    def __init__(self, codebook_size: int) -> None:
        self._dtype = torch.int16 if codebook_size <= 2**15 else torch.int32
        self._pieces: list[Tensor] = []

    def append(self, codes: Tensor) -> None:
        """Codes [B, K, T] of the next frames."""
        if codes.shape[-1]:
            self._pieces.append(codes.to(self._dtype))

    def gathered(self) -> Tensor:
        """All codes [B, K, T] as int64. Something must have been appended."""
        first = self._pieces[0]
        num_frames = sum(piece.shape[-1] for piece in self._pieces)
        codes = torch.empty(*first.shape[:-1], num_frames, dtype=torch.int64, device=first.device)
        start = 0
        for piece in self._pieces:
            codes[..., start : start + piece.shape[-1]] = piece
            start += piece.shape[-1]
        return codes
