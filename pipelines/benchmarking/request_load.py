"""Load over HTTP: callers who wait for their answers, and callers who come whether anybody answers or not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.benchmarking.load_connections import HttpConnection

FAILED = 0  # the status of a request that got no answer
_LAST_ANSWERS_S = 30.0


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """One request."""

    at: float  # seconds from the start of the load, when it was due
    seconds: float  # from then to the end of its answer
    status: int
    num_bytes: int
    has_retry_after: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoad:
    """So many callers, each of whom asks again when it has its answer.

    Args:
        address: host and port.
        request: all bytes of it.
        callers: at once.
        seconds: after which nobody asks again.
    """

    address: tuple[str, int]
    request: bytes
    callers: int
    seconds: float

    def run(self) -> list[CallOutcome]:
        """All outcomes, in no order."""
        return asyncio.run(self._run())

    async def _run(self) -> list[CallOutcome]:
        connections = [await HttpConnection.open(self.address) for _ in range(self.callers)]
        outcomes: list[CallOutcome] = []
        began = time.monotonic()

        async def keep_asking(connection: HttpConnection) -> None:
            while (at := time.monotonic() - began) < self.seconds:
                outcomes.append(await _outcome(connection, self.request, began, at))
                if outcomes[-1].status == FAILED:
                    return

        await asyncio.gather(*map(keep_asking, connections))
        for connection in connections:
            connection.close()
        return outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """Requests that come at a rate, at random moments, however many are unanswered.

    Args:
        address: host and port.
        request: all bytes of it.
        per_second: rate.
        seconds: for how long they come; answers are waited for.
        seed: of the moments.
    """

    address: tuple[str, int]
    request: bytes
    per_second: float
    seconds: float
    seed: int = 0

    def run(self) -> list[CallOutcome]:
        """All outcomes, in no order. Times count from when a request was due: a caller that is late hides nothing."""
        return asyncio.run(self._run())

    async def _run(self) -> list[CallOutcome]:
        idle: list[HttpConnection] = []
        outcomes: list[CallOutcome] = []
        began = time.monotonic()

        async def ask(at: float) -> None:
            try:
                connection = _idle_one(idle) or await HttpConnection.open(self.address)
            except OSError:
                outcomes.append(_no_answer(began, at))
                return
            outcomes.append(await _outcome(connection, self.request, began, at))
            idle.append(connection)

        asked = []
        for at in _moments(self.per_second, self.seconds, self.seed):
            await asyncio.sleep(began + at - time.monotonic())
            asked.append(asyncio.create_task(ask(at)))
        if asked:
            _, unanswered = await asyncio.wait(asked, timeout=_LAST_ANSWERS_S)
            for task in unanswered:
                task.cancel()
            outcomes += [_no_answer(began, self.seconds) for _ in unanswered]
        for connection in idle:
            connection.close()
        return outcomes


def _moments(per_second: float, seconds: float, seed: int) -> Sequence[float]:
    """Of a Poisson process."""
    source, at, moments = random.Random(seed), 0.0, []  # noqa: S311 - no secret
    while (at := at + source.expovariate(per_second)) < seconds:
        moments.append(at)
    return moments


def _idle_one(idle: list[HttpConnection]) -> HttpConnection | None:
    while idle:
        if (connection := idle.pop()).is_open:  # servers end those that are idle for seconds
            return connection
    return None


async def _outcome(connection: HttpConnection, request: bytes, began: float, at: float) -> CallOutcome:
    try:
        answer = await connection.ask(request)
    except ConnectionError:
        return _no_answer(began, at)
    seconds = time.monotonic() - began - at
    return CallOutcome(at, seconds, answer.status, answer.num_bytes, answer.has_retry_after)


def _no_answer(began: float, at: float) -> CallOutcome:
    return CallOutcome(at, time.monotonic() - began - at, FAILED, 0, has_retry_after=False)
