"""The service as an application: its routes, its limits and the life of its engines, for uvicorn and Ray Serve."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI, Response
from starlette.middleware.cors import CORSMiddleware

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.full_queues import FullQueues
from pipelines.serving.held_bytes import HeldBytes
from pipelines.serving.service_access import BearerToken
from pipelines.serving.service_codecs import ServedCodecs, codecs_router
from pipelines.serving.service_decode import decode_router
from pipelines.serving.service_encode import UPLOAD_THREADS, encode_router
from pipelines.serving.service_errors import install_error_answers
from pipelines.serving.service_limits import RequestLimits
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_page import page_router
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import stream_router

_HEADERS_FOR_PAGES = (
    "Retry-After", "X-Bandwidth-Kbps", "X-Channels", "X-Codec", "X-Codec-Sha256", "X-Num-Samples", "X-Sample-Rate",
    "X-Scales",
)  # fmt: skip


def create_app(
    engines: Mapping[str, DecodeEngine],
    settings: ServiceSettings = ServiceSettings(),  # noqa: B008 - frozen
    metrics: ServiceMetrics | None = None,
) -> FastAPI:
    """The application. It starts the engines when it starts, and drains and stops them when it ends.

    `app.state.drain` is a coroutine function for servers that want to drain before they close connections: from its
    call on nothing new is taken, and it returns whether all that ran came to its end within `drain_timeout_s`.

    Args:
        engines: decoders that are not started yet, at least one, by the names that requests use.
        settings: limits, token and origins.
        metrics: the one that the engines' observers belong to.

    Raises:
        ValueError: no engines.
    """
    served = ServedCodecs(engines, settings)
    counted = ServiceMetrics() if metrics is None else metrics
    uploads = ThreadPoolExecutor(UPLOAD_THREADS, "upload")

    async def drain() -> bool:
        served.draining = True
        return all(await asyncio.gather(*(e.drain(settings.drain_timeout_s) for e in served.engines.values())))

    app = FastAPI(
        title="Quantone",
        summary="Tokens to sound, and sound to tokens.",
        description="Codes are [K, T]: K levels, the coarsest first, of T frames. Streams: WS /v1/audio/stream.",
        version=importlib.metadata.version("quantone"),
        lifespan=partial(_life, served),
    )
    app.state.drain, app.state.engines = drain, served.engines
    app.state.held = HeldBytes(settings.max_held_bytes)
    install_error_answers(app)
    for router in (
        codecs_router(served),
        decode_router(served, settings, counted),
        encode_router(served, settings, uploads),
        _metrics_router(counted),
        stream_router(served.engines, settings, counted),
        page_router(),
    ):
        app.include_router(router)
    _install_layers(app, settings, counted)
    app.add_middleware(FullQueues, engines=served.engines, metrics=counted)
    return app


def _install_layers(app: FastAPI, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
    """From the inside out: the limits see every answer, and pages of other origins may read every error."""
    if settings.token is not None:
        app.add_middleware(BearerToken, token=settings.token)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=list(_HEADERS_FOR_PAGES),
        )
    app.add_middleware(RequestLimits, settings=settings, metrics=metrics, held=app.state.held)


def _metrics_router(metrics: ServiceMetrics) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/metrics",
        tags=["health"],
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"description": "Its text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def show() -> Response:
        """Everything that this process counted and timed."""
        return Response(metrics.render(), media_type=ServiceMetrics.content_type)

    return router


@asynccontextmanager
async def _life(served: ServedCodecs, app: FastAPI) -> AsyncIterator[None]:
    await asyncio.to_thread(_start, served)
    gc.collect()
    gc.freeze()  # what is here now stays: to look through all of torch again takes 0.2 s, and stops every stream
    try:
        yield
    finally:
        gc.unfreeze()
        if not served.draining:
            await app.state.drain()
        await asyncio.to_thread(_stop, served)


def _start(served: ServedCodecs) -> None:
    for engine in served.engines.values():
        _ = engine.codec.sha256  # a hash over all weights, that no request should wait for
        engine.start()
    served.started, served.draining = True, False


def _stop(served: ServedCodecs) -> None:
    for engine in served.engines.values():
        engine.stop()
