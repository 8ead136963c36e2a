"""Requests a second of the service, beside an empty application in the same server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.benchmarking.bench_servers import LoadGenerator
from pipelines.benchmarking.load_connections import http_request
from pipelines.benchmarking.request_load import CallOutcome, ClosedLoad
from pipelines.serving.npy_codes import write_npy_codes
from tokenizer import CodecSpec, QuantoneError

_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpeed:
    """One kind of request at one number of callers."""

    server: str  # "uvicorn", "ray" or "ray with haproxy"
    request: str  # "empty", "ready" (no codec is used) or "decode"
    callers: int
    per_second: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and where."""

    address: tuple[str, int]
    request: bytes


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is decoded: random codes, which cost what others cost."""

    body: bytes
    num_bytes: int  # of the answer, as pcm

    @classmethod
    def of(cls, spec: CodecSpec, seconds: float) -> Utterance:
        """So long, with all levels of the codec."""
        frames = max(1, round(seconds * spec.frame_rate))
        codes = np.random.default_rng(0).integers(0, spec.codebook_size, (spec.num_codebooks, frames))
        return cls(write_npy_codes(codes), 2 * spec.channels * spec.hop_length * frames)

    def posted_to(self, path: str) -> bytes:
        """The request."""
        return http_request("POST", path, self.body, "application/x-npy")

    @property
    def decode_request(self) -> bytes:
        """The request to the service."""
        return self.posted_to("/v1/audio/decode?response_format=pcm")


def bench_requests(
    load: LoadGenerator, server: str, targets: Mapping[str, Target], callers: Sequence[int], seconds: float, rounds: int
) -> list[RequestSpeed]:
    """Measure all targets at every number of callers; they take turns.

    Args:
        load: makes it.
        server: what the rows call it.
        targets: by what the rows call them.
        callers: at once.
        seconds: of each turn.
        rounds: turns of each target.

    Raises:
        QuantoneError: a request was not answered with 200.
    """
    for target in targets.values():
        _answered(load, target, 1, _WARM_UP_S)
    speeds = []
    for count in callers:
        outcomes: dict[str, list[CallOutcome]] = {name: [] for name in targets}
        for turn in range(rounds):
            for name in list(targets)[:: 1 if turn % 2 == 0 else -1]:
                outcomes[name] += _answered(load, targets[name], count, seconds)
        for name, found in outcomes.items():
            p50, p99 = np.percentile([outcome.seconds for outcome in found], (50, 99))
            # Of callers who always wait for an answer, by Little's law: what one round takes longer at its end, while
            # the last answers come, does not count against anybody.
            per_second = count / float(np.mean([outcome.seconds for outcome in found]))
            speeds.append(
                RequestSpeed(
                    server=server,
                    request=name,
                    callers=count,
                    per_second=per_second,
                    p50_s=float(p50),
                    p99_s=float(p99),
                )
            )
    return speeds


def _answered(load: LoadGenerator, target: Target, callers: int, seconds: float) -> list[CallOutcome]:
    outcomes = load.run(ClosedLoad(address=target.address, request=target.request, callers=callers, seconds=seconds))
    wrong = [outcome.status for outcome in outcomes if outcome.status != 200]
    if wrong or not outcomes:
        raise QuantoneError(f"{len(wrong)} of {len(outcomes)} requests were answered {wrong[:1]} instead of 200")
    return outcomes
