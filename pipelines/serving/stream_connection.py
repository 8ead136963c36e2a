"""StreamConnection: one WebSocket of a stream: paced writing, checked reading, and a close that says why."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import WebSocket, WebSocketDisconnect
from starlette.types import Message

from pipelines.serving.live_stream import LiveStream
from pipelines.serving.stream_inbox import StreamInbox
from pipelines.serving.stream_protocol import StreamRefused, parse_codes, parse_text

_FAREWELL_S = 1.0  # for the error and the close to leave
_MAX_REASON_BYTES = 123  # RFC 6455, 5.5


class StreamConnection:
    """An accepted WebSocket.

    Args:
        websocket: accepted.
        write_timeout_s: that a message may wait for its reader.
    """

    def __init__(self, websocket: WebSocket, write_timeout_s: float) -> None:
        self._websocket, self._write_timeout_s = websocket, write_timeout_s
        self._taken_over, self._gone = asyncio.Event(), asyncio.Event()

    async def send(self, data: bytes | str) -> None:
        """A message: text or binary.

        Raises:
            StreamRefused: its reader takes nothing.
            WebSocketDisconnect: it has gone.
        """
        kind = "text" if isinstance(data, str) else "bytes"
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._websocket.send({"type": "websocket.send", kind: data})
        except TimeoutError:
            raise StreamRefused("slow_reader", f"nothing was read for {self._write_timeout_s:g} s") from None

    async def read(self, live: LiveStream, inbox: StreamInbox) -> None:
        """Whatever comes goes to the inbox, for as long as the client is there.

        Raises:
            StreamRefused: a message that is not allowed.
            WebSocketDisconnect: the client has gone.
        """
        while True:
            message = await self._websocket.receive()
            raise_on_disconnect(message)
            live.touch()
            if message.get("text") is not None:
                parse_text(message["text"])
                await inbox.put_reset()
            elif data := message["bytes"]:
                await inbox.put(parse_codes(data, live.num_codebooks, live.spec.codebook_size))
            else:
                await inbox.put(None)

    async def until_taken_over(self) -> None:
        """Wait for another connection that wants the stream.

        Raises:
            StreamRefused: it is there.
        """
        await self._taken_over.wait()
        raise StreamRefused("taken_over", "another connection goes on with this stream")

    async def take_over(self) -> None:
        """End this connection for another one; returns when the stream is free."""
        self._taken_over.set()
        await self._gone.wait()

    def release(self) -> None:
        """The stream is free."""
        self._gone.set()


async def say_goodbye(websocket: WebSocket, refused: StreamRefused) -> None:
    """Tell the client why, and close; one that does not read is dropped.

    A close would wait for the reader to take what the server holds for it, which a stuck one never does, and ASGI has
    no word for anything else: so the transport of uvicorn is asked for. Other servers close by their own timeouts.
    """
    if refused.kind != "slow_reader":
        reason = str(refused).encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it has gone
                    await websocket.send_text(refused.to_json())
                    await websocket.close(refused.close_code, reason)
                return
    transport = getattr(getattr(websocket._receive, "__self__", None), "transport", None)  # noqa: SLF001
    if transport is not None:
        transport.abort()


def raise_on_disconnect(message: Message) -> None:
    """The end of a WebSocket is a message among others.

    Raises:
        WebSocketDisconnect: this is it.
    """
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006), message.get("reason"))
