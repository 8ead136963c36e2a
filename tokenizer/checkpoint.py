"""Codecs on disk: a directory with config.json and safetensors, split where a file would pass 15 MiB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tokenizer.codec import Codec
from tokenizer.errors import CheckpointError
from tokenizer.spec import CodecSpec

MODELS = Path(__file__).parent / "models"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 15 * 2**20
INDEX_NAME = "model.safetensors.index.json"  # names as on the Hugging Face hub


def bundled_codecs() -> list[str]:
    """Names that `load_codec` knows without any download."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def load_codec(source: str | Path) -> Codec:
    """Load a codec for inference, in float32 on the CPU.

    Args:
        source: a bundled name such as "speech_24khz", or a directory written by `save_codec`.

    Raises:
        CheckpointError: nothing of that name, or a directory that does not hold a whole codec.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = MODELS / str(source)
        if str(source) not in bundled_codecs():
            raise CheckpointError(
                f"no codec {str(source)!r}: not a directory, and the bundled ones are {', '.join(bundled_codecs())}"
            )
    config = _read_json(directory / "config.json")
    if config.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{directory}: format {config.get('format')!r}, this version reads {FORMAT_VERSION}")
    try:
        codec = Codec(CodecSpec.from_dict(config["spec"]), name=str(config["name"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    _fill(codec, _read_tensors(directory), directory)
    return codec.eval().requires_grad_(requires_grad=False)


def save_codec(codec: Codec, directory: str | Path, *, half: bool = False) -> None:
    """Write config.json and the weights; `half` stores them in 16 bits, which makes it another codec by its sha256."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {key: value.detach().cpu().to(dtype).contiguous() for key, value in codec.state_dict().items()}
    for stale in directory.glob("model*.safetensors*"):
        stale.unlink()
    shards = _split(tensors)
    if len(shards) == 1:
        _write(shards[0], directory / "model.safetensors")
    else:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        for name, shard in zip(names, shards, strict=True):
            _write(shard, directory / name)
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}, indent=1) + "\n")
    config = {"format": FORMAT_VERSION, "name": codec.name, "spec": codec.spec.to_dict()}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))  # safetensors' own save_file lets nobody but the owner read


def _split(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Consecutive tensors in files under MAX_FILE_BYTES: git hosts and reviewers like small files."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        num_bytes = value.numel() * value.element_size()
        if size and size + num_bytes > MAX_FILE_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += num_bytes
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    names = ["model.safetensors"]
    if (directory / INDEX_NAME).exists():
        weight_map = _read_json(directory / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{directory / INDEX_NAME}: no weight_map")
        names = sorted({Path(str(name)).name for name in weight_map.values()})  # never outside the directory
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors.update(load_file(directory / name))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / name}: {error}") from error
    return tensors


def _fill(codec: Codec, tensors: dict[str, Tensor], directory: Path) -> None:
    expected = codec.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"{directory}: weights missing {missing[:3]}, not of this codec {unknown[:3]}")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(f"{directory}: {key} is {list(value.shape)}, not {list(expected[key].shape)}")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{directory}: {key} has values that are NaN or infinite")
    codec.load_state_dict({key: value.float() for key, value in tensors.items()})
