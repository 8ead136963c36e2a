"""HttpServer: the service in one process without Ray; uvicorn, with a stop that lets streams play to their end."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pipelines.serving.header_timeout import protocol_with_header_timeout
from tokenizer import QuantoneError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_MESSAGE_BYTES = 1 << 20  # of a WebSocket: minutes of codes


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then drains and ends; the second signal ends it at once.

    Args:
        app: the service.
        on_start: called when it accepts connections.
        drain: called at the first signal; connections stay open, and get answers, until it returns.
        closing_s: after that, for readers of answers that are already made.
        headers_s: in which the headers of a request must come.
        log_requests: one line each.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_start: Callable[[], None],
        drain: Callable[[], Awaitable[object]],
        closing_s: float,
        headers_s: float,
        log_requests: bool = False,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                http=protocol_with_header_timeout(headers_s),
                log_level="info" if log_requests else "warning",
                access_log=log_requests,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(closing_s),
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # codes do not get smaller, and small messages must not get large
            )
        )
        self._on_start, self._drain = on_start, drain
        self._stopping: asyncio.Task[None] | None = None
        self.stopped_by: signal.Signals | None = None

    def listen(self, sockets: list[socket.socket]) -> None:
        """Run; returns when everything has ended.

        Raises:
            QuantoneError: the service could not start.
        """
        try:
            self.run(sockets=sockets)
        except SystemExit as error:  # uvicorn has logged why
            raise QuantoneError("the service could not start") from error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, accept connections, and say so."""
        await super().startup(sockets)
        self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals for as long as the server runs; uvicorn's own way closes streams at the first one."""
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self, number: signal.Signals) -> None:
        """Drain and end; called once more, end at once."""
        if self._stopping is None:
            self.stopped_by = number
            self._stopping = asyncio.get_running_loop().create_task(self._finish())
        else:
            self.force_exit = self.should_exit = True

    async def _finish(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that this process alone listens on.

    Args:
        host: an address of this machine or a name of one.
        port: 0 for any that is free.

    Raises:
        QuantoneError: the port is in use, or may not be used, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(1024)  # not at the first connection only: a second server must fail now
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise QuantoneError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    return bound
