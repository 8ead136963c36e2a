"""What a service is started with: codecs, device and limits, from a command line or a file of Ray Serve."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.decoding.engine_settings import EngineSettings
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings
from tokenizer import load_codec
from tokenizer.engine import PRECISIONS, Precision

DEFAULT_CODEC = "speech_24khz"
TOKEN_VARIABLE = "QUANTONE_SERVE_TOKEN"  # noqa: S105 - where the token is, not what it is
MARGIN_S = 30.0  # for what remains to be written when the longest stream has been decoded


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """What every process of a service is told; the bearer token is not among it, see `service_settings`."""

    codecs: tuple[str, ...] = (DEFAULT_CODEC,)
    device: str = "cpu"
    precision: Precision = "exact"  # as in Codec.with_precision
    threads: int | None = None  # of torch, in each process; None leaves it to torch
    engine: EngineSettings = field(default_factory=EngineSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)

    def __post_init__(self) -> None:
        if not self.codecs:
            raise ValueError("a service needs a codec")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device {self.device!r}: it is cpu, cuda or cuda:0")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ServeArguments:
        """Read the arguments of a Ray Serve application: YAML values, or the strings of `serve run NAME=VALUE`.

        Args:
            given: `codecs` (a list, or names with commas between them), `device`, `precision`, `threads`, and any field
                of EngineSettings and ServiceSettings but the token. `drain_timeout_s` is `max_audio_s` by default: a
                stopping process lets the longest stream play to its end.

        Raises:
            ValueError: an unknown name, or a value that is not of its kind.
        """
        own = {"codecs": tuple[str, ...], "device": str, "precision": str, "threads": int | None}
        engine, service = get_type_hints(EngineSettings), get_type_hints(ServiceSettings)
        service.pop("token")
        kinds = own | engine | service
        if "token" in given:
            raise ValueError(f"a token does not belong into a file: give it as {TOKEN_VARIABLE}")
        unknown = sorted(given.keys() - kinds.keys())
        if unknown:
            raise ValueError(f"no such argument of a service: {', '.join(unknown)}; there are {', '.join(kinds)}")
        read = {name: _read(name, value, kinds[name]) for name, value in given.items()}
        read.setdefault("drain_timeout_s", read.get("max_audio_s", ServiceSettings().max_audio_s))
        return cls(
            engine=EngineSettings(**_those_of(engine, read)),
            service=ServiceSettings(**_those_of(service, read)),
            **_those_of(own, read),
        )

    @property
    def stop_timeout_s(self) -> float:
        """Seconds after which a stopping process may be killed: it has drained, and what it had left is written."""
        return self.service.drain_timeout_s + MARGIN_S

    def service_settings(self) -> ServiceSettings:
        """The settings with the bearer token of this process's environment, which no file and no log of Ray shows."""
        return dataclasses.replace(self.service, token=os.environ.get(TOKEN_VARIABLE) or None)


def load_engines(arguments: ServeArguments, metrics: ServiceMetrics) -> dict[str, DecodeEngine]:
    """Load every codec on its device; the engines, by name, are not started yet.

    Raises:
        CheckpointError: no such codec.
        ValueError: two codecs of one name, or no such device on this machine.
    """
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {arguments.device!r}: torch sees no CUDA device here")
    engines: dict[str, DecodeEngine] = {}
    for source in arguments.codecs:
        codec = load_codec(source)
        if codec.name in engines:
            raise ValueError(f"two codecs are named {codec.name!r}: requests could not tell them apart")
        engines[codec.name] = DecodeEngine(
            codec.to(device).with_precision(arguments.precision), arguments.engine, metrics.observer(codec.name)
        )
    return engines


def _those_of(kinds: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    return {name: read[name] for name in kinds if name in read}


def _read(name: str, value: Any, kind: Any) -> Any:
    """A value of YAML, or the text that a command line has in its place."""
    if kind == tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
        raise ValueError(f"{name} is a list of names, not {value!r}")
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError(f"{name} is text, not {value!r}")
    try:
        return _number(str(value), kind)
    except ValueError as error:
        raise ValueError(f"{name} is a {'' if kind is float else 'whole '}number, not {value!r}") from error


def _number(text: str, kind: Any) -> float:
    return float(text) if kind is float else int(text)
