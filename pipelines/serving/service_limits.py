"""Limits of every HTTP request: size and pace of its body, pace of its reader, and an end when its caller has gone.

Plain ASGI, between the server and the application:

    server ──receive──▶ counted, timed ──▶ application ──send──▶ timed ──▶ server
                              └── after the body: watched, and a caller who leaves cancels the work

It is also where a request is counted, because only here its end is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.decoding.decode_errors import DeadlineExceeded
from pipelines.serving.held_bytes import HeldBytes, HeldShare
from pipelines.serving.service_errors import BrokenAnswer, RequestError, bad_request, too_large
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings

MIN_BYTES_PER_S = 16 * 2**10  # a body that comes faster is never too slow
_CLOSING_S = 1.0  # for what is still under way when a connection ends
_GONE = 499  # the status of a request whose caller left, as proxies count it
_REASONS = {401: "token", 403: "origin", 408: "slow_body", 413: "too_large"}  # by status, for the metrics

_log = logging.getLogger(__name__)


@dataclass
class Exchange:
    """One request and its answer, as the routes and the metrics see it: `request.state.exchange`."""

    started: float  # time.monotonic()
    held: HeldShare  # memory that it takes
    at_end: AsyncExitStack  # closed when the answer has ended, whichever way
    codec: str = ""  # once it is known
    audio_seconds: float = 0.0  # decoded or encoded

    def left_s(self, deadline_s: float | None) -> float | None:
        """What is left of a deadline that counts from the start of the request.

        Raises:
            DeadlineExceeded: nothing.
        """
        if deadline_s is None:
            return None
        left_s = deadline_s - (time.monotonic() - self.started)
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline of {deadline_s:g} s passed while the request was read")
        return left_s


class RequestLimits:
    """The layer itself."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: ServiceMetrics, held: HeldBytes) -> None:
        self._app, self._settings, self._metrics, self._held = app, settings, metrics, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, within its limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._held.share() as held:
            exchange = Exchange(time.monotonic(), held, AsyncExitStack())
            scope.setdefault("state", {})["exchange"] = exchange
            watched = _WatchedRequest(scope, receive, send, self._settings)
            try:
                async with exchange.at_end:
                    await watched.run(self._app)
            finally:
                self._count(scope, exchange, watched.status)

    def _count(self, scope: Scope, exchange: Exchange, status: int) -> None:
        route = getattr(scope.get("route"), "path", "")  # as declared: addresses that do not exist make no series
        seconds = time.monotonic() - exchange.started
        self._metrics.answered(exchange.codec, route, status, seconds, exchange.audio_seconds)
        reason = "memory" if exchange.held.refused else _REASONS.get(status)
        if reason is not None:
            self._metrics.rejected(exchange.codec, reason)


class _WatchedRequest:
    """One request between the server and the application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: ServiceSettings) -> None:
        self.status = _GONE
        self._scope, self._receive, self._send, self._settings = scope, receive, send, settings
        self._exchange: Exchange = scope["state"]["exchange"]
        headers = dict(scope["headers"])
        self._declared = headers.get(b"content-length", b"0")
        self._has_body = self._declared != b"0" or b"transfer-encoding" in headers
        self._counted = 0  # bytes of the body
        self._read_all = self._answered = self._unread = self._cutting = False
        self._gone = asyncio.Event()
        self._work: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp) -> None:
        """Answer the request; nothing of it runs on when this returns."""
        self._work = asyncio.current_task()
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._gone.is_set() or self._work is None:
                raise
            self._work.uncancel()
            self.status = _GONE
        except ClientDisconnect:  # while its body was read
            self.status = _GONE
        except BrokenAnswer as error:
            _log.warning("answer cut: %s", error)
            self.status = _GONE if self._unread else 500
            await self._cut()
        except Exception:
            self.status = 500  # the layer around this one says so
            raise
        finally:
            if self._watcher is not None:
                self._watcher.cancel()

    async def receive(self) -> Message:
        """The next part of the body, or in the end that the caller has gone."""
        if self._read_all:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        if self._counted == 0:
            self._check_declared()
        message = await self._receive_in_time()
        if message["type"] == "http.disconnect":
            self._read_all = True
            self._gone.set()
            return message
        body = message.get("body", b"")
        self._counted += len(body)
        self._check_size(self._counted)
        self._exchange.held.add(len(body))
        if not message.get("more_body", False):
            self._read_all = True
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer; a caller who does not read it is cut off."""
        more_comes = self._has_body and not self._read_all
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if more_comes:  # what is left of the body would be taken for the next request, or be read without an end
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif not message.get("more_body", False):
            self._answered = True
            if more_comes:
                await self._send_in_time({**message, "more_body": True})
                await self._discard_body()
                message = {"type": "http.response.body", "body": b""}
        await self._send_in_time(message)

    def _check_declared(self) -> None:
        if not self._declared.isdigit() or len(self._declared) > 18:
            raise bad_request(f"Content-Length {self._declared[:40]!r} is not a number of bytes")
        self._check_size(int(self._declared))

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_body_bytes:
            raise too_large(f"the body has {size} bytes or more, at most {self._settings.max_body_bytes} are read")

    async def _receive_in_time(self) -> Message:
        allowed_s = self._settings.read_timeout_s + self._counted / MIN_BYTES_PER_S
        try:
            async with asyncio.timeout(allowed_s - (time.monotonic() - self._exchange.started)):
                return await self._receive()
        except TimeoutError as error:
            text = f"the body came too slowly: {self._counted} bytes in {allowed_s:.1f} s"
            raise RequestError(text, status=408, kind="request_timeout") from error

    async def _send_in_time(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._settings.write_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            self._unread = True
            raise BrokenAnswer(f"its reader took nothing for {self._settings.write_timeout_s:g} s") from error

    async def _discard_body(self) -> None:
        """Read on for a moment: closing on bytes that still come would reset the connection, and lose the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                while (await self._receive()).get("more_body", False):
                    pass

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if self._work is not None and not self._answered and not self._cutting:
            self._work.cancel()

    async def _cut(self) -> None:
        """Drop the connection at once.

        Closing would wait until the reader has taken what the server holds for it, which a stuck one never does, and
        ASGI has no word for anything else: so the transport of uvicorn is asked for. Other servers see the error.
        """
        self._cutting = True
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        if transport is None:
            raise BrokenAnswer("the answer ends before its end")
        transport.abort()
        with contextlib.suppress(TimeoutError):  # until the server knows: it would log an answer without an end
            async with asyncio.timeout(_CLOSING_S):
                await self._gone.wait()
