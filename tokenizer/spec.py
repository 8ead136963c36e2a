"""What a codec is, in integers: sample rate, hop, codebooks, and the shape of its networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

PadMode = Literal["constant", "reflect"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeanetConfig:
    """Convolutions from the sample rate down to the frame rate. Source: EnCodec, arXiv:2210.13438, 3.1."""

    num_filters: int = 32
    strides: tuple[int, ...] = (2, 4, 5, 8)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    num_lstm_layers: int = 2
    pad_mode: PadMode = "constant"

    def __post_init__(self) -> None:
        _require(self.pad_mode in ("constant", "reflect"), f"pad_mode {self.pad_mode!r} is not 'constant' or 'reflect'")
        _require(len(self.strides) > 0 and min(self.strides) >= 1, f"strides {self.strides} must be positive")
        for name in ("num_filters", "kernel_size", "last_kernel_size", "residual_kernel_size", "compress"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")


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
        for field in dataclasses.fields(self):
            _require(getattr(self, field.name) >= 1, f"{field.name} must be at least 1")


NetworkConfig = SeanetConfig | PatchConfig
FAMILIES: dict[str, type[SeanetConfig | PatchConfig]] = {"seanet": SeanetConfig, "patch": PatchConfig}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec's constants; rates are derived from the integers stored here."""

    family: str
    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    num_codebooks: int  # the most that the codec has
    codebook_size: int  # a power of two
    network: NetworkConfig
    channels: int = 1
    latent_dim: int = 128

    def __post_init__(self) -> None:
        _require(self.family in FAMILIES, f"family {self.family!r} is not one of {sorted(FAMILIES)}")
        _require(
            isinstance(self.network, FAMILIES.get(self.family, object)), f"network settings do not fit {self.family!r}"
        )
        for name in ("sample_rate", "hop_length", "num_codebooks", "channels", "latent_dim"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        size = self.codebook_size
        _require(
            2 <= size <= 65536 and size & (size - 1) == 0, f"codebook_size {size} is not a power of two up to 65536"
        )
        if isinstance(self.network, SeanetConfig):
            product = 1
            for stride in self.network.strides:
                product *= stride
            _require(product == self.hop_length, f"strides multiply to {product}, hop_length is {self.hop_length}")
        elif self.network.overlap > self.hop_length:
            raise ValueError(f"overlap {self.network.overlap} is longer than hop_length {self.hop_length}")

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(self.sample_rate, self.hop_length)

    @property
    def bits_per_code(self) -> int:
        """Bits that one code takes before entropy coding: log2 of the codebook size."""
        return self.codebook_size.bit_length() - 1

    @property
    def level_kbps(self) -> float:
        """Kilobits per second that one codebook level adds."""
        return float(self.frame_rate * self.bits_per_code / 1000)

    @property
    def bandwidth_kbps(self) -> float:
        """Kilobits per second with every codebook in use."""
        return self.level_kbps * self.num_codebooks

    @property
    def bandwidths_kbps(self) -> tuple[float, ...]:
        """Customary bandwidths: 2, 4, 8 ... levels, as in EnCodec, and all of them."""
        levels = {2**power for power in range(1, self.num_codebooks.bit_length()) if 2**power <= self.num_codebooks}
        return tuple(self.level_kbps * count for count in sorted(levels | {self.num_codebooks}))

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds of audio that must have arrived before a frame can leave: one hop, for both causal families."""
        return self.hop_length / self.sample_rate

    def num_codebooks_at(self, bandwidth_kbps: float | None) -> int:
        """Number of codebooks that make up a bandwidth; None asks for all.

        Raises:
            ValueError: no whole number of the codec's codebooks gives this bandwidth.
        """
        if bandwidth_kbps is None:
            return self.num_codebooks
        count = round(bandwidth_kbps / self.level_kbps)
        if not 1 <= count <= self.num_codebooks or abs(count * self.level_kbps - bandwidth_kbps) > 1e-6:
            listed = ", ".join(f"{kbps:g}" for kbps in self.bandwidths_kbps)
            raise ValueError(
                f"bandwidth {bandwidth_kbps:g} kbps is not available: choose {listed}, "
                f"or any multiple of {self.level_kbps:g} up to {self.bandwidth_kbps:g}"
            )
        return count

    def num_frames(self, num_samples: int) -> int:
        """Frames that cover `num_samples`: silence fills the last one, and decoding trims it again."""
        return -(-num_samples // self.hop_length)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        plain = dataclasses.asdict(self)
        for key, value in plain["network"].items():
            if isinstance(value, tuple):
                plain["network"][key] = list(value)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CodecSpec:
        """Build a spec from JSON types.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        plain = dict(plain)
        network_type = FAMILIES.get(plain.get("family", ""))
        if network_type is None:
            raise ValueError(f"family {plain.get('family')!r} is not one of {sorted(FAMILIES)}")
        network: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in dict(plain.pop("network", {})).items()
        }
        try:
            return cls(network=network_type(**network), **plain)
        except TypeError as error:
            raise ValueError(f"codec config: {error}") from error
