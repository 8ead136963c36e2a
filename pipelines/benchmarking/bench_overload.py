"""What the service still does when far more is asked of it than it can do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pipelines.benchmarking.bench_servers import LoadGenerator, ServerProcess
from pipelines.benchmarking.request_load import CallOutcome, ClosedLoad, OpenLoad
from tokenizer import QuantoneError

_MEMORY = "process_resident_memory_bytes"
_LOOK_EVERY_S = 1.0
_SETTLE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Requests at several times the capacity, beside as many callers as the service has places for."""

    callers: int  # at the peak: every place is taken, and nobody is refused
    peak_per_second: float
    peak_p50_s: float
    peak_p99_s: float
    asked_per_second: float  # in the overload
    seconds: float
    goodput: float  # answers with 200 a second
    accepted_p50_s: float
    accepted_p99_s: float
    refused: int  # answered 429
    refused_p50_s: float
    refused_p99_s: float
    refused_max_s: float
    without_retry_after: int  # refusals that do not say when to come again
    other_answers: dict[int, int]  # neither 200 nor 429, by status; 0 for none at all
    memory: list[int]  # bytes resident, second by second; the first is before
    memory_after: int

    @property
    def goodput_ratio(self) -> float:
        """Of the peak."""
        return self.goodput / self.peak_per_second

    @property
    def latency_ratio(self) -> float:
        """99 % of the accepted, beside those at the peak."""
        return self.accepted_p99_s / self.peak_p99_s

    @property
    def memory_growth(self) -> float:
        """From the second quarter of the time to the last: what is still growing then grows for ever."""
        quarter = max(1, len(self.memory) // 4)
        early, late = self.memory[quarter : 2 * quarter] or self.memory, self.memory[-quarter:]
        return float(np.mean(late) / np.mean(early)) - 1.0


def bench_overload(
    load: LoadGenerator,
    server: ServerProcess,
    request: bytes,
    *,
    places: int,
    peak_s: float,
    seconds: float,
    times: float = 3.0,
) -> Overload:
    """Measure the peak, then ask for several times as much.

    Args:
        load: makes it.
        server: the service.
        request: what is asked.
        places: that it has for such requests, waiting ones included.
        peak_s: of load with that many callers.
        seconds: of overload.
        times: the peak.

    Raises:
        QuantoneError: requests fail already at the peak.
    """
    peak = load.run(ClosedLoad(address=server.address, request=request, callers=places, seconds=peak_s))
    if any(outcome.status != 200 for outcome in peak):
        raise QuantoneError(f"{places} callers at once, for whom there is room, did not all get an answer")
    # The first second fills the queue, and after the last one nobody asks any more: neither is the peak.
    peak_rate = sum(1.0 <= outcome.at + outcome.seconds < peak_s for outcome in peak) / (peak_s - 1.0)
    with _watched_memory(server) as memory:
        asked = load.run(
            OpenLoad(address=server.address, request=request, per_second=times * peak_rate, seconds=seconds)
        )
    time.sleep(_SETTLE_S)
    return _summary(places, peak, peak_rate, asked, seconds, (memory, round(server.metric(_MEMORY))))


def _summary(
    callers: int,
    peak: Sequence[CallOutcome],
    peak_rate: float,
    asked: Sequence[CallOutcome],
    seconds: float,
    memory: tuple[list[int], int],
) -> Overload:
    accepted = [outcome for outcome in asked if outcome.status == 200]
    refused = [outcome for outcome in asked if outcome.status == 429]
    others = [outcome.status for outcome in asked if outcome.status not in (200, 429)]
    if not accepted or not refused:
        raise QuantoneError(f"no overload: {len(accepted)} of {len(asked)} accepted, {len(refused)} refused")
    # The peak is without its first second: the queue was still filling.
    peak_p50, peak_p99 = np.percentile([outcome.seconds for outcome in peak if outcome.at >= 1.0], (50, 99))
    accepted_p50, accepted_p99 = np.percentile([outcome.seconds for outcome in accepted], (50, 99))
    refused_p50, refused_p99, refused_max = np.percentile([outcome.seconds for outcome in refused], (50, 99, 100))
    return Overload(
        callers=callers,
        peak_per_second=peak_rate,
        peak_p50_s=float(peak_p50),
        peak_p99_s=float(peak_p99),
        asked_per_second=len(asked) / seconds,
        seconds=seconds,
        goodput=sum(outcome.at + outcome.seconds < seconds for outcome in accepted) / seconds,
        accepted_p50_s=float(accepted_p50),
        accepted_p99_s=float(accepted_p99),
        refused=len(refused),
        refused_p50_s=float(refused_p50),
        refused_p99_s=float(refused_p99),
        refused_max_s=float(refused_max),
        without_retry_after=sum(not outcome.has_retry_after for outcome in refused),
        other_answers={status: others.count(status) for status in sorted(set(others))},
        memory=memory[0],
        memory_after=memory[1],
    )


@contextmanager
def _watched_memory(server: ServerProcess) -> Iterator[list[int]]:
    """Memory of a server while the block runs."""
    seen, over = [round(server.metric(_MEMORY))], threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY_S):
            with contextlib.suppress(OSError):  # a service that does not even say how it is shows that elsewhere
                seen.append(round(server.metric(_MEMORY)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
