"""Everything that runs: corpus jobs, token datasets, the Polars namespace, the command line.

Importing this package imports nothing else: each public name loads its room, and with it torch, Ray or Polars, when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.corpus_job import tokenize_corpus
    from pipelines.dataset import open_dataset
    from pipelines.decode_actor import DecodeActor
    from pipelines.decode_client import AsyncDecodeClient, DecodeClient
    from pipelines.decode_engine import DecodeEngine, EngineObserver, EngineSettings
    from pipelines.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError, StreamClosed
    from pipelines.decode_job import decode_dataset
    from pipelines.export import export_tokens
    from pipelines.export_card import decode_tokens
    from pipelines.export_sequences import SequenceSettings
    from pipelines.service import create_app
    from pipelines.service_settings import ServiceSettings
    from pipelines.token_stream import StreamSettings, TokenStream
    from pipelines.verify import verify_dataset

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
    "AsyncDecodeClient": "pipelines.decode_client",
    "DeadlineExceeded": "pipelines.decode_errors",
    "DecodeActor": "pipelines.decode_actor",
    "DecodeClient": "pipelines.decode_client",
    "DecodeEngine": "pipelines.decode_engine",
    "Draining": "pipelines.decode_errors",
    "EngineObserver": "pipelines.decode_engine",
    "EngineSettings": "pipelines.decode_engine",
    "Overloaded": "pipelines.decode_errors",
    "SequenceSettings": "pipelines.export_sequences",
    "ServiceError": "pipelines.decode_errors",
    "ServiceSettings": "pipelines.service_settings",
    "StreamClosed": "pipelines.decode_errors",
    "StreamSettings": "pipelines.token_stream",
    "TokenStream": "pipelines.token_stream",
    "create_app": "pipelines.service",
    "decode_dataset": "pipelines.decode_job",
    "decode_tokens": "pipelines.export_card",
    "export_tokens": "pipelines.export",
    "open_dataset": "pipelines.dataset",
    "tokenize_corpus": "pipelines.corpus_job",
    "verify_dataset": "pipelines.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
