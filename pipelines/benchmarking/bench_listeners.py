"""How well streams are served: how soon a first packet comes, and how many listeners one server holds in real time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.benchmarking.bench_servers import LoadGenerator
from pipelines.benchmarking.stream_load import FirstPacketLoad, RealTimeLoad, SpokenCodes
from tokenizer import CodecSpec, QuantoneError

_LATE_S = 0.02  # codes that leave later than this were the load generator's fault
_ATTEMPTS = 2  # at a number of streams: machines have other things to do at times
_NEAR_ENOUGH = 0.06  # of the number of streams, where the search ends


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPackets:
    """How soon somebody who begins to speak is heard."""

    streams: int  # at once, with the one that is timed
    chunk_frames: int
    count: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """So many listeners in real time."""

    streams: int
    underruns: int
    first_packet_p99_s: float
    late_s: float  # of the load generator: 99 % of its streams were at most so late with their codes


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeStreams:
    """How many listeners a server holds."""

    chunk_frames: int
    buffer_s: float  # that their players wait after the first packet
    held: int  # the most that were held without an underrun
    bound_by: str  # "service", "load generator" or "limit": why no more were
    trials: list[Trial]


def spoken_codes(address: tuple[str, int], spec: CodecSpec, chunk_frames: int) -> SpokenCodes:
    """Codes of all levels, for a server there."""
    return SpokenCodes(
        address=address,
        num_codebooks=spec.num_codebooks,
        codebook_size=spec.codebook_size,
        chunk_frames=chunk_frames,
        frame_rate=float(spec.frame_rate),
    )


def time_first_packets(load: LoadGenerator, codes: SpokenCodes, streams: int, count: int) -> FirstPackets:
    """Time the first packets of so many utterances, beside `streams` - 1 others in real time."""
    seconds = load.run(FirstPacketLoad(codes=codes, beside=streams - 1, count=count))
    p50, p99 = np.percentile(seconds, (50, 99))
    return FirstPackets(
        streams=streams, chunk_frames=codes.chunk_frames, count=count, p50_s=float(p50), p99_s=float(p99)
    )


def find_real_time_streams(
    load: LoadGenerator, codes: SpokenCodes, *, seconds: float, buffer_s: float, limit: int
) -> RealTimeStreams:
    """Search for the most streams without an underrun, by doubling and then halving the difference.

    Args:
        load: makes it.
        codes: what they say.
        seconds: of sound in each trial.
        buffer_s: that a player waits.
        limit: of streams.

    Raises:
        QuantoneError: a stream was refused, cut, or did not get all of its sound.
    """
    trials: list[Trial] = []

    def holds(streams: int) -> bool:
        for _ in range(_ATTEMPTS):
            trials.append(_trial(load, RealTimeLoad(codes=codes, streams=streams, seconds=seconds, buffer_s=buffer_s)))
            if trials[-1].underruns == 0:
                return True
        return False

    held = most_that(holds, limit)
    beyond = [trial for trial in trials if trial.streams > held]
    at_fault = "load generator" if any(trial.late_s > _LATE_S for trial in beyond) else "service"
    return RealTimeStreams(
        chunk_frames=codes.chunk_frames,
        buffer_s=buffer_s,
        held=held,
        bound_by=at_fault if beyond else "limit",
        trials=trials,
    )


def most_that(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to a limit that something holds for, to a few percent; 0 where it holds for none."""
    low, high = 0, 1
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > max(1, _NEAR_ENOUGH * low):
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _trial(load: LoadGenerator, listening: RealTimeLoad) -> Trial:
    outcomes = load.run(listening)
    broken = sum(not outcome.whole for outcome in outcomes)
    if broken:
        raise QuantoneError(f"{broken} of {len(outcomes)} streams did not get the sound of all their codes")
    return Trial(
        streams=listening.streams,
        underruns=sum(outcome.underruns for outcome in outcomes),
        first_packet_p99_s=float(np.percentile([outcome.first_packet_s for outcome in outcomes], 99)),
        late_s=float(np.percentile([outcome.late_s for outcome in outcomes], 99)),
    )
