"""Codecs from other libraries' files, and into them: `encodec`, descript's `dac`, and `transformers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from tokenizer import dac_layout, encodec_layout
from tokenizer.checkpoint_file import (
    PICKLE_NAME,
    SAFETENSORS_NAME,
    checked_tensors,
    has_safetensors,
    named_hash,
    read_json,
    read_safetensors,
    read_torch_file,
)
from tokenizer.checkpoint_layout import Layout, to_ours, to_theirs
from tokenizer.codec import Codec
from tokenizer.codec_weights import blamed_on, build_codec, codec_shapes, folded_weights
from tokenizer.errors import CheckpointError
from tokenizer.folded_weights import HOOK_SPELLING, PARAMETRIZED_SPELLING, fold, split
from tokenizer.spec import CodecSpec

LayoutName = Literal["encodec", "dac", "transformers"]


def load_torch_codec(path: Path) -> Codec:
    """A codec from an original EnCodec file (.th) or one of descript's DAC (.pth), told apart by what is in them.

    Raises:
        CheckpointError: neither of them, or damaged.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, neither an EnCodec nor a DAC checkpoint")
    if "best_state" in content or "xp.cfg" in content:
        raise CheckpointError(
            f"{path}: an audiocraft checkpoint. Its networks pad differently from EnCodec's, which is not guessed; "
            "a conversion to transformers' layout says how, and can be loaded"
        )
    with blamed_on(path):
        if "state_dict" in content and "metadata" in content:
            theirs = fold(checked_tensors(content["state_dict"], path))
            spec = dac_layout.spec_from_metadata(content["metadata"])
            return _codec(theirs, spec, dac_layout.descript_layout, path.stem)
        if not any(isinstance(key, str) and key.startswith("encoder.model.0.") for key in content):
            raise ValueError("neither an EnCodec state dict nor a DAC checkpoint with state_dict and metadata")
        theirs = fold(checked_tensors(content, path))
        return _codec(theirs, encodec_layout.spec_from_shapes(theirs), encodec_layout.original_layout, path.stem)


def require_known_model(config: Mapping[str, Any], source: str | Path) -> None:
    """Raise CheckpointError for a config.json of `transformers` whose model we do not compute ourselves."""
    model_type = config.get("model_type")
    if model_type not in ("encodec", "dac"):
        raise CheckpointError(
            f"{source}: model_type {model_type!r:.60} is neither 'encodec' nor 'dac'; "
            f'codecs that only transformers has are loaded as "hf:{source}"'
        )


def load_transformers_directory(directory: Path, *, name: str) -> Codec:
    """A codec from config.json and weights as `transformers` saves them.

    Raises:
        CheckpointError: another model, a setting that is unknown or not supported, or damaged files.
    """
    config_path = directory / "config.json"
    config = read_json(config_path)
    require_known_model(config, directory)
    with blamed_on(config_path):
        spec, layout_of = _described(config)
        codec_shapes(spec)  # before the weights are read: absurd sizes fail here
    if has_safetensors(directory) or not (directory / PICKLE_NAME).exists():
        theirs = read_safetensors(directory)
    else:
        theirs = checked_tensors(read_torch_file(directory / PICKLE_NAME), directory / PICKLE_NAME)
    with blamed_on(directory):
        return _codec(fold(theirs), spec, layout_of, name)


def export_codec(codec: Codec, path: str | Path, *, layout: LayoutName) -> None:
    """Write a codec as another library has it. Loaded from there again, it is the same codec, bit for bit.

    Args:
        codec: one of ours.
        path: a file for "encodec" (.th) and "dac" (.pth, descript's), a directory for "transformers".
        layout: whose.

    Raises:
        CheckpointError: the layout cannot hold this codec.
    """
    path = Path(path)
    writers = {"encodec": _write_encodec, "dac": _write_descript, "transformers": _write_transformers}
    if layout not in writers:
        raise ValueError(f"layout {layout!r} is not one of {sorted(writers)}")
    try:
        writers[layout](codec.spec, folded_weights(codec), path)
    except ValueError as error:
        raise CheckpointError(f"{codec.name}: the layout {layout!r} cannot hold this codec: {error}") from error


def _described(config: dict[str, Any]) -> tuple[CodecSpec, Callable[[Iterable[str]], Layout]]:
    """Spec and names behind a config.json of transformers."""
    if config["model_type"] == "encodec":
        return encodec_layout.spec_from_config(config), encodec_layout.transformers_layout
    spec = dac_layout.spec_from_config(config)
    return spec, lambda keys: dac_layout.transformers_layout(keys, spec)


def _codec(
    theirs: Mapping[str, Tensor], spec: CodecSpec, layout_of: Callable[[Iterable[str]], Layout], name: str
) -> Codec:
    shapes = codec_shapes(spec)
    return build_codec(spec, to_ours(theirs, layout_of(shapes), shapes), shapes, name=name)


def _write_encodec(spec: CodecSpec, ours: Mapping[str, Tensor], path: Path) -> None:
    if spec.family != "seanet":
        raise ValueError(f"a codec of family {spec.family!r} is no EnCodec")
    theirs = to_theirs(ours, encodec_layout.original_layout(ours))
    _require_same(encodec_layout.spec_from_shapes(theirs), spec)
    theirs = split(theirs, encodec_layout.weight_norm_keys(theirs, spec), HOOK_SPELLING)
    _save_torch(_compact(encodec_layout.with_training_buffers(theirs)), path)


def _write_descript(spec: CodecSpec, ours: Mapping[str, Tensor], path: Path) -> None:
    metadata = dac_layout.metadata_from_spec(spec)
    _require_same(dac_layout.spec_from_metadata(metadata), spec)
    theirs = to_theirs(ours, dac_layout.descript_layout(ours))
    theirs = split(dac_layout.as_convolutions(theirs), dac_layout.weight_norm_keys(theirs), HOOK_SPELLING)
    _save_torch({"state_dict": _compact(theirs), "metadata": metadata}, path)


def _write_transformers(spec: CodecSpec, ours: Mapping[str, Tensor], directory: Path) -> None:
    seanet = spec.family == "seanet"
    config = (encodec_layout if seanet else dac_layout).config_from_spec(spec)
    described, layout_of = _described(config)
    _require_same(described, spec)
    theirs = to_theirs(ours, layout_of(ours))
    if seanet:
        keys = encodec_layout.weight_norm_keys(theirs, spec)
        theirs = encodec_layout.with_training_buffers(split(theirs, keys, PARAMETRIZED_SPELLING))
    else:
        theirs = dac_layout.as_convolutions(theirs)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SAFETENSORS_NAME).write_bytes(save(_compact(theirs), metadata={"format": "pt"}))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _require_same(described: CodecSpec, spec: CodecSpec) -> None:
    """Refuse a layout that would describe another codec than the one that is written."""
    theirs, ours = described.to_dict(), spec.to_dict()
    theirs, ours = theirs | theirs.pop("network"), ours | ours.pop("network")
    differing = [
        f"{key} {ours.get(key)} would become {theirs.get(key)}"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    if differing:
        raise ValueError(", ".join(differing))


def _save_torch(content: dict[str, Any], path: Path) -> None:
    if named_hash(path) is not None:
        raise ValueError(f"the end of {path.name} would be taken for the start of the file's sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def _compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor on its own: slices of one level would be written with all levels, each time."""
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
