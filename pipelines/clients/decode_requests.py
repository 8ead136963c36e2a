"""What a client asks over HTTP and what it makes of the answers: pure functions, shared by both clients."""

from __future__ import annotations

import io
import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.clients.client_errors import ServiceUnreachable, service_error
from tokenizer.errors import CodesError, QuantoneError

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """One request; all of them are idempotent."""

    method: str
    path: str
    query: dict[str, str]
    content: bytes = b""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """What came back."""

    status: int
    content: bytes
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class EncodedSound:
    """Codes of a recording, as the service made them, with what decoding needs."""

    codes: NDArray[np.int64]  # [K, T]
    num_samples: int  # of each channel, at sample_rate
    sample_rate: int  # Hz, the codec's
    bandwidth_kbps: float
    codec: str
    codec_sha256: str  # equal codecs give equal codes
    scales: NDArray[np.float32] | None  # [N], only of codecs that have them


def decode_request(
    codes: NDArray[np.integer[Any]], options: dict[str, Any], scales: NDArray[np.floating[Any]] | None = None
) -> ServiceRequest:
    """POST /v1/audio/decode.

    Args:
        codes: [K, T] of any integer type.
        options: query fields; those that are None are left out.
        scales: [N], for codecs that have scales.

    Raises:
        CodesError: not integers [K, T] from 0 to 65535.
    """
    array = np.asarray(codes)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise CodesError(f"codes must be integers [K, T], not {array.dtype} {list(array.shape)}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**16:
        raise CodesError("codes are not all in 0 to 65535")
    if scales is not None:
        body = {"codes": array.tolist(), "scales": np.asarray(scales, np.float64).tolist()}
        content, content_type = json.dumps(body).encode(), "application/json"
    else:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(array, dtype="<u2"), allow_pickle=False)
        content, content_type = file.getvalue(), "application/x-npy"
    return ServiceRequest("POST", "/v1/audio/decode", _query(options), content, content_type)


def encode_request(sound: bytes | str | Path, options: dict[str, Any]) -> ServiceRequest:
    """POST /v1/audio/encode.

    Args:
        sound: an audio file, or the path of one on this machine.
        options: query fields; those that are None are left out.

    Raises:
        OSError: the file cannot be read.
    """
    content = sound if isinstance(sound, bytes) else Path(sound).read_bytes()
    return ServiceRequest("POST", "/v1/audio/encode", _query(options), content, "application/octet-stream")


def codecs_request() -> ServiceRequest:
    """GET /v1/codecs."""
    return ServiceRequest("GET", "/v1/codecs", {})


def error_of(answer: ServiceAnswer) -> QuantoneError | None:
    """The error that an answer is; None where it is none."""
    if answer.status == 200:
        return None
    try:
        error = json.loads(answer.content)["error"]
        kind, message = str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):  # of a proxy before the service
        kind = {429: "overloaded", 503: "unavailable", 504: "deadline_exceeded"}.get(answer.status, "")
        message = f"HTTP status {answer.status} without an error of the service"
        if not kind and answer.status < 500:
            return ServiceUnreachable(message)
    return service_error(kind or "internal_error", message, retry_after_s=retry_after_s(answer))


def retry_after_s(answer: ServiceAnswer) -> float | None:
    """Seconds that the service asks to wait; None where it does not."""
    value = (answer.retry_after or "").strip()
    return float(value) if value.isdigit() else None


def read_waveform(answer: ServiceAnswer) -> NDArray[np.float32]:
    """[C, S] float32 in [-1, 1] of a WAV with 16 bits.

    Raises:
        ServiceUnreachable: the answer is something else, or is not whole.
    """
    try:
        with wave.open(io.BytesIO(answer.content)) as file:
            channels, declared = file.getnchannels(), file.getnframes()
            frames, width = file.readframes(declared), file.getsampwidth()
    except (wave.Error, EOFError) as error:
        raise ServiceUnreachable(f"the service answers with something that is no WAV: {error}") from error
    if width != 2 or len(frames) != declared * channels * 2:
        raise ServiceUnreachable(f"a WAV of {declared} samples came with {len(frames)} bytes of them")
    samples = np.frombuffer(frames, "<i2").reshape(-1, channels).T
    return np.ascontiguousarray(samples, dtype=np.float32) / np.float32(32768.0)


def read_encoded(answer: ServiceAnswer) -> EncodedSound:
    """The answer to `encode_request`.

    Raises:
        ServiceUnreachable: it is something else.
    """
    try:
        fields = json.loads(answer.content)
        scales = fields.get("scales")
        return EncodedSound(
            codes=np.array(fields["codes"], np.int64),
            num_samples=int(fields["num_samples"]),
            sample_rate=int(fields["sample_rate"]),
            bandwidth_kbps=float(fields["bandwidth_kbps"]),
            codec=str(fields["codec"]),
            codec_sha256=str(fields["codec_sha256"]),
            scales=None if scales is None else np.array(scales, np.float32),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceUnreachable(f"the service answers with something that is no codes: {error}") from error


def read_codecs(answer: ServiceAnswer) -> list[dict[str, Any]]:
    """Cards of the codecs that are served.

    Raises:
        ServiceUnreachable: the answer is something else.
    """
    try:
        return [dict(card) for card in json.loads(answer.content)["codecs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceUnreachable(f"the service answers with something that is no list of codecs: {error}") from error


def _query(options: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}
