"""Everything that runs: corpus jobs, token datasets, the Polars namespace, the command line.

Importing this package imports nothing else: each public name loads its room, and with it torch, Ray or Polars, when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.clients.decode_client import AsyncDecodeClient, DecodeClient
    from pipelines.corpus.corpus_job import tokenize_corpus
    from pipelines.datasets.dataset import open_dataset
    from pipelines.datasets.verify import verify_dataset
    from pipelines.decoding.decode_actor import DecodeActor
    from pipelines.decoding.decode_engine import DecodeEngine, EngineObserver, EngineSettings
    from pipelines.decoding.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError, StreamClosed
    from pipelines.decoding.decode_job import decode_dataset
    from pipelines.exporting.export import export_tokens
    from pipelines.exporting.export_card import decode_tokens
    from pipelines.exporting.export_sequences import SequenceSettings
    from pipelines.exporting.token_stream import StreamSettings, TokenStream
    from pipelines.serving.service import create_app
    from pipelines.serving.service_settings import ServiceSettings

__all__ = [
    "AsyncDecodeClient",
    "DeadlineExceeded",
    "DecodeActor",
    "DecodeClient",
    "DecodeEngine",
    "Draining",
    "EngineObserver",
    "EngineSettings",
    "Overloaded",
    "SequenceSettings",
    "ServiceError",
    "ServiceSettings",
    "StreamClosed",
    "StreamSettings",
    "TokenStream",
    "create_app",
    "decode_dataset",
    "decode_tokens",
    "export_tokens",
    "open_dataset",
    "tokenize_corpus",
    "verify_dataset",
]

_ROOMS = {
    "AsyncDecodeClient": "pipelines.clients.decode_client",
    "DeadlineExceeded": "pipelines.decoding.decode_errors",
    "DecodeActor": "pipelines.decoding.decode_actor",
    "DecodeClient": "pipelines.clients.decode_client",
    "DecodeEngine": "pipelines.decoding.decode_engine",
    "Draining": "pipelines.decoding.decode_errors",
    "EngineObserver": "pipelines.decoding.decode_engine",
    "EngineSettings": "pipelines.decoding.decode_engine",
    "Overloaded": "pipelines.decoding.decode_errors",
    "SequenceSettings": "pipelines.exporting.export_sequences",
    "ServiceError": "pipelines.decoding.decode_errors",
    "ServiceSettings": "pipelines.serving.service_settings",
    "StreamClosed": "pipelines.decoding.decode_errors",
    "StreamSettings": "pipelines.exporting.token_stream",
    "TokenStream": "pipelines.exporting.token_stream",
    "create_app": "pipelines.serving.service",
    "decode_dataset": "pipelines.decoding.decode_job",
    "decode_tokens": "pipelines.exporting.export_card",
    "export_tokens": "pipelines.exporting.export",
    "open_dataset": "pipelines.datasets.dataset",
    "tokenize_corpus": "pipelines.corpus.corpus_job",
    "verify_dataset": "pipelines.datasets.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
