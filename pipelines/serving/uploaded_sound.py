"""Uploaded sound to the waveform that a codec takes: decoded, mixed and resampled block by block, within limits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipelines.serving.service_errors import too_large
from tokenizer import CodecSpec, StreamingResampler, mix_channels, open_audio

_MAX_RATE = 384_000  # samples a second over all channels, on average: stereo at 192 kHz
_BYTES_EACH = 4


def read_upload(content: bytes, spec: CodecSpec, max_audio_s: float, hold: Callable[[int], None]) -> Tensor:
    """Decode a file that was sent.

    Args:
        content: the file; its format is found in it, whatever the request says.
        spec: of the codec.
        max_audio_s: seconds of sound, that no file may exceed.
        hold: told the bytes of the waveform as they come; may raise.

    Returns:
        [C, S] at the codec's rate, as `codec.encode(..., sample_rate=...)` makes it.

    Raises:
        AudioError: not audio, damaged, or nothing that the codec can take.
        RequestError: longer than allowed.
    """
    with open_audio(io.BytesIO(content), max_samples=int(max_audio_s * _MAX_RATE)) as audio:
        limit = int(max_audio_s * audio.sample_rate)
        if audio.num_frames is not None:
            _check_length(audio.num_frames, limit, max_audio_s)

        def counted() -> Iterator[Tensor]:
            count = 0
            for block in audio.blocks():
                count += block.shape[-1]
                _check_length(count, limit, max_audio_s)
                yield mix_channels(block, spec.channels)

        pieces = []
        for piece in _resampled(counted(), StreamingResampler(audio.sample_rate, spec.sample_rate), spec.channels):
            hold(piece.numel() * _BYTES_EACH)
            pieces.append(piece)
    return torch.cat(pieces, dim=-1)


def _check_length(count: int, limit: int, max_audio_s: float) -> None:
    if count > limit:
        raise too_large(f"the sound is longer than {max_audio_s:g} s, which is the most that is encoded at once")


def _resampled(blocks: Iterator[Tensor], resampler: StreamingResampler, channels: int) -> Iterator[Tensor]:
    state = resampler.initial_state(channels)
    for block in blocks:
        piece, state = resampler.step(block, state)
        yield piece
    yield resampler.finish(state)
