"""Encoders, decoders and quantizers by codec family, and how far they look ahead."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tokenizer.dac import DacDecoder, DacEncoder
from tokenizer.network_config import DacConfig, PatchConfig, SeanetConfig
from tokenizer.patch import PatchDecoder, PatchEncoder
from tokenizer.quantizer import FactorizedQuantizer, Quantizer, ResidualQuantizer
from tokenizer.seanet import SeanetDecoder, SeanetEncoder
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import StreamingLayer

_PROBE_FRAMES = 512  # more than any codec looks ahead


class Networks(NamedTuple):
    """What a codec computes with."""

    encoder: StreamingLayer  # waveform [B, C, S] to latents [B, D, T]
    decoder: StreamingLayer  # latents to waveform
    quantizer: Quantizer


def build_networks(spec: CodecSpec) -> Networks:
    """Networks of the spec's family, freshly initialised, with codebooks yet to be set.

    Raises:
        ValueError: the networks of this family live elsewhere.
    """
    if isinstance(spec.network, SeanetConfig):
        return Networks(SeanetEncoder(spec), SeanetDecoder(spec), _residual_quantizer(spec))
    if isinstance(spec.network, PatchConfig):
        return Networks(PatchEncoder(spec), PatchDecoder(spec), _residual_quantizer(spec))
    if isinstance(spec.network, DacConfig):
        quantizer = FactorizedQuantizer(
            spec.num_codebooks, spec.codebook_size, spec.network.codebook_dim, spec.latent_dim
        )
        return Networks(DacEncoder(spec), DacDecoder(spec), quantizer)
    raise ValueError(f"networks of family {spec.family!r} are not built here: load_codec('hf:...') brings them along")


def _residual_quantizer(spec: CodecSpec) -> ResidualQuantizer:
    return ResidualQuantizer(spec.num_codebooks, spec.codebook_size, spec.latent_dim)


def is_streamable(spec: CodecSpec) -> bool:
    """Whether the networks can be fed chunk by chunk: all of ours, but for SEANets that mirror the end of a file."""
    if isinstance(spec.network, SeanetConfig):
        return spec.network.causal
    return spec.family in ("dac", "patch")


def is_causal(spec: CodecSpec) -> bool:
    """Whether a frame depends on nothing that comes after it."""
    return is_streamable(spec) and spec.family != "dac"


def lookahead(spec: CodecSpec) -> int:
    """Samples that must have been heard beyond a frame until all of the frame can be decoded.

    Measured on networks without weights: what went in, less what came out.
    """
    if is_causal(spec):
        return 0
    with torch.device("meta"):
        encoder, decoder, _ = build_networks(spec)
        waveform = torch.zeros(1, spec.channels, _PROBE_FRAMES * spec.hop_length)
        latents, _ = encoder.step(waveform, encoder.initial_state(1))
        decoded, _ = decoder.step(torch.zeros(1, spec.latent_dim, _PROBE_FRAMES), decoder.initial_state(1))
    frames = _PROBE_FRAMES - latents.shape[-1]
    return frames * spec.hop_length + waveform.shape[-1] - decoded.shape[-1]
