"""`POST /v1/audio/encode`: sound in, codes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.arrow_codes import write_arrow_codes
from pipelines.serving.audio_answer import sound_headers
from pipelines.serving.audio_writers import SoundShape
from pipelines.serving.encode_steps import EncodedPiece, encode_steps, joined_pieces
from pipelines.serving.json_codes import write_json_codes
from pipelines.serving.msgpack_codes import write_msgpack_codes
from pipelines.serving.multipart_file import file_of_form
from pipelines.serving.npy_codes import write_npy_codes
from pipelines.serving.request_body import media_type, read_body
from pipelines.serving.request_schemas import CodesFormat, EncodeAnswer, EncodeOptions
from pipelines.serving.service_codecs import ServedCodecs
from pipelines.serving.service_decode import ERROR_ANSWERS, num_codebooks_at
from pipelines.serving.service_errors import bad_request, unsupported_media
from pipelines.serving.service_limits import Exchange
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.uploaded_sound import read_upload

UPLOAD_THREADS = 2  # that decode files and resample: encoding is slower, and streams need the rest of the machine
_FORM = "multipart/form-data"
_PLAIN = ("application/octet-stream", "application/ogg")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWER_TYPES: dict[CodesFormat, str] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "npy": "application/x-npy",
    "arrow": "application/vnd.apache.arrow.stream",
}


def encode_router(served: ServedCodecs, settings: ServiceSettings, uploads: ThreadPoolExecutor) -> APIRouter:
    """The route.

    Args:
        served: codecs with their engines.
        settings: limits.
        uploads: threads that decode what is sent.
    """
    router = APIRouter()

    @router.post(
        "/v1/audio/encode",
        tags=["audio"],
        summary="Sound to codes",
        response_class=Response,
        responses={
            200: {"description": "The codes.", "model": EncodeAnswer, "content": _answer_contents()},
            **ERROR_ANSWERS,
        },
        openapi_extra={"requestBody": {"required": True, "content": _body_contents()}},
    )
    async def encode(request: Request, options: Annotated[EncodeOptions, Query()]) -> Response:
        """Encode one recording, of any sample rate and number of channels: wav, flac, mp3, ogg, opus and others.

        npy and Arrow answers carry the other fields in headers and columns.
        """
        exchange: Exchange = request.state.exchange
        exchange.codec, engine = served.choose(options.codec)
        spec = engine.codec.spec
        num_codebooks = num_codebooks_at(options.bandwidth_kbps, spec)
        file_in = await _upload(request, settings)

        def read() -> torch.Tensor:
            return read_upload(file_in(), spec, settings.max_audio_s, exchange.held.add)

        waveform = await asyncio.get_running_loop().run_in_executor(uploads, read)
        steps = encode_steps(engine.codec, waveform, num_codebooks)
        encoded = joined_pieces(await engine.run(steps, deadline_s=exchange.left_s(options.deadline_s)))
        exchange.audio_seconds = waveform.shape[-1] / spec.sample_rate
        fields = _fields(exchange.codec, engine, waveform.shape[-1], encoded)
        content = await asyncio.to_thread(_written, encoded.codes, fields, options.format)
        return Response(content, media_type=ANSWER_TYPES[options.format], headers=_headers(engine, fields))

    return router


async def _upload(request: Request, settings: ServiceSettings) -> Callable[[], bytes]:
    """What gives the file in the body: work for a thread."""
    unpack = _unpacking(request)
    body, inflate = await read_body(request, settings.max_body_bytes)

    def file_in() -> bytes:
        content = unpack(body if inflate is None else inflate(body))
        if not content:
            raise bad_request("the sound has 0 bytes")
        return content

    return file_in


def _unpacking(request: Request) -> Callable[[bytes], bytes]:
    """How the file is found in the body; its content type says no more than that."""
    kind = media_type(request)
    if kind == _FORM:
        header = request.headers["content-type"]
        return lambda body: file_of_form(body, header)
    if kind.startswith(("audio/", "video/")) or kind in _PLAIN:
        return lambda body: body
    raise unsupported_media(f"Content-Type is audio/..., video/..., {', '.join(_PLAIN)} or {_FORM}, not {kind[:60]!r}")


def _fields(name: str, engine: DecodeEngine, num_samples: int, encoded: EncodedPiece) -> dict[str, Any]:
    """What stands beside codes."""
    spec = engine.codec.spec
    fields = {
        "codec": name,
        "codec_sha256": engine.codec.sha256,
        "sample_rate": spec.sample_rate,
        "num_samples": num_samples,
        "bandwidth_kbps": spec.level_kbps * len(encoded.codes),
    }
    return fields if encoded.scales is None else {**fields, "scales": encoded.scales.tolist()}


def _written(codes: NDArray[np.uint16], fields: dict[str, Any], wanted: CodesFormat) -> bytes:
    if wanted == "json":
        return write_json_codes(codes, fields)
    if wanted == "msgpack":
        return write_msgpack_codes(codes, fields)
    if wanted == "npy":
        return write_npy_codes(codes)
    return write_arrow_codes(codes, fields)


def _headers(engine: DecodeEngine, fields: dict[str, Any]) -> dict[str, str]:
    shape = SoundShape(fields["sample_rate"], engine.codec.spec.channels, fields["num_samples"])
    headers = sound_headers(shape, fields["codec"])
    headers["X-Codec-Sha256"] = fields["codec_sha256"]
    headers["X-Bandwidth-Kbps"] = f"{fields['bandwidth_kbps']:g}"
    if "scales" in fields:
        headers["X-Scales"] = ",".join(f"{scale:.9g}" for scale in fields["scales"])
    return headers


def _answer_contents() -> dict[str, Any]:
    return {content_type: _BINARY for name, content_type in ANSWER_TYPES.items() if name != "json"}


def _body_contents() -> dict[str, Any]:
    form = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
    kinds = ("application/octet-stream", "audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "audio/mp4")
    return dict.fromkeys(kinds, _BINARY) | {_FORM: {"schema": form}}
