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
    from pipelines.decode_job import decode_dataset

__all__ = ["DecodeActor", "decode_dataset", "open_dataset", "tokenize_corpus"]

_ROOMS = {
    "DecodeActor": "pipelines.decode_actor",
    "decode_dataset": "pipelines.decode_job",
    "open_dataset": "pipelines.dataset",
    "tokenize_corpus": "pipelines.corpus_job",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
