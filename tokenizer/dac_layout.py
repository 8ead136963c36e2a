"""DAC's checkpoints, descript's own and those of `transformers`: names, settings, both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tokenizer.checkpoint_layout import Layout
from tokenizer.config_fields import GENERIC_FIELDS, ConfigFields
from tokenizer.network_config import DacConfig
from tokenizer.spec import CodecSpec

_LEVELS = {
    "quantizer.codebooks": "quantizer.quantizers.{}.codebook.weight",
    "quantizer.in_weight": "quantizer.quantizers.{}.in_proj.weight",
    "quantizer.in_bias": "quantizer.quantizers.{}.in_proj.bias",
    "quantizer.out_weight": "quantizer.quantizers.{}.out_proj.weight",
    "quantizer.out_bias": "quantizer.quantizers.{}.out_proj.bias",
}
_UNIT = {"block.0": "snake1", "block.1": "conv1", "block.2": "snake2", "block.3": "conv2"}  # of a residual unit
_TRAINING_FIELDS = frozenset({"quantizer_dropout", "commitment_loss_weight", "codebook_loss_weight"})


class _Names(NamedTuple):
    """What one library calls the settings that both have."""

    encoder_width: str
    decoder_width: str
    latent_dim: str
    strides: str
    decoder_strides: str
    sample_rate: str


_DESCRIPT_NAMES = _Names("encoder_dim", "decoder_dim", "latent_dim", "encoder_rates", "decoder_rates", "sample_rate")
_TRANSFORMERS_NAMES = _Names(
    "encoder_hidden_size",
    "decoder_hidden_size",
    "hidden_size",
    "downsampling_ratios",
    "upsampling_ratios",
    "sampling_rate",
)


def descript_layout(keys: Iterable[str]) -> Layout:
    """Names in descript's files, for our keys of the same codec: theirs have no module around a convolution."""
    return Layout({key: _descript_name(key) for key in keys if key not in _LEVELS}, _LEVELS)


def transformers_layout(keys: Iterable[str], spec: CodecSpec) -> Layout:
    """Names in `transformers`, for our keys of the same codec."""
    layers = _transformers_layers(len(_settings(spec).strides))
    networks = {}
    for key in keys:
        if key not in _LEVELS:
            layer, _, name = _descript_name(key).rpartition(".")
            networks[key] = f"{layers[layer]}.{name}"
    return Layout(networks, _LEVELS)


def weight_norm_keys(tensors: Iterable[str]) -> list[str]:
    """Which of descript's tensors weight norm splits: the weights of all convolutions, not the codebooks."""
    return [key for key in tensors if key.endswith(".weight") and not key.endswith(".codebook.weight")]


def as_convolutions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections to and from the codebooks [out, in] as both libraries have them: convolutions [out, in, 1]."""
    return {key: value[..., None] if key.endswith("_proj.weight") else value for key, value in tensors.items()}


def spec_from_metadata(metadata: Any) -> CodecSpec:
    """The spec that the metadata of descript's files describe.

    Raises:
        ValueError: no settings in it, of the wrong type, or a decoder that is not the encoder's mirror image.
    """
    settings = metadata.get("kwargs") if isinstance(metadata, dict) else None
    if not isinstance(settings, dict):
        raise ValueError("metadata without kwargs: the settings of the network are missing")  # noqa: TRY004 - no mistake of ours
    # what is in it beyond these fields is ignored: descript's own loader drops it, too
    return _spec(ConfigFields(settings), _DESCRIPT_NAMES, default_rate=44100)


def spec_from_config(config: Mapping[str, Any]) -> CodecSpec:
    """The spec that a config.json of `transformers` describes.

    Raises:
        ValueError: a setting is unknown, of the wrong type, or contradicts another.
    """
    fields = ConfigFields(config)
    spec = _spec(fields, _TRANSFORMERS_NAMES, default_rate=16000)
    fields.require("hop_length", fields.integer("hop_length", spec.hop_length), spec.hop_length)
    fields.refuse_others(GENERIC_FIELDS | _TRAINING_FIELDS)
    return spec


def metadata_from_spec(spec: CodecSpec) -> dict[str, Any]:
    """The metadata of descript's files for a dac codec. Raises ValueError for other families."""
    network = _settings(spec)
    settings = {
        "encoder_dim": network.encoder_width,
        "encoder_rates": list(network.strides),
        "latent_dim": spec.latent_dim,
        "decoder_dim": network.decoder_width,
        "decoder_rates": list(reversed(network.strides)),
        "n_codebooks": spec.num_codebooks,
        "codebook_size": spec.codebook_size,
        "codebook_dim": network.codebook_dim,
        "quantizer_dropout": 0.0,
        "sample_rate": spec.sample_rate,
    }
    return {"kwargs": settings}


