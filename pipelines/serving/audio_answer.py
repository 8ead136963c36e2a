"""Sound as the answer to a request, sent while it is decoded: the file itself, or events with pieces of it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from pipelines.serving.audio_writers import FORMATS, AudioWriter, SoundShape, blocks_of
from pipelines.serving.service_errors import BrokenAnswer, error_content
from tokenizer import QuantoneError

EVENTS = "text/event-stream"


class AudioAnswer(Response):
    """One sound, block by block.

    Args:
        first: [C, n], known before there is an answer: what fails until then gets a status of its own.
        rest: [C, n] each, `shape.num_samples` in all with the first; read as fast as the caller reads the answer.
        writer: of the file.
        shape: what it holds.
        response_format: one of FORMATS.
        as_events: server-sent events, as of OpenAI's speech endpoint, instead of the file.
        codec: its name, for a header.
        on_sent: called with the number of samples that have left, each time that bytes did.
    """

    def __init__(
        self,
        first: NDArray[np.float32],
        rest: AsyncIterator[NDArray[np.float32]],
        writer: AudioWriter,
        shape: SoundShape,
        *,
        response_format: str,
        as_events: bool,
        codec: str,
        on_sent: Callable[[int], None],
    ) -> None:
        self.status_code, self.background = 200, None
        self.media_type = EVENTS if as_events else FORMATS[response_format].media_type
        self._first, self._rest, self._writer, self._shape = first, rest, writer, shape
        self._as_events, self._on_sent = as_events, on_sent
        headers = {**sound_headers(shape, codec), "Cache-Control": "no-store"}
        if as_events:
            headers["X-Accel-Buffering"] = "no"  # nginx would collect events
        elif writer.num_bytes is not None:
            headers["Content-Length"] = str(writer.num_bytes)
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send all of it.

        Raises:
            BrokenAnswer: decoding failed after the first bytes; events end with an event that says so instead.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        try:
            async for content in self._file():
                yield _event("delta", audio=base64.b64encode(content).decode()) if self._as_events else content
            if self._as_events:
                yield _event("done", num_samples=self._shape.num_samples)
        except QuantoneError as error:
            if not self._as_events:
                raise BrokenAnswer(str(error)) from error
            yield _data({"type": "error", **error_content(error)})

    async def _file(self) -> AsyncIterator[bytes]:
        """The file, in pieces as they come to be."""
        num_waiting = 0  # samples that an encoder still keeps to itself
        async for block in self._blocks():
            for piece in blocks_of(block):
                num_waiting += piece.shape[-1]
                if content := await self._in_turn(self._writer.write, piece):
                    yield content
                    self._on_sent(num_waiting)
                    num_waiting = 0
        if content := await self._in_turn(self._writer.finish):
            yield content
            self._on_sent(num_waiting)

    async def _blocks(self) -> AsyncIterator[NDArray[np.float32]]:
        yield self._first
        async for block in self._rest:
            yield block

    async def _in_turn(self, work: Callable[..., bytes], *arguments: Any) -> bytes:
        # Nothing closes the writer when the answer is cancelled: a thread may still be writing. It goes with the last
        # that refers to it.
        return await asyncio.to_thread(work, *arguments) if self._writer.is_slow else work(*arguments)


def sound_headers(shape: SoundShape, codec: str) -> dict[str, str]:
    """What a sound is, for callers that get it without a header of its own."""
    return {
        "X-Codec": quote(codec),  # headers are ASCII
        "X-Sample-Rate": str(shape.sample_rate),
        "X-Channels": str(shape.channels),
        "X-Num-Samples": str(shape.num_samples),
    }


def _event(name: str, **fields: Any) -> bytes:
    return _data({"type": f"speech.audio.{name}", **fields})


def _data(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
