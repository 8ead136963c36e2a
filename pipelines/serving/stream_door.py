"""StreamDoor: which WebSockets come in, and what stream their first message asks for."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import WebSocket
from starlette.responses import JSONResponse

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.stream_connection import raise_on_disconnect
from pipelines.serving.stream_protocol import StreamRefused, StreamResume, StreamStart, parse_first

_BEARER = "bearer "


class StreamDoor:
    """Checks before a stream exists.

    Args:
        engines: by the names of their codecs.
        settings: the token, the origins and the time that a first message may take.
    """

    def __init__(self, engines: Mapping[str, DecodeEngine], settings: ServiceSettings) -> None:
        self._engines, self._settings = engines, settings

    def denial(self, websocket: WebSocket) -> JSONResponse | None:
        """The answer to a handshake that is not accepted: a page of another site, or a wrong token.

        Browsers let any page open WebSockets anywhere: CORS does not hold them back, so the origin is checked here.
        """
        origin, allowed = websocket.headers.get("origin"), self._settings.cors_origins
        own = origin is None or urlsplit(origin).netloc == websocket.headers.get("host")
        if not own and origin not in allowed and "*" not in allowed:
            return _denial(403, "forbidden", "pages of this origin may not use the service")
        given = websocket.headers.get("authorization")
        if self._settings.token is not None and given is not None:
            named, value = given[: len(_BEARER)].lower() == _BEARER, given[len(_BEARER) :].strip()
            if not named or not self._is_token(value.encode("latin-1")):
                return _denial(401, "unauthorized", "the bearer token is not valid")
        return None

    async def first_message(self, websocket: WebSocket) -> StreamStart | StreamResume:
        """What the client wants.

        Raises:
            StreamRefused: it says nothing in time, something that is no first message, or it lacks the token.
            WebSocketDisconnect: it has gone.
        """
        limit = self._settings.read_timeout_s
        try:
            async with asyncio.timeout(limit):
                message = await websocket.receive()
        except TimeoutError:
            raise StreamRefused("idle", f"the first message must come within {limit:g} s") from None
        raise_on_disconnect(message)
        if message.get("text") is None:
            raise StreamRefused("wrong_message_type", "the first message must be text, a JSON object; codes come after")
        wanted = parse_first(message["text"])
        at_handshake = websocket.headers.get("authorization") is not None
        if self._settings.token is not None and not at_handshake and not self._is_token((wanted.token or "").encode()):
            raise StreamRefused(
                "unauthorized", "a bearer token is needed: in the Authorization header, or in the first message"
            )
        return wanted

    def engine(self, name: str | None) -> tuple[str, DecodeEngine]:
        """The codec that a stream asks for.

        Raises:
            StreamRefused: there is no such codec, or it cannot stream, or there are several and none is named.
        """
        if name is None and len(self._engines) == 1:
            name = next(iter(self._engines))
        if name is None or name not in self._engines:
            what = "name a codec" if name is None else "no such codec"
            raise StreamRefused("unknown_codec", f"{what}: the service has {', '.join(sorted(self._engines))}")
        if not self._engines[name].codec.streamable:
            raise StreamRefused("unknown_codec", f"codec {name!r} cannot stream: POST its codes to /v1/audio/decode")
        return name, self._engines[name]

    def _is_token(self, value: bytes) -> bool:
        return hmac.compare_digest(value, (self._settings.token or "").encode())


def num_codebooks(engine: DecodeEngine, wanted: StreamStart) -> int:
    """Levels of a stream's codes.

    Raises:
        StreamRefused: the codec does not have the bandwidth, or so many levels.
    """
    spec = engine.codec.spec
    if wanted.num_codebooks is not None and not 1 <= wanted.num_codebooks <= spec.num_codebooks:
        raise StreamRefused(
            "invalid_message", f"num_codebooks must be from 1 to {spec.num_codebooks}, not {wanted.num_codebooks}"
        )
    try:
        return wanted.num_codebooks or spec.num_codebooks_at(wanted.bandwidth_kbps)
    except ValueError as error:
        raise StreamRefused("invalid_message", str(error)) from None


def _denial(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"type": kind, "message": message}}, status_code=status)
