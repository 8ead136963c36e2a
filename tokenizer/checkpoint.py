"""Codecs on disk: `load_codec` finds out what a source is; our own directories are read and written here.

Ours are config.json and safetensors, split where a file would pass 15 MiB.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from tokenizer import hub
from tokenizer.checkpoint_file import INDEX_NAME, SAFETENSORS_NAME, read_json, read_safetensors
from tokenizer.codec import Codec
from tokenizer.codec_weights import blamed_on, build_codec, codec_shapes, folded_weights
from tokenizer.errors import CheckpointError
from tokenizer.foreign_checkpoint import load_torch_codec, load_transformers_directory, require_known_model
from tokenizer.spec import CodecSpec

MODELS = Path(__file__).parent / "models"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 15 * 2**20
TRANSFORMERS_PREFIX = "hf:"


def bundled_codecs() -> list[str]:
    """Names that `load_codec` knows without any download."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def load_codec(source: str | Path) -> Codec:
    """Load a codec for inference, in float32 on the CPU.

    Args:
        source: one of
            a bundled name, such as "speech_24khz";
            a directory written by `save_codec`, or one in the layout of `transformers` (EnCodec, DAC);
            an original EnCodec file (.th), or one of descript's DAC (.pth);
            the name of such a directory on the Hugging Face hub, "facebook/encodec_24khz", if that can be reached;
            "hf:" and a directory or name of the hub, for codecs that only `transformers` has.

    Raises:
        CheckpointError: none of these, or not a whole codec. Files are never run, only read.
    """
    text = str(source)
    if text.startswith(TRANSFORMERS_PREFIX):
        from tokenizer.transformers_codec import load_transformers_codec

        return load_transformers_codec(text.removeprefix(TRANSFORMERS_PREFIX))
    path = Path(source)
    with blamed_on(text[:200]):
        is_directory, is_file = _kind(path)
    if is_directory and text:
        return _load_directory(path, name=path.resolve().name)
    if is_file:
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path}: weights alone; pass the directory, which has config.json beside them")
        return load_torch_codec(path)
    if text in bundled_codecs():
        return _load_directory(MODELS / text, name=text)
    if isinstance(source, str) and hub.is_repository(text) and path.suffix not in (".th", ".pth"):
        return _load_from_hub(text)
    raise CheckpointError(
        f"no codec {text[:200]!r}: neither a file, nor a directory, nor a name on the Hugging Face hub (owner/name), "
        f"and the bundled ones are {', '.join(bundled_codecs())}"
    )


def save_codec(codec: Codec, directory: str | Path, *, half: bool = False) -> None:
    """Write config.json and the weights; `half` stores them in 16 bits, which makes it another codec by its sha256."""
    directory = Path(directory)
    with blamed_on(codec.name):
        weights = folded_weights(codec)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {key: value.to(dtype).contiguous() for key, value in weights.items()}
    for stale in directory.glob("model*.safetensors*"):
        stale.unlink()
    shards = _split(tensors)
    if len(shards) == 1:
        _write(shards[0], directory / SAFETENSORS_NAME)
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


def _kind(path: Path) -> tuple[bool, bool]:
    try:
        return path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long for any file
        raise ValueError(error.strerror) from error


def _load_directory(directory: Path, *, name: str) -> Codec:
    """Ours by its "format", that of transformers by its "model_type"."""
    config = read_json(directory / "config.json")
    if "format" not in config and "model_type" in config:
        return load_transformers_directory(directory, name=name)
    if config.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{directory}: format {config.get('format')!r:.60}, this version reads {FORMAT_VERSION}")
    with blamed_on(directory / "config.json"):
        spec, own_name = CodecSpec.from_dict(config["spec"]), str(config["name"])
        shapes = codec_shapes(spec)
    tensors = read_safetensors(directory)
    with blamed_on(directory):
        return build_codec(spec, tensors, shapes, name=own_name)


def _load_from_hub(repository: str) -> Codec:
    snapshot = hub.download_config(repository)
    config = read_json(snapshot.directory / "config.json")
    if "format" not in config:
        require_known_model(config, repository)  # before gigabytes of something else are downloaded
    hub.download_weights(snapshot)
    return _load_directory(snapshot.directory, name=repository)
