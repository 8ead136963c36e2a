"""How much is measured in a run of all benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.benchmarking.bench_contest import Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSettings:
    """Defaults: a run of about 25 minutes on two quiet cores. Longer clips and more rounds make figures steadier."""

    codec: str = "speech_24khz"
    lm: str = "speech_24khz"
    codec_seconds: float = 10.0  # of audio in each row of a batch: with much less, others stay in their caches
    seconds: float = 4.0  # likewise, of streams of codes
    turns: Turns = field(default_factory=Turns)
    ceiling_s: float = 0.25  # for each size of each test
    lm_kbps: tuple[float, ...] = (3.0, 12.0)
    scan_codes: int = 100_000_000
    pipeline_minutes: float = 60.0  # what a run of the job takes beside its work is seconds
    generation_frames: int = 75
    serve_quick: bool = True

    @classmethod
    def quick(cls, codec: str = "speech_24khz", lm: str = "speech_24khz") -> SuiteSettings:
        """Everything for a moment only: whether it works."""
        return cls(
            codec=codec,
            lm=lm,
            codec_seconds=0.1,
            seconds=0.2,
            turns=Turns(rounds=1, patience_s=0.0),
            ceiling_s=0.01,
            lm_kbps=(3.0,),
            scan_codes=24_000,
            pipeline_minutes=0.1,
            generation_frames=4,
        )
