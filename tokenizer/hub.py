"""Codecs from the Hugging Face hub, as far as it can be reached: config.json and weights, nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.checkpoint_file import INDEX_NAME, PICKLE_NAME, SAFETENSORS_NAME, shard_names
from tokenizer.errors import CheckpointError

PROBE_SECONDS = 10

_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Snapshot(NamedTuple):
    """A repository of the hub as it was at one commit: what of it has been fetched."""

    repository: str  # owner/name
    directory: Path  # in huggingface_hub's cache, named after the commit
    unreachable: Exception | None  # why only the cache is asked


def is_repository(source: str) -> bool:
    """Whether a string has the form owner/name."""
    return _REPOSITORY.fullmatch(source) is not None


def download_config(repository: str) -> Snapshot:
    """Fetch config.json, or find it in the cache of earlier downloads.

    Raises:
        CheckpointError: the hub cannot be reached, or does not have it; the text says what to fetch by hand.
    """
    unreachable = _probe(repository)
    snapshot = Snapshot(repository, Path(), unreachable)
    return snapshot._replace(directory=_fetch(snapshot, "config.json", revision=None).parent)


def download_weights(snapshot: Snapshot) -> None:
    """Fetch the weights that belong to the config: safetensors in one file or several, else pytorch_model.bin.

    Raises:
        CheckpointError: as above.
    """
    if _exists(snapshot, SAFETENSORS_NAME):
        return
    if _exists(snapshot, INDEX_NAME):
        for name in shard_names(snapshot.directory / INDEX_NAME):
            _fetch(snapshot, name, revision=snapshot.directory.name)
        return
    _fetch(snapshot, PICKLE_NAME, revision=snapshot.directory.name)


def _exists(snapshot: Snapshot, name: str) -> bool:
    """Fetch a file that a repository may lack."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        _fetch(snapshot, name, revision=snapshot.directory.name)
    except CheckpointError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return False
        raise
    return True


def _probe(repository: str) -> Exception | None:
    """What keeps us from the hub: one short question, as huggingface_hub itself would go on asking for minutes."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, "config.json", endpoint=_endpoint())
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_SECONDS)
    except _hub_errors() as error:
        return error
    return None


def _fetch(snapshot: Snapshot, name: str, *, revision: str | None) -> Path:
    """One file, from the cache or the hub; the commit as revision keeps files of one state together."""
    import huggingface_hub

    download: Callable[..., Any] = huggingface_hub.hf_hub_download
    options = {"revision": revision, "endpoint": _endpoint(), "local_files_only": snapshot.unreachable is not None}
    try:
        return Path(download(snapshot.repository, name, library_name="quantone", **options))
    except _hub_errors() as error:
        raise CheckpointError(_advice(snapshot.repository, name, snapshot.unreachable or error)) from error


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None  # huggingface_hub reads it once, when it is imported


def _hub_errors() -> tuple[type[Exception], ...]:
    """All that huggingface_hub raises about a repository or the network."""
    from huggingface_hub import errors

    http_error = getattr(errors, "HTTPError", OSError)  # httpx's own, of which a broken transfer is one
    return OSError, ValueError, RuntimeError, http_error, errors.EntryNotFoundError


def _advice(repository: str, name: str, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    address = f"https://huggingface.co/{repository}/resolve/main"
    return (
        f"{repository}: no directory of that name here, and {name} cannot be had from the Hugging Face hub ({reason}). "
        f"Download {address}/config.json and {address}/{SAFETENSORS_NAME} where the hub can be reached, "
        "put both into one directory, and pass that directory instead"
    )
