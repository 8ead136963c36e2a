"""What a codec is, in integers: sample rate, hop, codebooks, and the shape of its networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tokenizer.network_config import (
    FAMILIES,
    DacConfig,
    NetworkConfig,
    PatchConfig,
    SeanetConfig,
    require,
    require_positive,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """Files are cut into overlapping segments, each coded on its own. Source: EnCodec, arXiv:2210.13438, 3.1."""

    length: int  # samples
    stride: int  # samples from one segment's start to the next one's
    normalize: bool = False  # divide each segment by its loudness, which is stored beside its codes

    def __post_init__(self) -> None:
        require_positive(self, "length", "stride")
        require(self.stride <= self.length, f"segment stride {self.stride} leaves gaps between {self.length} samples")

    def offsets(self, num_samples: int) -> range:
        """Where segments start in a file of that length."""
        return range(0, num_samples, self.stride)


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
    segment: SegmentConfig | None = None

    def __post_init__(self) -> None:
        require(self.family in FAMILIES, f"family {self.family!r} is not one of {sorted(FAMILIES)}")
        require(
            isinstance(self.network, FAMILIES.get(self.family, object)), f"network settings do not fit {self.family!r}"
        )
        require_positive(self, "sample_rate", "hop_length", "num_codebooks", "channels", "latent_dim")
        size = self.codebook_size
        require(
            isinstance(size, int) and 2 <= size <= 65536 and size & (size - 1) == 0,
            f"codebook_size {size} is not a power of two up to 65536",
        )
        if isinstance(self.network, (SeanetConfig, DacConfig)):
            product = math.prod(self.network.strides)
            require(product == self.hop_length, f"strides multiply to {product}, hop_length is {self.hop_length}")
        if isinstance(self.network, PatchConfig):
            overlap = self.network.overlap
            require(overlap <= self.hop_length, f"overlap {overlap} is longer than hop_length {self.hop_length}")
        if isinstance(self.network, SeanetConfig) and self.network.norm == "time_group_norm":
            require(self.segment is not None, "time_group_norm needs segments: it averages over all that it is given")
        if self.segment is not None:
            require(
                isinstance(self.network, SeanetConfig) and not self.network.causal,
                "segments are for networks that are not causal; causal ones stream",
            )

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

    def num_codebooks_at(self, bandwidth_kbps: float | None) -> int:
        """Number of codebooks that make up a bandwidth; None asks for all.

        Raises:
            ValueError: no whole number of the codec's codebooks gives this bandwidth.
        """
        if bandwidth_kbps is None:
            return self.num_codebooks
        count = round(bandwidth_kbps / self.level_kbps)
        if not 1 <= count <= self.num_codebooks or abs(count * self.level_kbps - bandwidth_kbps) > 1e-3:
            listed = ", ".join(f"{kbps:g}" for kbps in self.bandwidths_kbps)
            raise ValueError(
                f"bandwidth {bandwidth_kbps:g} kbps is not available: choose {listed}, "
                f"or any multiple of {self.level_kbps:g} up to {self.bandwidth_kbps:g}"
            )
        return count

    def num_frames(self, num_samples: int) -> int:
        """Frames that cover `num_samples`, those of every segment where there are segments.

        Silence fills the last one, and decoding trims it again.
        """
        if self.segment is None:
            return -(-num_samples // self.hop_length)
        offsets = self.segment.offsets(num_samples)
        return sum(-(-min(self.segment.length, num_samples - start) // self.hop_length) for start in offsets)

    def num_segments(self, num_samples: int) -> int:
        """Segments of a file: as many as it has scales. 1 for codecs without segments."""
        return 1 if self.segment is None else len(self.segment.offsets(num_samples))

    @property
    def has_scales(self) -> bool:
        """Whether a loudness per segment is stored beside the codes."""
        return self.segment is not None and self.segment.normalize

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        plain = dataclasses.asdict(self)
        if self.segment is None:  # the identity of a codec is a hash of this: a key came later, old codecs lack it
            del plain["segment"]
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
        try:
            network = {key: tuple(v) if isinstance(v, list) else v for key, v in dict(plain.pop("network", {})).items()}
            if plain.get("segment") is not None:
                plain["segment"] = SegmentConfig(**plain["segment"])
            settings: Any = network_type
            return cls(network=settings(**network), **plain)
        except TypeError as error:
            raise ValueError(f"codec config: {error}") from error
