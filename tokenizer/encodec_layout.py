"""EnCodec's checkpoints, those of the `encodec` package and those of `transformers`: names, settings, both ways.

Original files hold a state dict alone, so the spec is read off the shapes. What leaves no trace there (sample rate,
padding, segments) is that of the released models: 48 kHz for files with group norm, 24 kHz for all others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenizer.checkpoint_layout import Layout
from tokenizer.config_fields import GENERIC_FIELDS, ConfigFields
from tokenizer.network_config import Norm, PadMode, SeanetConfig
from tokenizer.presets import PRESETS
from tokenizer.spec import CodecSpec, SegmentConfig

_ORIGINAL_LEVEL = "quantizer.vq.layers.{}._codebook."
_TRANSFORMERS_LEVEL = "quantizer.layers.{}.codebook."
_NORMS: tuple[Norm, ...] = ("weight_norm", "time_group_norm")
_PAD_MODES: tuple[PadMode, ...] = ("reflect", "constant")
_VECTORS_PER_ENTRY = 128.0  # well above the two below which `encodec` replaces an entry as dead
_TRAINING_BUFFERS = (".inited", ".cluster_size", ".embed_avg")  # of the codebooks' moving averages


def original_layout(keys: Iterable[str]) -> Layout:
    """Names in files of the `encodec` package, for our keys of the same codec."""
    keys = [key for key in keys if key != "quantizer.codebooks"]
    transposed = {key.removesuffix(".convtr.weight") for key in keys if key.endswith(".convtr.weight")}
    networks = {}
    for key in keys:
        layer, _, name = key.rpartition(".")
        if layer.endswith((".conv", ".convtr")):
            layer = f"{layer}.{layer.rpartition('.')[2]}"
        elif layer.endswith(".norm"):
            parent = layer.removesuffix(".norm")
            layer = f"{parent}.convtr.norm" if parent in transposed else f"{parent}.conv.norm"
        networks[key] = f"{layer}.{name}"
    return Layout(networks, {"quantizer.codebooks": f"{_ORIGINAL_LEVEL}embed"}, _is_training_buffer)


def transformers_layout(keys: Iterable[str]) -> Layout:
    """Names in `transformers`, for our keys of the same codec: `conv` also where the convolution is transposed."""
    networks = {
        key: re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", key).replace(".convtr.", ".conv.")
        for key in keys
        if key != "quantizer.codebooks"
    }
    return Layout(networks, {"quantizer.codebooks": f"{_TRANSFORMERS_LEVEL}embed"}, _is_training_buffer)


def weight_norm_keys(tensors: Iterable[str], spec: CodecSpec) -> list[str]:
    """Which of their tensors weight norm splits: all convolutions, unless the network has group norm instead."""
    if isinstance(spec.network, SeanetConfig) and spec.network.norm == "time_group_norm":
        return []
    return [key for key in tensors if key.endswith(("conv.weight", "convtr.weight"))]


def with_training_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add what both libraries keep beside each codebook: as if every entry were in use, so that training may go on."""
    full = dict(tensors)
    for key, codebook in tensors.items():
        if key.endswith("codebook.embed"):
            level = key.removesuffix("embed")
            full[f"{level}inited"] = torch.ones(1)
            full[f"{level}cluster_size"] = torch.full((codebook.shape[0],), _VECTORS_PER_ENTRY)
            full[f"{level}embed_avg"] = codebook * _VECTORS_PER_ENTRY
    return full


def spec_from_shapes(tensors: Mapping[str, Tensor]) -> CodecSpec:
    """The spec of an original file, from the shapes of its tensors, weight norm folded.

    Raises:
        ValueError: these are not the tensors of an EnCodec.
    """
    grouped = "encoder.model.0.conv.norm.weight" in tensors
    preset = PRESETS["encodec_48khz" if grouped else "encodec_24khz"]
    network = _network_from_shapes(tensors, grouped=grouped)
    codebook_size, latent_dim = _shape(tensors, f"{_ORIGINAL_LEVEL.format(0)}embed", num_dims=2)
    return CodecSpec(
        family="seanet",
        sample_rate=preset.sample_rate,
        hop_length=math.prod(network.strides),
        num_codebooks=1 + max(_positions(tensors, r"quantizer\.vq\.layers\.([0-9]+)\..*"), default=0),
        codebook_size=codebook_size,
        channels=_shape(tensors, "encoder.model.0.conv.conv.weight")[1],
        latent_dim=latent_dim,
        network=network,
        segment=preset.segment,
    )


