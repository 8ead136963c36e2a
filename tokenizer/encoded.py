"""What encoding gives: codes with what decoding needs beside them."""

from __future__ import annotations

from dataclasses import dataclass

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
