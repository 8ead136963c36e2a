"""From a spec and its tensors to a codec that is ready for inference, measured before anything large is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Size, Tensor

from tokenizer.checkpoint_layout import require_floats
from tokenizer.codec import Codec
from tokenizer.errors import CheckpointError
from tokenizer.network_config import PatchConfig, TransformersConfig
from tokenizer.spec import CodecSpec

_MAX_BLOCKS = 1024  # of a patch network: a config that claims millions would be busy for hours building them


@contextmanager
def blamed_on(source: str | Path) -> Iterator[None]:
    """Turn what goes wrong inside with values from a file into a CheckpointError that names the file."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{source}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def codec_shapes(spec: CodecSpec) -> dict[str, Size]:
    """Shapes of all tensors of such a codec. No memory is taken: a spec may claim any size.

    Raises:
        ValueError: the codec's networks are not ours to build, or cannot be built.
    """
    network = spec.network
    if isinstance(network, TransformersConfig):
        raise ValueError(f'codecs of model type {network.model_type!r} load from where their weights are: "hf:..."')  # noqa: TRY004
    if isinstance(network, PatchConfig) and network.encoder_blocks + network.decoder_blocks > _MAX_BLOCKS:
        raise ValueError(f"more than {_MAX_BLOCKS} blocks")
    with torch.device("meta"):
        codec = Codec(spec)
    return {key: value.shape for key, value in codec.state_dict().items()}


def folded_weights(codec: Codec) -> dict[str, Tensor]:
    """What a codec is stored as: float32 on the CPU.

    Raises:
        ValueError: its networks are not ours to store, or are still in training, with weight norm not folded in.
    """
    expected = codec_shapes(codec.spec)
    weights = {key: value.detach().cpu().float() for key, value in codec.state_dict().items()}
    if weights.keys() != expected.keys():
        raise ValueError("weights are split by weight norm: fold them first (`fold_weight_norm`)")
    return weights


def build_codec(spec: CodecSpec, tensors: Mapping[str, Tensor], shapes: Mapping[str, Size], *, name: str) -> Codec:
    """A codec for inference, in float32 on the CPU.

    Args:
        spec: the codec's constants.
        tensors: by our keys.
        shapes: what `codec_shapes` says that they must be.
        name: of the codec.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape, not of floats, or not finite.
    """
    missing, unknown = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"weights missing {missing[:3]}, not of this codec {unknown[:3]}")
    for key, value in tensors.items():
        if value.shape != shapes[key]:
            raise ValueError(f"{key} is {list(value.shape)}, not {list(shapes[key])}")
        require_floats(key, value)
    weights = {key: value.float() for key, value in tensors.items()}
    for key, value in weights.items():  # after the cast: a large float64 becomes infinite by it
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} has values that are NaN or infinite")
    codec = Codec(spec, name=name)
    codec.load_state_dict(weights)
    return codec.eval().requires_grad_(requires_grad=False)
