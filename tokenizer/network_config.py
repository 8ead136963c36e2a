"""Settings of the networks, one dataclass a codec family, and the checks they share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

PadMode = Literal["constant", "reflect"]
Norm = Literal["weight_norm", "time_group_norm"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_positive(settings: Any, *names: str) -> None:
    """Raise ValueError where one of the named integers is not positive, or is absurdly large."""
    for name in names:
        value = getattr(settings, name)
        valid = isinstance(value, int) and 1 <= value <= _MAX_SETTING
        require(valid, f"{name} {value!r} is not in [1, {_MAX_SETTING}]")


def _require_strides(strides: tuple[int, ...]) -> None:
    valid = isinstance(strides, tuple) and all(isinstance(stride, int) and 1 <= stride <= 2**16 for stride in strides)
    require(valid and 1 <= len(strides) <= 16, f"strides {strides!r} must be positive integers")


_MAX_SETTING = 2**24  # of any integer: above it a config is a mistake, or an attack on the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class SeanetConfig:
    """Convolutions from the sample rate down to the frame rate. Source: EnCodec, arXiv:2210.13438, 3.1."""

    num_filters: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 8)
    kernel_size: int = 7  # of the first convolution of both networks
    latent_kernel_size: int = 7  # of the encoder's last convolution
    last_kernel_size: int = 7  # of the decoder's last convolution
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    conv_shortcut: bool = True  # a 1x1 convolution beside each residual unit; False: the input itself
    num_lstm_layers: int = 2
    causal: bool = True
    norm: Norm = "weight_norm"  # for training; the weights at rest have it folded in. "time_group_norm" is a layer
    pad_mode: PadMode = "constant"

    def __post_init__(self) -> None:
        require(self.pad_mode in ("constant", "reflect"), f"pad_mode {self.pad_mode!r} is not 'constant' or 'reflect'")
        require(
            self.norm in ("weight_norm", "time_group_norm"),
            f"norm {self.norm!r} is not 'weight_norm' or 'time_group_norm'",
        )
        require(not (self.causal and self.norm == "time_group_norm"), "time_group_norm needs causal = False")
        _require_strides(self.strides)
        require_positive(
            self, "num_filters", "kernel_size", "latent_kernel_size", "last_kernel_size", "residual_kernel_size"
        )
        require_positive(self, "compress", "dilation_base")
        for name in ("num_residual_layers", "num_lstm_layers"):
            value = getattr(self, name)
            require(isinstance(value, int) and 0 <= value <= 64, f"{name} {value!r} is not in [0, 64]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DacConfig:
    """Wide dilated residual units with Snake, and codebooks in a small space. Source: DAC, arXiv:2306.06546, 3."""

    encoder_width: int = 64  # channels after the first convolution; doubled at every stride
    decoder_width: int = 1536  # channels after the first convolution; halved at every stride
    strides: tuple[int, ...] = (2, 4, 8, 8)
    codebook_dim: int = 8

    def __post_init__(self) -> None:
        _require_strides(self.strides)
        require_positive(self, "encoder_width", "decoder_width", "codebook_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchConfig:
    """Every layer at the frame rate: a linear patch in, causal ConvNeXt blocks, an inverse STFT out."""

    context_frames: int = 3  # the patch spans this many hops, the newest one last
    patch_width: int = 1024
    width: int = 384
    hidden_width: int = 1024
    encoder_blocks: int = 6
    decoder_blocks: int = 8
    kernel_size: int = 7
    overlap: int = 160  # samples by which neighbouring output frames overlap

    def __post_init__(self) -> None:
        require_positive(self, *(field.name for field in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfig:
    """A codec whose networks live in the `transformers` library."""

    model_type: str  # as in its config.json, "mimi" for example


NetworkConfig = SeanetConfig | PatchConfig | DacConfig | TransformersConfig
FAMILIES: dict[str, type[NetworkConfig]] = {
    "seanet": SeanetConfig,
    "patch": PatchConfig,
    "dac": DacConfig,
    "transformers": TransformersConfig,
}
