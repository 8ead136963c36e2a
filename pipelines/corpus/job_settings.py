"""The settings of a corpus job, and what is refused before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tokenizer.engine import PRECISIONS, Precision

# Measured with random codes, 16 levels of 1024: 10.17 bits a code in a part of an hour, 10.24 in half an hour, 10.48 in
# ten minutes. Lengths are estimated from bytes, and 48 kHz stereo has six times what the estimate takes for granted.
UNIT_SECONDS = 3600.0
BATCH_SECONDS = 120.0
FILE_TIMEOUT_S = 600.0
LEAST_SEGMENT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """How a corpus job works; the first five make the dataset what it is, the others do not show in it.

    Attributes:
        bandwidth_kbps: None for all that the codec has.
        precision: how the codec computes on CPUs, as in `Codec.with_precision`: "exact" and "plain" give the same codes
            (one dataset, but for near-ties), "fast" is faster and gives most of them. GPUs compute in float32.
        compress_with: name or directory of the language model that compresses the codes, one .qtn stream a row in place
            of one column a level; None leaves them as they are.
        max_segment_s: inputs that are longer are cut into rows of at most so many seconds, at silence where possible;
            None makes every input one row.
        quality: decode what was encoded, and store how close it is; decoding takes about as long as encoding.
        unit_seconds: of audio, about, in one part. An existing dataset keeps its plan.
        num_workers: encoding actors; None for one a core, or what the GPUs hold, also of a cluster that grows. Never
            more than leave readers room.
        gpus_per_worker: GPUs, or the share of one, that each takes; 0 encodes on CPUs.
        batch_seconds: of audio with padding in one pass of the codec.
        file_timeout_s: an input that takes longer to be read, or a batch to be encoded (beyond its own length), is
            given up.
        max_error_rate: share of the inputs that may fail; the job stops once it is certain that more do. None: all may.
        address: of the Ray cluster, as `ray.init` takes it; None for the one that RAY_ADDRESS names, or a local one.
    """

    bandwidth_kbps: float | None = None
    precision: Precision = "exact"
    compress_with: str | Path | None = None
    max_segment_s: float | None = None
    quality: bool = False
    unit_seconds: float = UNIT_SECONDS
    num_workers: int | None = None
    gpus_per_worker: float = 0.0
    batch_seconds: float = BATCH_SECONDS
    file_timeout_s: float = FILE_TIMEOUT_S
    max_error_rate: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Numbers that cannot be meant are refused: ValueError."""
        for name in ("unit_seconds", "batch_seconds", "file_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.precision == "fast" and self.gpus_per_worker:
            raise ValueError("precision 'fast' is for CPUs: on GPUs the codec computes in float32")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {self.num_workers}")
        if not (math.isfinite(self.gpus_per_worker) and self.gpus_per_worker >= 0):
            raise ValueError(f"gpus_per_worker must be 0 or more, not {self.gpus_per_worker}")
        if self.max_segment_s is not None and not LEAST_SEGMENT_S <= self.max_segment_s < math.inf:
            raise ValueError(f"max_segment_s must be at least {LEAST_SEGMENT_S:g}, not {self.max_segment_s}")
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"max_error_rate must lie in 0 to 1, not {self.max_error_rate}")