def config_from_spec(spec: CodecSpec) -> dict[str, Any]:
    """The config.json of `transformers` for a dac codec. Raises ValueError for other families."""
    network = _settings(spec)
    return {
        "architectures": ["DacModel"],
        "model_type": "dac",
        "dtype": "float32",
        "sampling_rate": spec.sample_rate,
        "encoder_hidden_size": network.encoder_width,
        "decoder_hidden_size": network.decoder_width,
        "hidden_size": spec.latent_dim,
        "downsampling_ratios": list(network.strides),
        "upsampling_ratios": list(reversed(network.strides)),
        "hop_length": spec.hop_length,
        "n_codebooks": spec.num_codebooks,
        "codebook_size": spec.codebook_size,
        "codebook_dim": network.codebook_dim,
    }


def _settings(spec: CodecSpec) -> DacConfig:
    if not isinstance(spec.network, DacConfig):
        raise ValueError(f"a codec of family {spec.family!r} is no DAC")  # noqa: TRY004 - the caller's file, not our bug
    return spec.network


def _spec(fields: ConfigFields, names: _Names, *, default_rate: int) -> CodecSpec:
    network = DacConfig(
        encoder_width=fields.integer(names.encoder_width, 64),
        decoder_width=fields.integer(names.decoder_width, 1536),
        strides=fields.integers(names.strides, (2, 4, 8, 8)),
        codebook_dim=_codebook_dim(fields),
    )
    mirrored = network.strides[::-1]
    fields.require(names.decoder_strides, fields.integers(names.decoder_strides, mirrored), mirrored)
    return CodecSpec(
        family="dac",
        sample_rate=fields.integer(names.sample_rate, default_rate),
        hop_length=math.prod(network.strides),
        num_codebooks=fields.integer("n_codebooks", 9),
        codebook_size=fields.integer("codebook_size", 1024),
        latent_dim=fields.optional_integer(names.latent_dim) or network.encoder_width * 2 ** len(network.strides),
        network=network,
    )


def _codebook_dim(fields: ConfigFields) -> int:
    """One size for all levels; descript's may be a list of one a level."""
    try:
        return fields.integer("codebook_dim", 8)
    except ValueError:
        sizes = fields.integers("codebook_dim", (8,))
        if len(set(sizes)) != 1:
            raise ValueError("codebook_dim differs between levels, which is not supported here") from None
        return sizes[0]


def _descript_name(key: str) -> str:
    return re.sub(r"\.(conv|convtr)\.(weight|bias)$", r".\2", key)


def _transformers_layers(num_strides: int) -> dict[str, str]:
    """Descript's layers by the names that transformers gives them."""
    names = {"encoder.block.0": "encoder.conv1", "decoder.model.0": "decoder.conv1"}
    for i in range(num_strides):
        encoder, decoder = f"encoder.block.{i + 1}.block", f"decoder.model.{i + 1}.block"
        for unit in range(3):
            for theirs, name in _UNIT.items():
                names[f"{encoder}.{unit}.{theirs}"] = f"encoder.block.{i}.res_unit{unit + 1}.{name}"
                names[f"{decoder}.{unit + 2}.{theirs}"] = f"decoder.block.{i}.res_unit{unit + 1}.{name}"
        names |= {f"{encoder}.3": f"encoder.block.{i}.snake1", f"{encoder}.4": f"encoder.block.{i}.conv1"}
        names |= {f"{decoder}.0": f"decoder.block.{i}.snake1", f"{decoder}.1": f"decoder.block.{i}.conv_t1"}
    end = num_strides + 1
    names |= {f"encoder.block.{end}": "encoder.snake1", f"encoder.block.{end + 1}": "encoder.conv2"}
    return names | {f"decoder.model.{end}": "decoder.snake1", f"decoder.model.{end + 1}": "decoder.conv2"}
