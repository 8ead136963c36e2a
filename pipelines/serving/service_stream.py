"""`WS /v1/audio/stream`: codes in, sound out, while both are being made. docs/stream_protocol.md has the messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.decoding.decode_errors import Draining, Overloaded, ServiceError
from pipelines.serving.first_of import first_of
from pipelines.serving.live_stream import LiveStream
from pipelines.serving.parked_streams import ParkedStreams
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.stream_connection import StreamConnection, say_goodbye
from pipelines.serving.stream_door import StreamDoor, num_codebooks
from pipelines.serving.stream_inbox import StreamInbox
from pipelines.serving.stream_protocol import PATH, StreamRefused, StreamResume, StreamStart
from tokenizer.errors import CodesError

_LOG = logging.getLogger(__name__)
_WATCH_S = 0.25
_ABNORMAL = 1006
_NOT_KEPT = {1000, 1001, 1012}  # the client left on purpose, or the server ends


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Limits that only streams have; sizes are in stream_protocol, timeouts of all routes in ServiceSettings."""

    idle_timeout_s: float = 120.0  # neither codes nor sound: pauses between sentences are much shorter
    waiting_s: float = 10.0  # of sound in codes that wait for the engine, beside its own backlog
    kept_s: float = 5.0  # of sent sound, for a resume
    max_parked: int = 256
    max_parked_bytes: int = 256 * 2**20


def stream_router(
    engines: Mapping[str, DecodeEngine],
    settings: ServiceSettings,
    metrics: ServiceMetrics | None = None,
    limits: StreamLimits = StreamLimits(),
) -> APIRouter:
    """The route of streams.

    Args:
        engines: started decoders by the names of their codecs.
        settings: timeouts, the bearer token, and which origins may call.
        metrics: told of first packets, underruns, ended and refused streams.
        limits: of streams alone.
    """
    router = APIRouter()
    router.add_api_websocket_route(PATH, StreamService(engines, settings, metrics, limits).serve)
    return router


class StreamService:
    """All streams of one process; used from one event loop."""

    def __init__(
        self,
        engines: Mapping[str, DecodeEngine],
        settings: ServiceSettings,
        metrics: ServiceMetrics | None,
        limits: StreamLimits,
    ) -> None:
        self._settings, self._metrics, self._limits = settings, metrics, limits
        self._door = StreamDoor(engines, settings)
        self._connections: dict[str, StreamConnection] = {}  # by resume token
        self._parked: ParkedStreams[LiveStream] = ParkedStreams(
            settings.resume_window_s, max_streams=limits.max_parked, max_bytes=limits.max_parked_bytes
        )

    async def serve(self, websocket: WebSocket) -> None:
        """One connection, from its handshake to its close."""
        denial = self._door.denial(websocket)
        if denial is not None:
            await websocket.send_denial_response(denial)
            return
        await websocket.accept()
        try:
            live, resumed = await self._begin(websocket)
            await self._attend(StreamConnection(websocket, self._settings.write_timeout_s), live, resumed=resumed)
        except WebSocketDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - _refusal logs what nobody foresaw
            await say_goodbye(websocket, _refusal(error))

    async def _begin(self, websocket: WebSocket) -> tuple[LiveStream, bool]:
        """A slot for what the client asks for, and whether it is a stream that goes on."""
        codec = ""
        try:
            wanted = await self._door.first_message(websocket)
            if isinstance(wanted, StreamResume):
                return await self._resume(wanted), True
            codec, engine = self._door.engine(wanted.codec)
            return self._start(codec, engine, wanted), False
        except StreamRefused as refused:  # where the engine refuses, it counts by itself
            if self._metrics is not None:
                self._metrics.rejected(codec, refused.kind)
            raise

    def _start(self, name: str, engine: DecodeEngine, wanted: StreamStart) -> LiveStream:
        return LiveStream(
            name,
            engine,
            num_codebooks=num_codebooks(engine, wanted),
            pcm=wanted.pcm,
            kept_s=self._limits.kept_s,
            listening=self._metrics,
        )

    async def _resume(self, wanted: StreamResume) -> LiveStream:
        connection = self._connections.get(wanted.resume)
        if connection is not None:  # the client knows of its end before the server does
            await connection.take_over()
        live = self._parked.find(wanted.resume)
        if live is None:
            raise StreamRefused(
                "resume_failed", f"no such stream: they are kept for {self._parked.window_s:g} s; start a new one"
            )
        if not live.resume(wanted.utterance, wanted.received_samples):
            self._parked.drop(wanted.resume)
            raise StreamRefused("resume_failed", "what follows the received samples is not known; start a new stream")
        self._parked.drop(wanted.resume)
        return live

    async def _attend(self, connection: StreamConnection, live: LiveStream, *, resumed: bool) -> None:
        """A stream on a connection. Then its slot is free, and the stream parked where it may go on."""
        self._connections[live.resume_token] = connection
        code = _ABNORMAL
        kept = False
        try:
            await self._converse(connection, live, resumed=resumed)
        except WebSocketDisconnect as gone:
            code, kept = gone.code, gone.code not in _NOT_KEPT
            raise
        except Exception as error:
            refused = _refusal(error)
            code, kept = refused.close_code, refused.kind in ("slow_reader", "taken_over")
            raise refused from error
        finally:
            del self._connections[live.resume_token]
            if not (kept and self._park(live)):
                live.close()
            if self._metrics is not None:
                self._metrics.answered(live.name, PATH, code, *live.take_times())
            connection.release()

    async def _converse(self, connection: StreamConnection, live: LiveStream, *, resumed: bool) -> None:
        inbox = StreamInbox(max(1, round(self._limits.waiting_s * live.spec.frame_rate)))
        await connection.send(live.started(resumed=resumed).to_json())
        await first_of(
            connection.read(live, inbox),
            live.converse(inbox, connection.send),
            self._watch(live, inbox),
            connection.until_taken_over(),
        )

    async def _watch(self, live: LiveStream, inbox: StreamInbox) -> None:
        """End a stream that nobody uses, and one that rests while the service wants to stop."""
        limit = self._limits.idle_timeout_s
        while True:
            await asyncio.sleep(_WATCH_S)
            if live.draining and live.resting and inbox.empty:
                raise StreamRefused("draining", "the service is shutting down: connect again", retry_after_s=0.0)
            if time.monotonic() - live.active_at > limit:
                text = f"neither codes nor sound for {limit:g} s: connect again when there are"
                raise StreamRefused("idle", text, received=live.received)

    def _park(self, live: LiveStream) -> bool:
        live.park()
        if not self._parked.park(live.resume_token, live):
            return False
        asyncio.get_running_loop().call_later(self._parked.window_s + _WATCH_S, self._parked.tidy)
        return True


def _refusal(error: Exception) -> StreamRefused:
    """How an error reads to a client."""
    if isinstance(error, StreamRefused):
        return error
    if isinstance(error, Overloaded):
        draining = isinstance(error, Draining)
        return StreamRefused("draining" if draining else "overloaded", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, CodesError):
        return StreamRefused("invalid_codes", str(error))
    if isinstance(error, ServiceError) and error.__cause__ is None:  # else it tells of the inside
        return StreamRefused("unavailable", str(error), retry_after_s=1.0)
    _LOG.error("a stream failed", exc_info=error)
    return StreamRefused("internal_error", "the stream failed; the log of the service says why")
