"""AsyncClientStream: a stream of the service as its client sees it; lost connections are taken up again behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from pipelines.clients.client_errors import RequestRefused, ServiceUnreachable, service_error
from pipelines.clients.retry_policy import RetryPolicy
from pipelines.clients.stream_progress import Samples, ServerSays, StreamProgress
from pipelines.decoding.decode_errors import StreamClosed
from pipelines.serving.first_of import first_of
from pipelines.serving.stream_protocol import StreamStart, StreamStarted
from tokenizer.errors import QuantoneError

_AHEAD_S = 30.0  # of codes that wait for a connection; then `push` waits
_MAX_MESSAGE_BYTES = 2**24
_CLOSING_S = 1.0
_NOT_KEPT = {"resume_failed", "draining", "idle", "unavailable", "internal_error"}  # by the server, after such an error
_WORTH_RETRYING = {"overloaded", "slow_reader", *_NOT_KEPT}


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """Where a stream goes, and how patiently."""

    url: str  # ws:// or wss://
    headers: dict[str, str]
    timeout_s: float  # for a connection, for the first answer, and for sound that is due
    policy: RetryPolicy


class AsyncClientStream:
    """Codes in, sound out, utterance by utterance; made by `AsyncDecodeClient.stream`.

    Push and read in two tasks, or one after the other: what comes is kept until it is read. Iterating gives the samples
    [C, n] of one utterance as they come, float32 or int16, and stops at its end; iterate again for the next one. An
    utterance without `finish` has no end.

    Where a connection is lost the stream is resumed, to the sample. Where the server has lost it too, a new stream on
    whatever server answers makes the sound again from the utterance's codes, and what is known of it is left out.

    Args:
        start: the codec and its levels.
        address: where to.
    """

    def __init__(self, start: StreamStart, address: StreamAddress) -> None:
        self._address = address
        self._progress = StreamProgress(start)
        self._changed = asyncio.Condition()
        self._failure: QuantoneError | None = None
        self._failures = 0  # connections since the stream last moved
        self._closed = False
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> StreamStarted:
        """What the server said: sample rate, channels, levels.

        Raises:
            StreamClosed: before the stream was entered.
        """
        if self._progress.started is None:
            raise StreamClosed("the stream has not begun: enter it with `async with client.stream() as stream`")
        return self._progress.started

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        async with self._changed:
            await self._changed.wait_for(lambda: self._progress.started is not None or self._over)
        if self._failure is not None:
            await self.close()
            raise self._failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def push(self, codes: NDArray[np.integer[Any]]) -> None:
        """Hand in codes; waits while very many wait for a connection.

        Args:
            codes: [K, T] of any integer type; T may be 0.

        Raises:
            CodesError: not integers [K, T], or a code out of range.
            StreamCut: the stream was lost for good.
            StreamClosed: the stream is closed.
        """
        ahead = round(_AHEAD_S * self.started.frame_rate)
        async with self._changed:
            await self._changed.wait_for(lambda: self._over or self._progress.unsent_frames < ahead)
            self._check_open()
            self._progress.push(codes)
            self._changed.notify_all()

    async def finish(self) -> None:
        """The utterance is whole: the server sends the rest of its sound, and the next one begins."""
        async with self._changed:
            self._check_open()
            self._progress.finish()
            self._heard_at = time.monotonic()
            self._changed.notify_all()

    async def reset(self) -> None:
        """Drop all that was pushed and all sound that was not read, as where a listener interrupts."""
        async with self._changed:
            self._check_open()
            self._progress.reset()
            self._changed.notify_all()

    async def close(self) -> None:
        """Leave; the server frees the slot. A second call does nothing."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Samples:
        sound = self._progress.sound
        async with self._changed:
            await self._changed.wait_for(lambda: self._over or len(sound) > 0)
            if not sound:
                self._check_open()
            samples = sound.popleft()
        if samples is None:
            raise StopAsyncIteration
        return samples

    @property
    def _over(self) -> bool:
        return self._failure is not None or self._closed

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._over or self._task is None:
            raise StreamClosed("the stream is closed")

    async def _run(self) -> None:
        """Connections one after another, for as long as there is anything to do."""
        progress = self._progress
        try:
            while True:
                pause_s = await self._connection()
                if pause_s < math.inf:
                    await asyncio.sleep(pause_s)
                    continue
                async with self._changed:
                    await self._changed.wait_for(lambda: progress.unsent_frames > 0 or progress.owed)
        except QuantoneError as error:
            async with self._changed:
                self._failure = error
                self._changed.notify_all()

    async def _connection(self) -> float:
        """One connection to its end; seconds until the next one, inf where new codes are to come first."""
        try:
            async with connect(
                self._address.url,
                additional_headers=self._address.headers,
                compression=None,  # sound and codes do not get smaller
                open_timeout=self._address.timeout_s,
                close_timeout=_CLOSING_S,
                max_size=_MAX_MESSAGE_BYTES,
            ) as websocket:
                await self._begin(websocket)
                await first_of(self._receive(websocket), self._send(websocket), self._watch())
        except ServerSays as said:
            return self._after_refusal(said)
        except InvalidStatus as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise _denied(self._address.url, status, error.response.body) from error
            return self._after_cut(f"HTTP status {status}", error, _retry_after(error))
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
            return self._after_cut(str(error) or type(error).__name__, error)
        return 0.0

    def _after_refusal(self, said: ServerSays) -> float:
        if said.kind not in _WORTH_RETRYING:
            raise service_error(said.kind, str(said))
        was_resumable = self._progress.resumable
        if said.kind in _NOT_KEPT:
            self._progress.resumable = False
        if said.kind == "resume_failed" and was_resumable:
            return 0.0
        if said.kind == "idle":  # codes may have left just before it came
            return math.inf if self._progress.has_arrived(said.received) else 0.0
        return self._after_cut(str(said), service_error(said.kind, str(said)), said.retry_after_s)

    def _after_cut(self, why: str, cause: Exception, retry_after_s: float | None = None) -> float:
        if self._progress.started is not None and self._progress.empty:
            self._failures, self._progress.resumable = 0, False
            return math.inf
        self._failures += 1
        pause_s = self._address.policy.pause_s(self._failures, retry_after_s)
        if pause_s is not None:
            return pause_s
        if self._progress.started is not None:
            raise self._progress.cut(why) from cause
        if isinstance(cause, QuantoneError):
            raise cause
        raise ServiceUnreachable(f"{self._address.url}: {why}") from cause

    async def _begin(self, websocket: ClientConnection) -> None:
        first = self._progress.first_message().to_json()
        with contextlib.suppress(ConnectionClosed):  # why it was closed is heard below
            await websocket.send(first)
        async with asyncio.timeout(self._address.timeout_s):
            answer = await websocket.recv()
        async with self._changed:
            self._progress.take_up(answer)
            self._heard_at = time.monotonic()
            self._changed.notify_all()

    async def _send(self, websocket: ClientConnection) -> None:
        while True:
            async with self._changed:
                while (message := self._progress.next_message()) is None:
                    await self._changed.wait()
                self._changed.notify_all()
            try:
                await websocket.send(message)
            except ConnectionClosed:
                await asyncio.Future()  # the receiver hears why

    async def _receive(self, websocket: ClientConnection) -> None:
        while True:
            message = await websocket.recv()
            async with self._changed:
                if self._progress.receive(message):
                    self._failures = 0
                    self._heard_at = time.monotonic()
                self._changed.notify_all()

    async def _watch(self) -> None:
        """A server that owes sound and is silent is as good as lost."""
        limit = self._address.timeout_s
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._progress.owed and time.monotonic() - self._heard_at > limit:
                raise TimeoutError(f"no sound came for {limit:g} s")


def _denied(url: str, status: int, body: bytes | bytearray | None) -> QuantoneError:
    """The error for a handshake that was answered, and refused."""
    try:
        error = json.loads(body or b"")["error"]
        return service_error(str(error["type"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return RequestRefused(f"{url} takes no streams: HTTP status {status}", kind="not_found")


def _retry_after(error: InvalidStatus) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