def spec_from_config(config: Mapping[str, Any]) -> CodecSpec:
    """The spec that a config.json of `transformers` describes.

    Raises:
        ValueError: a setting is unknown, of the wrong type, or one that our networks do not have.
    """
    fields = ConfigFields(config)
    network = _network_from_config(fields)
    hop_length = math.prod(network.strides)
    sample_rate = fields.integer("sampling_rate", 24000)
    codebook_size = fields.integer("codebook_size", 1024)
    latent_dim = fields.integer("hidden_size", 128)
    fields.require("codebook_dim", fields.optional_integer("codebook_dim") or latent_dim, latent_dim)
    bandwidths = fields.numbers("target_bandwidths", (1.5, 3.0, 6.0, 12.0, 24.0))
    channels = fields.integer("audio_channels", 1)
    segment = _segment(fields, sample_rate)
    fields.refuse_others(GENERIC_FIELDS)
    return CodecSpec(
        family="seanet",
        sample_rate=sample_rate,
        hop_length=hop_length,
        num_codebooks=_num_levels(bandwidths[-1], _level_bits_per_second(sample_rate, hop_length, codebook_size)),
        codebook_size=codebook_size,
        channels=channels,
        latent_dim=latent_dim,
        network=network,
        segment=segment,
    )


def config_from_spec(spec: CodecSpec) -> dict[str, Any]:
    """The config.json of `transformers` for a seanet codec.

    Raises:
        ValueError: not of the seanet family. Whether the config says all of the spec is seen by reading it back.
    """
    network = spec.network
    if not isinstance(network, SeanetConfig):
        raise ValueError(f"a codec of family {spec.family!r} is no EnCodec")  # noqa: TRY004 - the file's fault, not ours
    segment = spec.segment
    return {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "dtype": "float32",
        "sampling_rate": spec.sample_rate,
        "audio_channels": spec.channels,
        "target_bandwidths": _target_bandwidths(spec),
        "normalize": segment is not None and segment.normalize,
        "chunk_length_s": None if segment is None else segment.length / spec.sample_rate,
        "overlap": None if segment is None else round(1 - segment.stride / segment.length, 6),
        "hidden_size": spec.latent_dim,
        "codebook_size": spec.codebook_size,
        "codebook_dim": spec.latent_dim,
        "num_filters": network.num_filters,
        "num_residual_layers": network.num_residual_layers,
        "upsampling_ratios": list(reversed(network.strides)),
        "norm_type": network.norm,
        "kernel_size": network.kernel_size,
        "last_kernel_size": network.last_kernel_size,
        "residual_kernel_size": network.residual_kernel_size,
        "dilation_growth_rate": network.dilation_base,
        "use_causal_conv": network.causal,
        "pad_mode": network.pad_mode,
        "compress": network.compress,
        "num_lstm_layers": network.num_lstm_layers,
        "trim_right_ratio": 1.0,
        "use_conv_shortcut": network.conv_shortcut,
    }


