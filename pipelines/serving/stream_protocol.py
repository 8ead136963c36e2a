"""The messages of `WS /v1/audio/stream` for both ends: parsing, limits and errors; see docs/stream_protocol.md.

Pure functions over numpy: a client that imports this loads neither torch nor a web framework.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import QuantoneError

PATH = "/v1/audio/stream"
MAX_MESSAGE_BYTES = 2**19  # of codes; at 12 kbps more than three minutes of sound
MAX_TEXT_CHARS = 4096
END_OF_UTTERANCE = b""

PcmFormat = Literal["s16le", "f32le"]
PCM_TYPES: dict[PcmFormat, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}

ErrorKind = Literal[
    "invalid_message",
    "invalid_codes",
    "wrong_message_type",
    "too_large",
    "unknown_codec",
    "unauthorized",
    "overloaded",
    "draining",
    "resume_failed",
    "taken_over",
    "slow_reader",
    "idle",
    "unavailable",
    "internal_error",
]
CLOSE_CODES: dict[ErrorKind, int] = {  # RFC 6455, 7.4.1, and the IANA registry for 1012 and 1013
    "wrong_message_type": 1003,
    "invalid_message": 1007,
    "invalid_codes": 1007,
    "unknown_codec": 1008,
    "unauthorized": 1008,
    "resume_failed": 1008,
    "taken_over": 1008,
    "slow_reader": 1008,
    "idle": 1008,
    "too_large": 1009,
    "unavailable": 1011,
    "internal_error": 1011,
    "draining": 1012,
    "overloaded": 1013,
}


class StreamRefused(QuantoneError):  # noqa: N818 - what the server does; errors in the tree say what went wrong
    """The server ends a stream, and says why.

    Args:
        kind: the word that programs go by.
        message: the sentence that people read.
        retry_after_s: seconds after which another attempt is worth making; None: do not try the same again.
        received: the utterance that the server was taking codes of, and how many frames of it, or None.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retry_after_s: float | None = None,
        received: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.received = received

    @property
    def close_code(self) -> int:
        """With which the WebSocket is closed."""
        return CLOSE_CODES[self.kind]

    def to_json(self) -> str:
        """The last message before the close."""
        error: dict[str, Any] = {"type": self.kind, "message": str(self)}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        if self.received is not None:
            error["utterance"], error["received_frames"] = self.received
        return json.dumps({"type": "error", "error": error})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStart:
    """The client's first message of a new stream."""

    codec: str | None = None  # None where the service has one
    num_codebooks: int | None = None  # None: as many as the codec has
    bandwidth_kbps: float | None = None  # the same in other words
    pcm: PcmFormat = "s16le"
    token: str | None = None  # for browsers, which cannot send an Authorization header with a WebSocket

    def to_json(self) -> str:
        """As it travels."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResume:
    """The client's first message where it goes on with a stream whose connection was lost."""

    resume: str  # the resume_token of "started"
    utterance: int = 0  # how many "end" and "reset" messages it has received
    received_samples: int = 0  # of the utterance after those
    token: str | None = None

    def to_json(self) -> str:
        """As it travels."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStarted:
    """The server's first message."""

    codec: str
    sample_rate: int  # Hz
    channels: int
    hop_length: int  # samples per frame
    frame_rate: float  # frames per second
    num_codebooks: int
    codebook_size: int
    pcm: PcmFormat
    stream: str  # what logs call it
    resume_token: str
    resumed: bool = False
    utterance: int = 0  # how many ends and resets the server has received
    received_frames: int = 0  # of the utterance after those

    def to_json(self) -> str:
        """As it travels."""
        return json.dumps({"type": "started", **{name: getattr(self, name) for name in self.__slots__}})

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> StreamStarted:
        """Read it; what a later server adds is passed over.

        Raises:
            ValueError: a field is missing.
        """
        missing = {"codec", "sample_rate", "channels", "num_codebooks", "pcm", "resume_token"} - message.keys()
        if missing:
            raise ValueError(f"the server's first message lacks {', '.join(sorted(missing))}")
        return cls(**{name: message[name] for name in cls.__slots__ if name in message})


def parse_first(text: str) -> StreamStart | StreamResume:
    """What a client wants.

    Raises:
        StreamRefused: not a JSON object, an unknown field, or a value that a field cannot have.
    """
    fields = _json_object(text)
    if fields.pop("type", "start") != "start":
        raise StreamRefused("invalid_message", 'the first message must have "type": "start", or no type')
    kind = StreamResume if "resume" in fields else StreamStart
    unknown = fields.keys() - set(kind.__slots__)
    if unknown:
        allowed = ", ".join(kind.__slots__)
        what = "a resumed stream" if kind is StreamResume else "a new stream"
        raise StreamRefused("invalid_message", f"unknown field {_named(unknown)}: {what} takes {allowed}")
    for name, value in fields.items():
        _check_field(name, value)
    if fields.get("num_codebooks") is not None and fields.get("bandwidth_kbps") is not None:
        raise StreamRefused("invalid_message", "num_codebooks and bandwidth_kbps say the same: give one of them")
    return kind(**{name: value for name, value in fields.items() if value is not None})


