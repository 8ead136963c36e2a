"""Tensors and JSON out of files that nobody vouches for: bounded in size, and without running what they may hold."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenizer.errors import CheckpointError

MAX_BYTES = 8 * 2**30  # of one codec: the largest published one is 0.4 GB, the rest is room for yours
MAX_JSON_BYTES = 16 * 2**20
SAFETENSORS_NAME = "model.safetensors"  # names as on the Hugging Face hub
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAME = "pytorch_model.bin"

_HASH_SUFFIX = re.compile(r"-([0-9a-f]{8})")
_ZIP_START = b"PK\x03\x04"
_CODE_REFUSED = re.compile(r"unsupported (global|class)|reduce|blocklisted", re.IGNORECASE)  # torch's words for it


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: no file, no JSON, or not an object.
    """
    _require_size(path, MAX_JSON_BYTES)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def read_safetensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the files that model.safetensors.index.json lists.

    Raises:
        CheckpointError: a file is missing, damaged or too large.
    """
    tensors: dict[str, Tensor] = {}
    room = MAX_BYTES
    for name in _safetensors_names(directory):
        path = directory / name
        room -= _require_size(path, room)
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}") from error
    return tensors


def has_safetensors(directory: Path) -> bool:
    """Whether a directory has weights in safetensors, in one file or listed by an index."""
    return (directory / SAFETENSORS_NAME).exists() or (directory / INDEX_NAME).exists()


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain values. A hash in the file's name is checked.

    Raises:
        CheckpointError: missing, damaged, cut off, too large, not what its name says, or a file that holds code.
    """
    _require_size(path, MAX_BYTES)
    _require_hash(path)
    try:
        _require_plain_archive(path)
        with warnings.catch_warnings():  # about pickles that torch did not write: an error follows, or they are fine
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _CODE_REFUSED.search(str(error)):
            raise CheckpointError(
                f"{path}: the file holds code beside its weights. It was not run, and the file is not loaded: "
                "save the tensors alone, as a state dict"
            ) from error
        raise CheckpointError(f"{path}: not a torch checkpoint, or a damaged one; nothing in it was run") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:  # all that torch's reader raises on bytes that are not its own
        raise CheckpointError(f"{path}: damaged, cut off, or not a torch checkpoint ({error})") from error


def checked_tensors(value: Any, source: str | Path) -> dict[str, Tensor]:
    """A state dict from a pickle, whose tensors are what they seem: in memory, and no larger than what was read.

    Raises:
        CheckpointError: not a dict of names and plain tensors.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CheckpointError(f"{source}: no state dict in it, which is names and tensors")
    room = MAX_BYTES
    for key, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source}: {key} is {type(tensor).__name__}, not a tensor")
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise CheckpointError(f"{source}: {key} is not a plain tensor")
        num_bytes = tensor.numel() * tensor.element_size()
        room -= num_bytes
        if num_bytes > tensor.untyped_storage().nbytes() or room < 0:  # a view can repeat one number a billion times
            raise CheckpointError(f"{source}: {key} claims more values than the file holds")
    return {key: tensor.detach() for key, tensor in value.items()}


def _require_size(path: Path, limit: int) -> int:
    """Bytes of a file that may be read."""
    try:
        num_bytes = path.stat().st_size
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file")
    if num_bytes == 0:
        raise CheckpointError(f"{path}: the file is empty")
    if num_bytes > limit:
        raise CheckpointError(f"{path}: {num_bytes} bytes, at most {limit} are read")
    return num_bytes


def named_hash(path: Path) -> str | None:
    """The start of the sha256 that a name like encodec_24khz-d7cc33bc.th promises, as torch.hub has it."""
    found = _HASH_SUFFIX.search(path.stem) if path.suffix == ".th" else None
    return found[1] if found is not None and path.stem.endswith(found[0]) else None


def _require_hash(path: Path) -> None:
    expected = named_hash(path)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise CheckpointError(
            f"{path}: corrupt or incomplete download: its sha256 starts with {found[:8]}, its name says {expected}"
        )


def _require_plain_archive(path: Path) -> None:
    """torch.save stores without compression, so an honest archive unpacks to no more than the file has."""
    with path.open("rb") as file:
        if file.read(4) != _ZIP_START:
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_BYTES:
        raise CheckpointError(f"{path}: unpacks to {unpacked} bytes, at most {MAX_BYTES} are read")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: a compressed archive, which torch.save never writes")


def _safetensors_names(directory: Path) -> list[str]:
    if (directory / SAFETENSORS_NAME).exists() or not (directory / INDEX_NAME).exists():
        return [SAFETENSORS_NAME]
    return shard_names(directory / INDEX_NAME)


def shard_names(index: Path) -> list[str]:
    """File names that an index lists, never one outside its own directory.

    Raises:
        CheckpointError: the index is damaged or lists nothing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    return sorted({Path(str(name)).name for name in weight_map.values()})
