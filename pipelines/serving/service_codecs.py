"""The codecs of a service: which there are, which one a request means, and how they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.codes_body import CodesLimits
from pipelines.serving.request_schemas import CodecCard, CodecList, HealthAnswer
from pipelines.serving.service_errors import RequestError, invalid_argument, too_large
from pipelines.serving.service_settings import ServiceSettings


class ServedCodecs:
    """Codecs by name, each with its engine.

    Args:
        engines: at least one; by the names that requests use.
        settings: of the service.
    """

    def __init__(self, engines: Mapping[str, DecodeEngine], settings: ServiceSettings) -> None:
        if not engines:
            raise ValueError("a service needs a codec")
        self.engines, self._settings = dict(engines), settings
        self.started = self.draining = False

    def choose(self, name: str | None) -> tuple[str, DecodeEngine]:
        """The codec that a request names, or the only one.

        Raises:
            RequestError: there is none of the name, or none was named and there are several.
        """
        if name is None:
            if len(self.engines) > 1:
                raise invalid_argument(f"codec: name one of {', '.join(self.engines)}")
            return next(iter(self.engines.items()))
        if name not in self.engines:
            text = f"codec: {name[:100]!r} is not served here, choose one of {', '.join(self.engines)}"
            raise RequestError(text, status=404, kind="unknown_codec")
        return name, self.engines[name]

    def max_frames(self, engine: DecodeEngine) -> int:
        """Frames of one request, for the limit of the service in seconds."""
        spec = engine.codec.spec
        return spec.num_frames(int(self._settings.max_audio_s * spec.sample_rate))

    def check_frames(self, engine: DecodeEngine, count: int) -> None:
        """Refuse codes that are too long.

        Raises:
            RequestError: they are.
        """
        if count > self.max_frames(engine):
            raise too_large(f"codes have {count} frames, at most {self.max_frames(engine)} are decoded at once")

    def codes_limits(self) -> CodesLimits:
        """The largest codes that any of them takes: what holds before the codec is known."""
        return CodesLimits(
            max_levels=max(engine.codec.spec.num_codebooks for engine in self.engines.values()),
            max_frames=max(map(self.max_frames, self.engines.values())),
        )

    def health(self) -> HealthAnswer:
        """How the service is."""
        states = {name: engine.health() for name, engine in self.engines.items()}
        status = "ok" if all(state.ok for state in states.values()) else "failing"
        if not self.started:
            status = "starting"
        elif self.draining and status == "ok":
            status = "draining"
        return HealthAnswer.model_validate(
            {"status": status, "codecs": {name: dataclasses.asdict(state) for name, state in states.items()}}
        )


def codecs_router(served: ServedCodecs) -> APIRouter:
    """`GET /v1/codecs`, `/healthz` and `/readyz`."""
    router = APIRouter()

    @router.get("/v1/codecs", tags=["codecs"], summary="The codecs that are served")
    async def codecs() -> CodecList:
        """What each codec is, in the numbers that callers need."""
        return CodecList(codecs=[_card(name, engine, served) for name, engine in served.engines.items()])

    failing: dict[int | str, dict[str, Any]] = {503: {"model": HealthAnswer, "description": "It does not."}}

    @router.get("/healthz", tags=["health"], summary="Whether the service works", responses=failing)
    async def healthz(response: Response) -> HealthAnswer:
        """200 while the model thread of every codec lives and gets on, also while the service drains."""
        health = served.health()
        response.status_code = 200 if health.status in ("ok", "draining") else 503
        return health

    @router.get("/readyz", tags=["health"], summary="Whether the service takes requests", responses=failing)
    async def readyz(response: Response) -> HealthAnswer:
        """200 from when every codec is ready until the service begins to drain."""
        health = served.health()
        response.status_code = 200 if health.status == "ok" else 503
        return health

    return router


def _card(name: str, engine: DecodeEngine, served: ServedCodecs) -> CodecCard:
    codec, spec = engine.codec, engine.codec.spec
    return CodecCard(
        name=name,
        sha256=codec.sha256,
        sample_rate=spec.sample_rate,
        channels=spec.channels,
        hop_length=spec.hop_length,
        frame_rate=float(spec.frame_rate),
        num_codebooks=spec.num_codebooks,
        codebook_size=spec.codebook_size,
        bandwidth_kbps=spec.bandwidth_kbps,
        bandwidths_kbps=list(spec.bandwidths_kbps),
        level_kbps=spec.level_kbps,
        streamable=codec.streamable,
        has_scales=spec.has_scales,
        max_frames=served.max_frames(engine),
    )
