"""How a service without Ray listens, stops, and says that it cannot start."""

import asyncio
import contextlib
import signal
import socket
import threading
import time

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from websockets.sync.client import connect

from pipelines.serving.http_server import HttpServer, bound_socket
from tokenizer import QuantoneError

HEADERS_S = 1.0


class Work:
    """An app with answers that take as long as the test wants."""

    def __init__(self):
        self.may_finish, self.drain_began = threading.Event(), threading.Event()
        self.shut_down = False
        routes = [Route("/", self.hello), Route("/slow", self.slow), WebSocketRoute("/echo", self.echo)]
        self.app = Starlette(routes=routes, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app):
        yield
        self.shut_down = True

    async def hello(self, _request):
        return PlainTextResponse("hello")

    async def slow(self, _request):
        async def parts():
            yield b"first "
            await self.finished()
            yield b"last"

        return StreamingResponse(parts())

    async def echo(self, websocket):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await self.finished()
        await websocket.send_text("end")
        await websocket.close(1000)

    async def drain(self):
        self.drain_began.set()
        await self.finished()

    async def finished(self):
        while not self.may_finish.is_set():
            await asyncio.sleep(0.005)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def server(work):
    """A running server, stopped at the end whatever the test did."""
    started = threading.Event()
    made = HttpServer(work.app, on_start=started.set, drain=work.drain, closing_s=5, headers_s=HEADERS_S)
    listening = bound_socket("127.0.0.1", 0)
    made.port = listening.getsockname()[1]
    made.thread = threading.Thread(target=made.listen, args=([listening],))
    made.thread.start()
    assert started.wait(10)
    made.tell = lambda: made.servers[0].get_loop().call_soon_threadsafe(made.stop, signal.SIGTERM)
    yield made
    work.may_finish.set()
    made.force_exit = made.should_exit = True
    made.thread.join(10)


def test_a_stop_lets_answers_and_streams_come_to_their_end(server, work):
    """Both were half way when SIGTERM came; nothing of them is missing, and the process ends after them."""
    url = f"127.0.0.1:{server.port}"
    with httpx2.stream("GET", f"http://{url}/slow") as answer, connect(f"ws://{url}/echo") as socket_:
        parts = answer.iter_bytes()
        assert next(parts) == b"first "
        socket_.send("half")
        assert socket_.recv() == "half"
        server.tell()
        assert work.drain_began.wait(5)
        assert httpx2.get(f"http://{url}/").text == "hello"  # who comes now gets an answer: here 200, in ours 503
        work.may_finish.set()
        assert b"".join(parts) == b"last"
        assert socket_.recv() == "end"
    server.thread.join(10)
    assert not server.thread.is_alive()
    assert work.shut_down
    assert server.stopped_by is signal.SIGTERM


def test_the_second_signal_ends_it_at_once(server, work):
    """Who asks twice does not want to wait for streams."""
    with httpx2.stream("GET", f"http://127.0.0.1:{server.port}/slow") as answer:
        parts = answer.iter_bytes()
        next(parts)
        server.tell()
        assert work.drain_began.wait(5)
        server.tell()
        with pytest.raises(httpx2.HTTPError):
            list(parts)
    server.thread.join(10)
    assert not server.thread.is_alive()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: "], ids=["nothing", "half a request"])
def test_a_connection_that_never_asks_is_closed(server, sent):
    """Thousands of them cost a caller nothing, and would take all file descriptors of the service."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
        idle.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1) == b""
        assert 0.5 * HEADERS_S < time.monotonic() - began < 5 * HEADERS_S


def test_a_port_in_use_is_one_sentence():
    """Said before a codec is loaded, with the port and the host."""
    with bound_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QuantoneError, match=rf"cannot listen on port {port} of 127\.0\.0\.1: .*in use"):
            bound_socket("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_one_sentence(host):
    """An address of somebody else, or none at all."""
    with pytest.raises(QuantoneError, match=f"cannot listen on port 8000 of {host}"):
        bound_socket(host, 8000)


def test_ipv6_is_listened_on_too():
    """Where the machine has it."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bound_socket("::1", 0) as listening:
        assert listening.family is socket.AF_INET6


def test_an_app_that_cannot_start_is_one_error():
    """What went wrong in its lifespan is logged; the caller gets a QuantoneError, not an exit."""

    @contextlib.asynccontextmanager
    async def broken(app):
        raise RuntimeError("no")
        yield

    async def nothing():
        return None

    server = HttpServer(
        Starlette(lifespan=broken), on_start=lambda: None, drain=nothing, closing_s=5, headers_s=HEADERS_S
    )
    with bound_socket("127.0.0.1", 0) as listening, pytest.raises(QuantoneError, match="could not start"):
        server.listen([listening])
