"""Connections of a load generator: HTTP and WebSocket, written for little cost a message and not for the public web.

A caller that needs as much of a machine as the service would be measured instead of it: httpx and websockets do. These
speak only what the service says: answers with a Content-Length, and messages in one piece.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

from pipelines.serving.stream_protocol import PATH
from tokenizer import QuantoneError

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_MASKED = 0x80  # clients must mask; zeros are a mask that leaves everything as it is
_NO_MASK = b"\0\0\0\0"
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a caller notes of an answer."""

    status: int
    num_bytes: int  # of the body
    has_retry_after: bool


class HttpConnection(asyncio.Protocol):
    """One connection that is kept; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._received = bytearray()
        self._whole = 0  # bytes of head and body; 0 until the head is there

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        """Connect.

        Raises:
            OSError: nobody listens there.
        """
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    async def ask(self, request: bytes) -> HttpAnswer:
        """Send a request, as `http_request` makes it, and wait for all of its answer.

        Raises:
            ConnectionError: the connection ended before the answer did.
        """
        if self._transport is None:
            raise ConnectionError("the connection has ended")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    @property
    def is_open(self) -> bool:
        """Whether it can be asked again."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Leave, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # asyncio makes no other for a Protocol

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._received += data
        if not self._whole and (end := self._received.find(b"\r\n\r\n")) >= 0:
            self._whole = end + 4 + _content_length(bytes(self._received[:end]))
        if self._whole and len(self._received) >= self._whole and self._answer is not None:
            answer, self._answer = self._answer, None
            if not answer.done():
                answer.set_result(_answer_of(bytes(self._received[: self._whole])))
            del self._received[: self._whole]
            self._whole = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the connection ended before the answer: {exc or 'closed'}"))


def http_request(method: str, path: str, body: bytes = b"", content_type: str = "application/octet-stream") -> bytes:
    """All bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _content_length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if found is None:
        raise QuantoneError(f"an answer without Content-Length: {head[:60]!r}")
    return int(found[1])


def _answer_of(message: bytes) -> HttpAnswer:
    head, _, body = message.partition(b"\r\n\r\n")
    return HttpAnswer(int(head[9:12]), len(body), b"\r\nretry-after: " in head.lower())


Heard = Callable[[Any, float], None]


class StreamConnection(asyncio.Protocol):
    """One WebSocket of a stream.

    Args:
        first: what is wanted.
        heard: called with every message, bytes or what JSON says, and the time of time.monotonic() at which it came.
    """

    def __init__(self, first: dict[str, Any], heard: Heard) -> None:
        self._first, self._heard = json.dumps(first).encode(), heard
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._upgraded = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, by whomever."""

    @classmethod
    async def open(cls, address: tuple[str, int], first: dict[str, Any], heard: Heard) -> Self:
        """Connect and say what is wanted; the service's answer is the first message heard.

        Raises:
            OSError: nobody listens there, or answers.
        """
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(first, heard), *address)
        return connection

    def send(self, data: bytes) -> None:
        """A binary message."""
        self._write(_BINARY, data)

    def close(self) -> None:
        """Leave without a word."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13"
        self._transport.write(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n\r\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended is all the same here
        """Called by asyncio."""
        self._transport = None
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        now = time.monotonic()
        self._received += data
        if not self._upgraded:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._received.startswith(b"HTTP/1.1 101"):
                raise QuantoneError(f"no WebSocket there: {bytes(self._received[:60])!r}")
            del self._received[: end + 4]
            self._upgraded = True
            self._write(_TEXT, self._first)
        while (message := self._next_message()) is not None:
            self._take(*message, now)

    def _write(self, opcode: int, data: bytes) -> None:
        if self._transport is None:
            return  # `ended` says so
        size = len(data)
        if size < 126:
            head = bytes((0x80 | opcode, _MASKED | size))
        elif size < 2**16:
            head = bytes((0x80 | opcode, _MASKED | 126)) + size.to_bytes(2)
        else:
            head = bytes((0x80 | opcode, _MASKED | 127)) + size.to_bytes(8)
        self._transport.write(head + _NO_MASK + data)

    def _next_message(self) -> tuple[int, bytes] | None:
        """Opcode and content of the next message, taken out of what was received (RFC 6455, 5.2)."""
        received = self._received
        if len(received) < 2:
            return None
        size, start = received[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(received) < start:
                return None
            size = int.from_bytes(received[2:start])
        if len(received) < start + size:
            return None
        opcode, content = received[0] & 0x0F, bytes(received[start : start + size])
        del received[: start + size]
        return opcode, content

    def _take(self, opcode: int, content: bytes, now: float) -> None:
        if opcode == _BINARY:
            self._heard(content, now)
        elif opcode == _TEXT:
            self._heard(json.loads(content), now)
        elif opcode == _PING:
            self._write(_PONG, content)
        elif opcode == _CLOSE:
            self.close()