def _network_from_shapes(tensors: Mapping[str, Tensor], *, grouped: bool) -> SeanetConfig:
    convolutions = _positions(tensors, r"encoder\.model\.([0-9]+)\.conv\.conv\.weight")
    units = _positions(tensors, r"encoder\.model\.([0-9]+)\.block\.1\.conv\.conv\.weight")
    if len(convolutions) < 3:
        raise ValueError("not an EnCodec: its encoder has fewer than three convolutions")
    if units and "encoder.model.1.shortcut.conv.conv.weight" not in tensors:
        raise ValueError(
            "residual units without shortcut convolutions (`true_skip`) are audiocraft's: its padding differs from "
            "EnCodec's and is not guessed"
        )
    first, *strided, last = (_shape(tensors, f"encoder.model.{i}.conv.conv.weight") for i in convolutions)
    narrow, wide, residual_kernel = (1, 2, 3)  # without units these settings mean nothing
    if units:
        narrow, wide, residual_kernel = _shape(tensors, f"encoder.model.{units[-1]}.block.1.conv.conv.weight")
    lstm = _positions(tensors, rf"encoder\.model\.{convolutions[-1] - 2}\.lstm\.weight_ih_l([0-9]+)")
    return SeanetConfig(
        num_filters=first[0],
        strides=tuple(shape[2] // 2 for shape in strided),
        kernel_size=first[2],
        latent_kernel_size=last[2],
        last_kernel_size=_last_kernel(tensors),
        residual_kernel_size=residual_kernel,
        num_residual_layers=len(units) // len(strided),
        compress=max(1, wide // narrow),
        num_lstm_layers=len(lstm),
        causal=not grouped,
        norm="time_group_norm" if grouped else "weight_norm",
        pad_mode="reflect",
    )


def _network_from_config(fields: ConfigFields) -> SeanetConfig:
    last_kernel_size = fields.integer("last_kernel_size", 7)
    network = SeanetConfig(
        num_filters=fields.integer("num_filters", 32),
        strides=fields.integers("upsampling_ratios", (8, 5, 4, 2))[::-1],  # theirs are in the decoder's order
        kernel_size=fields.integer("kernel_size", 7),
        latent_kernel_size=last_kernel_size,
        last_kernel_size=last_kernel_size,
        residual_kernel_size=fields.integer("residual_kernel_size", 3),
        num_residual_layers=fields.integer("num_residual_layers", 1),
        dilation_base=fields.integer("dilation_growth_rate", 2),
        compress=fields.integer("compress", 2),
        conv_shortcut=fields.flag("use_conv_shortcut", default=True),
        num_lstm_layers=fields.integer("num_lstm_layers", 2),
        causal=fields.flag("use_causal_conv", default=True),
        norm=fields.choice("norm_type", "weight_norm", _NORMS),
        pad_mode=fields.choice("pad_mode", "reflect", _PAD_MODES),
    )
    if network.num_lstm_layers == 0:
        raise ValueError("num_lstm_layers = 0 is nothing that transformers can build")
    fields.require("trim_right_ratio", fields.number("trim_right_ratio", 1.0), 1.0)
    return network


def _is_training_buffer(key: str) -> bool:
    return key.startswith("quantizer.") and key.endswith(_TRAINING_BUFFERS)


def _positions(tensors: Iterable[str], pattern: str) -> list[int]:
    """The numbers at one place of the keys, in order."""
    matches = (re.fullmatch(pattern, key) for key in tensors)
    return sorted(int(match[1]) for match in matches if match is not None and len(match[1]) < 6)


def _shape(tensors: Mapping[str, Tensor], key: str, *, num_dims: int = 3) -> tuple[int, ...]:
    if key not in tensors:
        raise ValueError(f"weights missing {key}")
    shape = tuple(tensors[key].shape)
    if len(shape) != num_dims or 0 in shape:
        raise ValueError(f"{key} is {list(shape)}: {num_dims} dimensions are wanted, none of them empty")
    return shape


def _last_kernel(tensors: Mapping[str, Tensor]) -> int:
    positions = _positions(tensors, r"decoder\.model\.([0-9]+)\.conv\.conv\.weight")
    if not positions:
        raise ValueError("not an EnCodec: its decoder has no convolution")
    return _shape(tensors, f"decoder.model.{positions[-1]}.conv.conv.weight")[2]


def _segment(fields: ConfigFields, sample_rate: int) -> SegmentConfig | None:
    seconds, overlap = fields.optional_number("chunk_length_s"), fields.optional_number("overlap")
    normalize = fields.flag("normalize", default=False)
    if seconds is None:
        if normalize:
            raise ValueError("normalize without chunk_length_s is not supported: it needs the loudness of a whole file")
        return None
    if overlap is None:
        raise ValueError("chunk_length_s needs an overlap")
    length = int(seconds * sample_rate)
    return SegmentConfig(length=length, stride=max(1, int((1.0 - overlap) * length)), normalize=normalize)


def _level_bits_per_second(sample_rate: int, hop_length: int, codebook_size: int) -> int:
    """As transformers reckons, with the frame rate rounded up."""
    return max(1, -(-sample_rate // max(1, hop_length)) * (codebook_size - 1).bit_length())


def _num_levels(bandwidth_kbps: float, level_bits_per_second: int) -> int:
    return int(1000 * bandwidth_kbps // level_bits_per_second)


def _target_bandwidths(spec: CodecSpec) -> list[float]:
    """Bandwidths of 2, 4, 8 ... and all levels, so that transformers' own division gives these numbers back."""
    bits = _level_bits_per_second(spec.sample_rate, spec.hop_length, spec.codebook_size)
    bandwidths = []
    for count in [2**power for power in range(1, 16) if 2**power < spec.num_codebooks] + [spec.num_codebooks]:
        bandwidth = count * bits / 1000
        while _num_levels(bandwidth, bits) < count:
            bandwidth = math.nextafter(bandwidth, math.inf)
        bandwidths.append(bandwidth)
    return bandwidths
