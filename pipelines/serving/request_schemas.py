"""What requests and answers look like, for checking options and for OpenAPI: the only pydantic models of Quantone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.serving.codes_body import MAX_SCALES
from pipelines.serving.service_errors import invalid_argument, validation_text

ResponseFormat = Literal["wav", "flac", "opus", "mp3", "pcm"]
StreamFormat = Literal["audio", "sse"]
CodesFormat = Literal["json", "msgpack", "npy", "arrow"]

CodecName = Annotated[
    str | None, Field(max_length=200, description="Its name in /v1/codecs; may be left out where one codec is served.")
]
Deadline = Annotated[
    float | None,
    Field(
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds from the start of the request, after which no more work is done for it.",
    ),
]
_EXAMPLE_CODES: list[Any] = [[13, 2, 9, 4], [7, 0, 11, 5]]


class DecodeOptions(BaseModel):
    """How codes become sound; in the query, or beside codes in JSON and msgpack, which count more."""

    model_config = ConfigDict(extra="forbid")

    codec: CodecName = None
    num_samples: Annotated[
        int | None, Field(ge=1, le=2**40, description="Of each channel; as encoding gave it. Default: whole frames.")
    ] = None
    bandwidth_kbps: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Leave out finer levels of the codes.")
    ] = None
    response_format: ResponseFormat = Field("wav", description="pcm is int16, little-endian, channels interleaved.")
    stream_format: StreamFormat = Field("audio", description="audio is the file itself; sse, events with pieces of it.")
    deadline_s: Deadline = None


class DecodeBodyOptions(DecodeOptions):
    """What else a body may hold."""

    scales: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None,
        Field(max_length=MAX_SCALES, description="Loudness of each segment, for codecs that have scales."),
    ] = None


class DecodeRequest(DecodeBodyOptions):
    """Codes and how to decode them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"codes": _EXAMPLE_CODES},
                {"codec": "speech_24khz", "codes": _EXAMPLE_CODES, "num_samples": 1200, "response_format": "flac"},
                {"codes": _EXAMPLE_CODES, "response_format": "pcm", "stream_format": "sse"},
            ]
        },
    )

    codes: Annotated[
        list[Annotated[list[Annotated[int, Field(ge=0, le=65535)]], Field(min_length=1)]],
        Field(min_length=1, description="K lists of T whole numbers: level by level, the coarsest first."),
    ]


class EncodeOptions(BaseModel):
    """How sound becomes codes."""

    model_config = ConfigDict(extra="forbid")

    codec: CodecName = None
    bandwidth_kbps: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="Default: all levels.")] = None
    format: CodesFormat = Field("json", description="Of the answer; msgpack has levels as bytes of uint16.")
    deadline_s: Deadline = None


class EncodeAnswer(BaseModel):
    """Codes of a recording, with all that decoding needs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "codec": "speech_24khz",
                    "codec_sha256": "6f0d…",
                    "sample_rate": 24000,
                    "num_samples": 1200,
                    "bandwidth_kbps": 1.5,
                    "codes": _EXAMPLE_CODES,
                }
            ]
        }
    )

    codec: str
    codec_sha256: str = Field(description="Identity of the codec: equal codecs give equal codes.")
    sample_rate: int = Field(description="Hz, the codec's.")
    num_samples: int = Field(description="Of each channel, at that rate; decode asks for it.")
    bandwidth_kbps: float
    scales: list[float] | None = Field(None, description="Only of codecs that have scales.")
    codes: list[list[int]] = Field(description="K levels of T codes.")


class CodecCard(BaseModel):
    """A codec that is served."""

    name: str
    sha256: str
    sample_rate: int = Field(description="Hz.")
    channels: int
    hop_length: int = Field(description="Samples of a frame.")
    frame_rate: float = Field(description="Frames per second.")
    num_codebooks: int
    codebook_size: int
    bandwidth_kbps: float = Field(description="With all codebooks.")
    bandwidths_kbps: list[float] = Field(description="Customary ones; every multiple of the smallest level works.")
    level_kbps: float = Field(description="Of one codebook.")
    streamable: bool
    has_scales: bool
    max_frames: int = Field(description="Of one request.")


class CodecList(BaseModel):
    """All codecs of this service."""

    codecs: list[CodecCard]


class EngineState(BaseModel):
    """How the decoder of one codec is."""

    ok: bool
    reason: str
    active_streams: int
    queued: int
    last_step_age_s: float


class HealthAnswer(BaseModel):
    """Whether the service works."""

    status: Literal["ok", "failing", "starting", "draining"]
    codecs: dict[str, EngineState]


class ErrorDetail(BaseModel):
    """One error."""

    type: str = Field(description="One word, for programs.")
    message: str = Field(description="One sentence, for people.")


class ErrorAnswer(BaseModel):
    """Every error of the service."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "type": "invalid_codes",
                        "message": "codes range from 0 to 1024, allowed is 0 to 1023",
                    }
                }
            ]
        }
    )

    error: ErrorDetail


def merged_options(query: DecodeOptions, body: dict[str, Any]) -> DecodeBodyOptions:
    """Options of a request to decode; what stands in its body counts more.

    Raises:
        RequestError: an option that does not exist, or a value that it cannot have.
    """
    try:
        return DecodeBodyOptions.model_validate({**query.model_dump(exclude_unset=True), **body}, strict=True)
    except ValidationError as error:
        raise invalid_argument(validation_text(error.errors(include_url=False))) from error
