"""Codecs that cut files into overlapping segments, code each on its own, and cross-fade what they decode.

    samples    |------ segment 0 ------|
                                   |------ segment 1 ------|
                                   '-- overlap: length - stride

Memory is that of a segment, however long the file. Source: EnCodec, arXiv:2210.13438, 3.1 and its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tokenizer.encoded import CodeBuffer
from tokenizer.networks import Networks
from tokenizer.spec import CodecSpec, SegmentConfig

_SILENCE = 1e-8  # added to the loudness, so that silence can be divided by it


_AT_ONCE = {"cuda": 16}  # segments that share a pass


def cut(chunks: Iterable[Tensor], length: int, stride: int) -> Iterator[Tensor]:
    """Pieces [..., length] of a stream; the last ones may be shorter, and each starts before the stream's end."""
    pending: Tensor | None = None
    for chunk in chunks:
        pending = chunk if pending is None or pending.shape[-1] == 0 else torch.cat([pending, chunk], dim=-1)
        while pending.shape[-1] >= length:
            yield pending[..., :length]
            pending = pending[..., stride:]
    while pending is not None and pending.shape[-1] > 0:
        yield pending[..., :length]
        pending = pending[..., stride:]


def encode_segments(
    networks: Networks, chunks: Iterable[Tensor], segment: SegmentConfig, num_codebooks: int
) -> tuple[Tensor, Tensor | None]:
    """A stream [B, C, n] to the codes [B, K, T] of its segments, one after another, and their scales [B, N]."""
    buffer = CodeBuffer(networks.quantizer.codebooks.shape[1])
    scales: list[Tensor] = []
    for batch in _batches(cut(chunks, segment.length, segment.stride)):
        pieces = torch.cat(batch)
        if segment.normalize:
            pieces, loudness = normalize(pieces)
            scales += loudness.chunk(len(batch))
        for codes in networks.quantizer.encode(networks.encoder(pieces), num_codebooks).chunk(len(batch)):
            buffer.append(codes)
    return buffer.gathered(), torch.stack(scales, dim=1) if scales else None


def decode_segments(
    networks: Networks, codes: Tensor, scales: Tensor | None, frames: list[int], stride: int
) -> Iterator[Tensor]:
    """Codes of segments, of so many frames each, to the waveform, [B, C, n] at a time."""

    def decoded() -> Iterator[Tensor]:
        index = 0
        for batch in _batches(torch.split(codes, frames, dim=-1)):
            waveforms = networks.decoder(networks.quantizer.decode(torch.cat(batch)))
            for waveform in waveforms.chunk(len(batch)):
                yield waveform if scales is None else waveform * scales[:, index, None, None]
                index += 1

    yield from cross_fade(decoded(), stride)


def _batches(pieces: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive pieces of one length, as many as should share a pass."""
    batch: list[Tensor] = []
    for piece in pieces:
        if batch and (batch[0].shape[-1] != piece.shape[-1] or len(batch) == _AT_ONCE.get(piece.device.type, 8)):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def normalize(segment: Tensor) -> tuple[Tensor, Tensor]:
    """Divide segments [B, C, S] by the root mean square of their channels' mean; returns it too, [B]."""
    loudness = segment.mean(dim=1).square().mean(dim=-1).sqrt() + _SILENCE
    return segment / loudness[:, None, None], loudness


def frames_by_segment(spec: CodecSpec, num_samples: int) -> list[int]:
    """Frames of every segment of a file, in order."""
    if spec.segment is None:
        return [spec.num_frames(num_samples)]
    length = spec.segment.length
    return [-(-min(length, num_samples - start) // spec.hop_length) for start in spec.segment.offsets(num_samples)]


def cross_fade(segments: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Join decoded segments [B, C, length or less], in pieces, as soon as no later segment can touch them.

    Each segment is weighted by a triangle, and the sum is divided by the sum of the weights: where two overlap, one
    fades into the other.
    """
    triangle: Tensor | None = None
    weighted = weights = None
    for segment in segments:
        if triangle is None:
            position = torch.linspace(0, 1, segment.shape[-1] + 2, device=segment.device, dtype=segment.dtype)[1:-1]
            triangle = 0.5 - (position - 0.5).abs()
        weight = triangle[: segment.shape[-1]]
        weighted = _overlapped(weighted, segment * weight)
        weights = _overlapped(weights, weight)
        yield weighted[..., :stride] / weights[:stride]
        weighted, weights = weighted[..., stride:], weights[stride:]
    if weighted is not None and weights is not None and weights.numel():
        yield weighted / weights


def _overlapped(earlier: Tensor | None, later: Tensor) -> Tensor:
    """What is left of the segments before, with the next one added; either may reach farther."""
    if earlier is None or earlier.shape[-1] == 0:
        return later
    common = min(earlier.shape[-1], later.shape[-1])
    rest = (earlier if earlier.shape[-1] > common else later)[..., common:]
    return torch.cat([earlier[..., :common] + later[..., :common], rest], dim=-1)
