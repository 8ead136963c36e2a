"""Sound to codes in pieces: short steps, between which an engine serves its streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizer import Codec
from tokenizer.spec import SegmentConfig

STEP_S = 0.5  # of sound: a step of the bundled codec takes 22 ms of a CPU core, one of 20 s would take 400


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPiece:
    """Codes of the next frames."""

    codes: NDArray[np.uint16]  # [K, n]; n may be 0
    scales: NDArray[np.float32] | None = None  # [N] of the segments in it; None for codecs without


def encode_steps(codec: Codec, waveform: Tensor, num_codebooks: int) -> Iterator[EncodedPiece]:
    """The codes that `codec.encode` gives for a waveform, piece by piece.

    A codec that takes whole files only gives one piece.

    Args:
        codec: used by nobody else during a step.
        waveform: [C, S] at the codec's rate, S >= 1, on any device.
        num_codebooks: levels.
    """
    bandwidth_kbps = codec.spec.level_kbps * num_codebooks
    if codec.streamable:
        return _stream_steps(codec, waveform, bandwidth_kbps)
    if codec.spec.segment is not None:
        return _segment_steps(codec, codec.spec.segment, waveform, bandwidth_kbps)
    return (_piece(codec.encode(waveform, bandwidth_kbps=bandwidth_kbps).codes) for _ in range(1))


def joined_pieces(pieces: list[EncodedPiece]) -> EncodedPiece:
    """All pieces of a waveform as one."""
    scales = [piece.scales for piece in pieces if piece.scales is not None]
    codes = np.concatenate([piece.codes for piece in pieces], axis=1)
    return EncodedPiece(codes, np.concatenate(scales) if scales else None)


def _stream_steps(codec: Codec, waveform: Tensor, bandwidth_kbps: float) -> Iterator[EncodedPiece]:
    step = max(1, round(STEP_S * codec.spec.frame_rate)) * codec.spec.hop_length
    state = codec.encode_state(bandwidth_kbps=bandwidth_kbps)
    for chunk in torch.split(waveform[None], step, dim=-1):
        codes, state = codec.encode_step(chunk, state)
        yield _piece(codes)
    codes, _ = codec.encode_flush(state)
    yield _piece(codes)


def _segment_steps(
    codec: Codec, segment: SegmentConfig, waveform: Tensor, bandwidth_kbps: float
) -> Iterator[EncodedPiece]:
    """Segment by segment: each is coded on its own. What overlaps the next one is coded with it, and left out here."""
    hop = codec.spec.hop_length
    for start in segment.offsets(waveform.shape[-1]):
        piece = waveform[:, start : start + segment.length]
        encoded = codec.encode(piece, bandwidth_kbps=bandwidth_kbps)
        scales = None if encoded.scales is None else encoded.scales[0, :1].cpu().numpy()
        yield EncodedPiece(_piece(encoded.codes).codes[:, : -(-piece.shape[-1] // hop)], scales)


def _piece(codes: Tensor) -> EncodedPiece:
    return EncodedPiece(codes[0].cpu().numpy().astype(np.uint16))
