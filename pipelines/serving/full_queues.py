"""Refusals that cost next to nothing: while the queues are full, requests are answered before they are read.

Where several times as much is asked for as can be done, most requests are refused: what each refusal costs is taken
from those that are answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.decoding.decode_errors import Overloaded
from pipelines.serving.service_errors import error_response
from pipelines.serving.service_metrics import ServiceMetrics

PATHS = ("/v1/audio/decode", "/v1/audio/encode")
MOST_BYTES = 64 * 2**10
"""Of a declared body: so much the server reads and throws away. Longer ones are refused inside."""


class FullQueues:
    """Plain ASGI, around everything else.

    Args:
        app: what lies behind.
        engines: of the service; as long as one of them has room, requests are read to see whom they are for.
        metrics: where refusals are counted.
    """

    def __init__(self, app: ASGIApp, engines: Mapping[str, DecodeEngine], metrics: ServiceMetrics) -> None:
        self._app, self._engines, self._metrics = app, engines, metrics
        self._codec = next(iter(engines)) if len(engines) == 1 else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or let it through."""
        refused = scope["type"] == "http" and scope["path"] in PATHS and self._full and _is_small(scope)
        if not refused:
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        await error_response(Overloaded("the queue is full: come again later"))(scope, receive, send)
        self._metrics.rejected(self._codec, "queue")
        self._metrics.answered(self._codec, scope["path"], 429, time.monotonic() - began, 0.0)

    @property
    def _full(self) -> bool:
        return all(engine.full for engine in self._engines.values())


def _is_small(scope: Scope) -> bool:
    """Whether the body may stay unread; requests of web pages need the headers that other layers add."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    declared = int(length) if length.isdigit() and len(length) < 10 else MOST_BYTES + 1
    return scope["method"] == "POST" and b"origin" not in headers and declared <= MOST_BYTES
