"""A clip through every system that is compared, and back: what comes out, what it costs in bits and in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.evaluating.opus import opus_round_trip
from tokenizer import Codec, mix_channels, resample

OPUS = "opus"
OPUS_KBPS = (6.0, 12.0)
SCALE_BITS = 32  # float32, one a segment


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A codec in the comparison, and the bandwidths at which it competes."""

    system: str  # its name in tables, unlike all others'
    codec: Codec
    bandwidths_kbps: tuple[float, ...]  # low to high


@dataclass(frozen=True, slots=True, eq=False)
class RoundTrip:
    """What one system made of a clip."""

    system: str
    bandwidth_kbps: float  # what was asked for
    waveform: Tensor  # [S] at the rate of the comparison, as long as the reference
    num_bits: int  # codes and scales, or Opus packets; no entropy coding, no containers
    encode_s: float  # of the codec's own call, without resampling
    decode_s: float
    codes: npt.NDArray[np.integer] | None = None  # [K, T]


def reference_of(waveform: Tensor, source_rate: int, sample_rate: int) -> Tensor:
    """What all are compared with: [1, S'] at its own rate to [S] at the rate of the comparison."""
    return resample(waveform, source_rate, sample_rate)[0]


def round_trips(
    contestants: Sequence[Contestant],
    opus_kbps: Sequence[float],
    waveform: Tensor,
    source_rate: int,
    sample_rate: int,
) -> Iterator[RoundTrip]:
    """Every codec at each of its bandwidths, each at its own sample rate; then Opus, on the reference.

    Args:
        contestants: codecs.
        opus_kbps: none, to leave Opus out.
        waveform: [1, S'], the clip as it was read.
        source_rate: Hz of it.
        sample_rate: Hz of the comparison.

    Raises:
        AudioError: a system refuses the clip.
    """
    reference = reference_of(waveform, source_rate, sample_rate)
    for contestant in contestants:
        rate = contestant.codec.spec.sample_rate
        heard = mix_channels(resample(waveform, source_rate, rate), contestant.codec.spec.channels)
        for kbps in contestant.bandwidths_kbps:
            trip = _codec_round_trip(contestant, heard, kbps)
            back = resample(trip.waveform[None], rate, sample_rate)[0, : len(reference)]
            back = functional.pad(back, (0, len(reference) - len(back)))
            yield RoundTrip(trip.system, kbps, back, trip.num_bits, trip.encode_s, trip.decode_s, trip.codes)
    for kbps in opus_kbps:
        opus = opus_round_trip(reference[None], sample_rate, kbps)
        yield RoundTrip(OPUS, kbps, opus.waveform[0], opus.num_bits, opus.encode_s, opus.decode_s)


def warm_up(contestants: Sequence[Contestant]) -> None:
    """The first call of a network chooses kernels and fills caches: it is made here, outside of all clocks."""
    for contestant in contestants:
        spec = contestant.codec.spec
        noise = 0.1 * torch.randn(spec.channels, spec.sample_rate, generator=torch.Generator().manual_seed(0))
        _codec_round_trip(contestant, noise, contestant.bandwidths_kbps[0])


def _codec_round_trip(contestant: Contestant, heard: Tensor, kbps: float) -> RoundTrip:
    """[C, S] at the codec's rate there and back; the waveform of the result is one channel [S] at that rate."""
    codec = contestant.codec
    started = time.perf_counter()
    encoded = codec.encode(heard, bandwidth_kbps=kbps)
    encoded_at = time.perf_counter()
    decoded = codec.decode(encoded)
    decoded_at = time.perf_counter()
    scale_bits = 0 if encoded.scales is None else SCALE_BITS * encoded.scales.numel()
    return RoundTrip(
        contestant.system,
        kbps,
        mix_channels(decoded[0], 1)[0],
        encoded.codes.numel() * codec.spec.bits_per_code + scale_bits,
        encoded_at - started,
        decoded_at - encoded_at,
        encoded.codes[0].to(torch.int32).numpy().astype(np.uint16),
    )