def parse_text(text: str) -> None:
    """Check a text message after the first: only {"type": "reset"} is one.

    Raises:
        StreamRefused: anything else.
    """
    if _json_object(text) != {"type": "reset"}:
        raise StreamRefused(
            "wrong_message_type", 'codes are binary messages; the only text after the first is {"type": "reset"}'
        )


def parse_codes(data: bytes, num_codebooks: int, codebook_size: int) -> NDArray[np.uint16]:
    """Codes [K, T] of a binary message.

    Args:
        data: uint16, little-endian, frame by frame: [T, K] in memory.
        num_codebooks: K of the stream.
        codebook_size: V of the codec.

    Raises:
        StreamRefused: too many bytes, bytes that are not whole frames, or a code that is not below V.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise StreamRefused("too_large", f"a message of codes has at most {MAX_MESSAGE_BYTES} bytes, not {len(data)}")
    frame_bytes = 2 * num_codebooks
    if len(data) % frame_bytes:
        raise StreamRefused(
            "invalid_codes",
            f"{len(data)} bytes are not whole frames of {frame_bytes} bytes, {num_codebooks} codes of 2 bytes each",
        )
    codes = np.frombuffer(data, "<u2").reshape(-1, num_codebooks).T
    if codes.size and int(codes.max()) >= codebook_size:
        raise StreamRefused("invalid_codes", f"code {int(codes.max())} is not in 0 to {codebook_size - 1}")
    return codes


def codes_message(codes: NDArray[np.integer]) -> bytes:
    """The binary message of codes [K, T] that were checked: uint16 [T, K] in memory."""
    return np.ascontiguousarray(codes.T, dtype="<u2").tobytes()


def pcm_message(waveform: NDArray[np.float32], pcm: PcmFormat) -> bytes:
    """The binary message of samples [C, n] in [-1, 1]; channels alternate."""
    samples = waveform.T
    if pcm == "s16le":
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767)
    return np.ascontiguousarray(samples, dtype=PCM_TYPES[pcm]).tobytes()


def parse_pcm(data: bytes, channels: int, pcm: PcmFormat) -> NDArray[np.float32] | NDArray[np.int16]:
    """Samples [C, n] of a binary message, in the type that travels: float32 or int16.

    Raises:
        ValueError: bytes that are not whole samples of every channel.
    """
    samples = np.frombuffer(data, PCM_TYPES[pcm])
    if samples.size % channels:
        raise ValueError(f"{samples.size} samples are not a multiple of {channels} channels")
    return samples.reshape(-1, channels).T


def end_message(utterance: int, num_samples: int, num_frames: int) -> str:
    """All samples of an utterance have been sent."""
    return json.dumps({"type": "end", "utterance": utterance, "num_samples": num_samples, "num_frames": num_frames})


def reset_message(utterance: int | None = None) -> str:
    """Asks for a reset; from the server, with the number of the utterance that begins: it has been done."""
    return json.dumps({"type": "reset"} | ({} if utterance is None else {"utterance": utterance}))


def _json_object(text: str) -> dict[str, Any]:
    if len(text) > MAX_TEXT_CHARS:
        raise StreamRefused("too_large", f"a text message has at most {MAX_TEXT_CHARS} characters")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise StreamRefused("invalid_message", "a text message must be a JSON object")
    return fields


_TYPES: dict[str, tuple[type, ...]] = {
    "codec": (str,),
    "num_codebooks": (int,),
    "bandwidth_kbps": (int, float),
    "pcm": (str,),
    "token": (str,),
    "resume": (str,),
    "utterance": (int,),
    "received_samples": (int,),
}
_OPTIONAL = {"codec", "num_codebooks", "bandwidth_kbps", "token"}


def _check_field(name: str, value: Any) -> None:
    allowed = _TYPES[name]
    if value is None and name in _OPTIONAL:
        return
    if not isinstance(value, allowed) or isinstance(value, bool):
        words = {str: "text", int: "a whole number", float: "a number"}
        raise StreamRefused("invalid_message", f"{name} must be {words[allowed[-1]]}")
    if isinstance(value, (int, float)) and not 0 <= value < 2**53:
        raise StreamRefused("invalid_message", f"{name} must be from 0 to 2**53 - 1, not {value:g}")
    if name == "pcm" and value not in get_args(PcmFormat):
        raise StreamRefused("invalid_message", f"pcm must be one of {', '.join(get_args(PcmFormat))}")


def _named(names: set[str]) -> str:
    shown = sorted(names)[0]
    return repr(shown if len(shown) <= 40 else f"{shown[:40]}...")
