"""Servers under load, each in a process of its own: the service with a codec, and an application that does nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from fastapi import FastAPI, Request, Response

from pipelines.serving.serve_arguments import ServeArguments
from tokenizer import QuantoneError

HOST = "127.0.0.1"
EMPTY_PATH = "/empty"
_START_S = 180.0  # Ray, its processes and a codec, on a machine that has other things to do
_STOP_S = 60.0
_MAX_TEXT = 400  # of an error

T_co = TypeVar("T_co", covariant=True)


class Load(Protocol[T_co]):
    """What a load generator does."""

    def run(self) -> T_co:
        """Do it, and say what came of it."""


class LoadGenerator:
    """A process that makes load, so that callers do not take the time of the service or of its event loop.

    Args:
        cores: that it may use; empty for all.
    """

    def __init__(self, cores: Sequence[int] = ()) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_load, (tuple(cores),))

    def run(self, load: Load[T_co]) -> T_co:
        """Make a load there; returns what came of it, or raises what it raised."""
        return self._pool.submit(load.run).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


class ServerProcess:
    """A server on loopback for the length of a block.

    Args:
        listen: runs in the process until SIGTERM; it is given `arguments`, and a function to call with the port when
            requests are answered.
        arguments: for `listen`, of types that can be pickled.
        cores: that it may use; empty for all.
    """

    def __init__(self, listen: Callable[..., None], *arguments: Any, cores: Sequence[int] = ()) -> None:
        context = multiprocessing.get_context("spawn")
        self._said, saying = context.Pipe(duplex=False)
        self._process = context.Process(target=_listen, args=(saying, tuple(cores), listen, *arguments), daemon=True)
        self._process.start()
        saying.close()
        self.address = (HOST, self._port())

    def metric(self, name: str) -> float:
        """The sum of a metric of the service over its labels; 0 where it has nothing yet."""
        with urllib.request.urlopen(f"http://{HOST}:{self.address[1]}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join(_STOP_S)
        self._process.kill()
        self._process.join()

    def _port(self) -> int:
        said: object = f"nothing was heard of it for {_START_S:g} s"
        try:
            if self._said.poll(_START_S) and isinstance(said := self._said.recv(), int):
                return said
        except EOFError:
            said = "its process ended"
        self._process.kill()
        raise QuantoneError(f"a server of the benchmark did not start: {said}")


def listen_alone(said: Callable[[int], None], arguments: ServeArguments) -> None:
    """The service in one process, as `quantone serve`."""
    from pipelines.serving.serve_arguments import load_engines
    from pipelines.serving.service import create_app
    from pipelines.serving.service_metrics import ServiceMetrics

    metrics = ServiceMetrics()
    app = create_app(load_engines(arguments, metrics), arguments.service_settings(), metrics)
    _listen_with_uvicorn(said, app, app.state.drain)


def listen_empty(said: Callable[[int], None], num_bytes: int) -> None:
    """An empty application in the same server."""

    async def nothing_to_drain() -> None:
        pass

    _listen_with_uvicorn(said, empty_app(num_bytes), nothing_to_drain)


def listen_on_ray(said: Callable[[int], None], arguments: ServeArguments, num_bytes: int, haproxy: bool) -> None:
    """Both under one Ray Serve, as `quantone serve --ray`; the empty one at EMPTY_PATH."""
    from pipelines.serving.http_server import bound_socket
    from pipelines.serving.serve_ray import Replicas, serve_on_ray

    with ExitStack() as stack:
        port, *others = (stack.enter_context(bound_socket(HOST, 0)).getsockname()[1] for _ in range(3))
    for name, other in zip(("METRICS", "STATS"), others, strict=True):  # another service of this machine may have them
        os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}_PORT", str(other))

    def deploy_empty() -> None:
        from ray import serve

        deployment = serve.deployment(name="Empty", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
        app = deployment(serve.ingress(empty_app(num_bytes))(_Empty)).bind()
        serve.run(app, name="empty", route_prefix=EMPTY_PATH)
        said(port)

    serve_on_ray(arguments, Replicas(haproxy=haproxy), HOST, port, deploy_empty)


def empty_app(num_bytes: int) -> FastAPI:
    """Reads a request, and answers so many zeros."""
    app, content = FastAPI(), bytes(num_bytes)

    @app.post("/")
    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/octet-stream")

    return app


class _Empty:
    """The deployment of the empty application."""


def one_core_each() -> tuple[list[int], list[int]]:
    """A core for a server, and those left for its callers; two empty lists where that cannot be had."""
    if not hasattr(os, "sched_getaffinity"):
        return [], []
    cores = sorted(os.sched_getaffinity(0))
    return (cores[:1], cores[1:]) if len(cores) > 1 else ([], [])


def _listen(saying: Connection, cores: tuple[int, ...], listen: Callable[..., None], *arguments: Any) -> None:
    _stay_on(cores)
    try:
        listen(saying.send, *arguments)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        saying.send(" ".join(str(error).split())[-_MAX_TEXT:] or type(error).__name__)


def _prepare_load(cores: tuple[int, ...]) -> None:
    gc.disable()  # a collection takes 0.2 s, and all callers would hold it against the service
    _stay_on(cores)


def _stay_on(cores: tuple[int, ...]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _listen_with_uvicorn(said: Callable[[int], None], app: FastAPI, drain: Callable[[], Any]) -> None:
    from pipelines.serving.http_server import HttpServer, bound_socket

    listening = bound_socket(HOST, 0)
    server = HttpServer(
        app,
        on_start=lambda: said(listening.getsockname()[1]),
        drain=drain,
        closing_s=1.0,
        headers_s=10.0,
    )
    server.listen([listening])
