"""Codecs of other packages, with random weights: what ours are measured beside. Nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tokenizer import Codec, load_codec
from tokenizer.torchaudio_import import import_torchaudio

ENCODEC_NAMES = ("encodec_24khz", "encodec_48khz")
MIMI_LEVELS = 8  # of 32; 1.1 kbps, as its authors use it


@dataclass(frozen=True, slots=True)
class PeerCodec:
    """Something that encodes waveforms [B, C, S] and decodes what came out."""

    name: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Any]


def import_peer(module: str, package: str) -> Any:
    """A module of another package that is only needed to be compared with.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    import_torchaudio()  # `encodec` and `transformers` import it, which may fail without our way around
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is not installed, nothing to compare with: pip install {package}") from error


def encodec_model(name: str) -> Any:
    """The model of the `encodec` package, codebooks filled as its own loader fills them.

    Args:
        name: one of `ENCODEC_NAMES`.

    Raises:
        ImportError: the package is not installed.
    """
    package = import_peer("encodec.model", "encodec")
    with _seeded():
        model = getattr(package.EncodecModel, name.replace("encodec_", "encodec_model_"))(pretrained=False).eval()
        for layer in model.quantizer.vq.layers:
            layer._codebook.embed.normal_()  # noqa: SLF001 - as its loader does
            layer._codebook.inited.fill_(1)  # noqa: SLF001
    return model


def with_weights_of(model: Any, name: str) -> Codec:
    """Our codec of the same architecture, with the weights of a model of the `encodec` package."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.th"
        torch.save(model.state_dict(), path)
        return load_codec(path)


def encodec_peer(model: Any, kbps: float) -> PeerCodec:
    """A model of the `encodec` package at a bandwidth."""

    def encode(waveform: Tensor) -> Any:
        model.set_target_bandwidth(kbps)
        return model.encode(waveform)

    return PeerCodec("encodec", encode, model.decode)


def transformers_encodec(name: str, kbps: float) -> PeerCodec:
    """EnCodec as `transformers` has it.

    Args:
        name: one of `ENCODEC_NAMES`.
        kbps: bandwidth.

    Raises:
        ImportError: the package is not installed.
    """
    transformers = import_peer("transformers", "transformers")
    stereo: dict[str, Any] = {
        "sampling_rate": 48000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
    }
    with _seeded():
        model = transformers.EncodecModel(transformers.EncodecConfig(**(stereo if "48" in name else {}))).eval()
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_()

    def decode(encoded: Any) -> Any:
        return model.decode(
            encoded.audio_codes, encoded.audio_scales, last_frame_pad_length=encoded.last_frame_pad_length
        )

    return PeerCodec("transformers EncodecModel", lambda waveform: model.encode(waveform, bandwidth=kbps), decode)


def transformers_mimi() -> PeerCodec:
    """Mimi as `transformers` has it: another codec, at 12.5 frames a second and 1.1 kbps.

    Raises:
        ImportError: the package is not installed.
    """
    transformers = import_peer("transformers", "transformers")
    with _seeded():
        model = transformers.MimiModel(transformers.MimiConfig()).eval()
        for quantizer in (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        ):
            for layer in quantizer.layers:
                layer.codebook.embed_sum.normal_()
    return PeerCodec(
        f"transformers Mimi, {MIMI_LEVELS} levels",
        lambda waveform: model.encode(waveform, num_quantizers=MIMI_LEVELS),
        lambda encoded: model.decode(encoded.audio_codes),
    )


@contextmanager
def _seeded() -> Iterator[None]:
    """The same weights each time, and the caller's random numbers untouched."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield
