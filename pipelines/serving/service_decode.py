"""`POST /v1/audio/decode`: codes in, sound out, sent while it is decoded."""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from pipelines.decoding.decode_door import checked_length
from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.audio_answer import EVENTS, AudioAnswer
from pipelines.serving.audio_writers import FORMATS, SoundShape, open_writer
from pipelines.serving.codes_body import CodesBody
from pipelines.serving.request_body import CODES_READERS, read_codes
from pipelines.serving.request_schemas import (
    DecodeBodyOptions,
    DecodeOptions,
    DecodeRequest,
    ErrorAnswer,
    merged_options,
)
from pipelines.serving.service_codecs import ServedCodecs
from pipelines.serving.service_errors import invalid_argument
from pipelines.serving.service_limits import Exchange
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings
from tokenizer import CodecSpec, CodesError

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SOUND_HEADERS = {
    name: {"description": text, "schema": {"type": kind}}
    for name, text, kind in (
        ("X-Codec", "Name of the codec.", "string"),
        ("X-Sample-Rate", "Hz.", "integer"),
        ("X-Channels", "Channels.", "integer"),
        ("X-Num-Samples", "Samples of each channel.", "integer"),
    )
}
ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body is not what its content type says.",
        401: "The bearer token is missing or wrong.",
        404: "The codec is not served here.",
        408: "The body came too slowly.",
        413: "The body, or the sound in it, is too large.",
        415: "A content type or encoding that is not read.",
        422: "Codes, sound or an option with a value that cannot be.",
        429: "Too much is waiting; Retry-After says when to try again.",
        503: "The service is stopping, or failed; another one can take the request.",
        504: "The deadline passed before the work was done.",
    }.items()
}


def decode_router(served: ServedCodecs, settings: ServiceSettings, metrics: ServiceMetrics) -> APIRouter:
    """The route.

    Args:
        served: codecs with their engines.
        settings: limits.
        metrics: hears when the first sound leaves.
    """
    router = APIRouter()

    @router.post(
        "/v1/audio/decode",
        tags=["audio"],
        summary="Codes to sound",
        response_class=Response,
        responses={
            200: {"description": "The sound.", "content": _sound_contents(), "headers": _SOUND_HEADERS},
            **ERROR_ANSWERS,
        },
        openapi_extra={"requestBody": {"required": True, "content": _body_contents()}},
    )
    async def decode(request: Request, options: Annotated[DecodeOptions, Query()]) -> Response:
        """Decode one utterance; the answer begins as soon as its first samples are known.

        A npy body is an array of integers [K, T]; an Arrow body one row with columns codes_00, codes_01 and so on, as
        token datasets have them. Options stand in the query; JSON and msgpack may hold them beside `codes`.
        """
        exchange: Exchange = request.state.exchange
        body = await read_codes(request, served.codes_limits(), settings.max_body_bytes)
        wanted = merged_options(options, body.options)
        exchange.codec, engine = served.choose(wanted.codec)
        served.check_frames(engine, body.codes.shape[1])
        return await _answer(exchange, engine, body, wanted, metrics)

    return router


async def _answer(
    exchange: Exchange, engine: DecodeEngine, body: CodesBody, wanted: DecodeBodyOptions, metrics: ServiceMetrics
) -> AudioAnswer:
    spec = engine.codec.spec
    codes = codes_at(body.codes, wanted.bandwidth_kbps, spec)
    num_samples = checked_length(codes.shape[1], wanted.num_samples, spec)
    shape = SoundShape(spec.sample_rate, spec.channels, num_samples)
    writer = open_writer(wanted.response_format, shape)
    blocks = engine.decode_blocks(
        codes,
        num_samples=num_samples,
        scales=None if wanted.scales is None else np.array(wanted.scales),
        deadline_s=exchange.left_s(wanted.deadline_s),
    )
    exchange.at_end.push_async_callback(blocks.aclose)
    first = await anext(blocks)

    def count(num_sent: int) -> None:
        if exchange.audio_seconds == 0:
            metrics.first_audio(exchange.codec, time.monotonic() - exchange.started)
        exchange.audio_seconds += num_sent / spec.sample_rate

    return AudioAnswer(
        first,
        blocks,
        writer,
        shape,
        response_format=wanted.response_format,
        as_events=wanted.stream_format == "sse",
        codec=exchange.codec,
        on_sent=count,
    )


def codes_at(codes: NDArray[np.integer], bandwidth_kbps: float | None, spec: CodecSpec) -> NDArray[np.integer]:
    """The levels of codes [K, T] that make up a bandwidth.

    Raises:
        RequestError: the codec does not have it.
        CodesError: the codes have fewer levels.
    """
    if bandwidth_kbps is None:
        return codes
    count = num_codebooks_at(bandwidth_kbps, spec)
    if count > len(codes):
        raise CodesError(f"{bandwidth_kbps:g} kbps needs {count} levels, the codes have {len(codes)}")
    return codes[:count]


def num_codebooks_at(bandwidth_kbps: float | None, spec: CodecSpec) -> int:
    """Levels that make up a bandwidth.

    Raises:
        RequestError: the codec does not have it.
    """
    try:
        return spec.num_codebooks_at(bandwidth_kbps)
    except (ValueError, OverflowError) as error:
        raise invalid_argument(str(error)) from error


def _sound_contents() -> dict[str, Any]:
    text = "JSON of type speech.audio.delta (`audio`: a piece of the file in base64), speech.audio.done, or error."
    data = {"type": "string", "contentMediaType": "application/json", "description": text}
    events = {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}
    return {audio_format.media_type: _BINARY for audio_format in FORMATS.values()} | {EVENTS: events}


def _body_contents() -> dict[str, Any]:
    schema = DecodeRequest.model_json_schema()
    examples = {f"example {number}": {"value": value} for number, value in enumerate(schema.pop("examples"), start=1)}
    as_object = {"schema": schema, "examples": examples}
    return {name: as_object if name.endswith(("json", "msgpack")) else _BINARY for name in CODES_READERS}
