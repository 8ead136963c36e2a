"""Connections that never finish the headers of a request: uvicorn waits for them for ever, here they are closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def protocol_with_header_timeout(timeout_s: float) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn, for its setting `http`, that closes connections whose headers come too slowly.

    Between requests, uvicorn's own `timeout_keep_alive` counts.

    Args:
        timeout_s: from the first byte of a request, or the start of a connection, to the end of its headers.
    """

    class TimedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
        """One connection."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering or self.transport.get_protocol() is not self:  # a WebSocket has taken it over
                self._end()
            elif self._deadline is None:
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._deadline = asyncio.get_running_loop().call_later(timeout_s, self.transport.abort)

        def _end(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return TimedProtocol
