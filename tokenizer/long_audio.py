"""Audio files of any length to codes and back, in constant memory: only the codes grow, about 1 MB a minute at most."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from tokenizer.audio_file import open_audio
from tokenizer.audio_writer import write_audio_blocks
from tokenizer.codec import Codec
from tokenizer.encoded import Encoded
from tokenizer.errors import CodesError
from tokenizer.resampling import StreamingResampler, mix_channels


def encode_file(codec: Codec, source: str | Path | BinaryIO, *, bandwidth_kbps: float | None = None) -> Encoded:
    """Codes of an audio file, block by block: those of `codec.encode(*read_audio(source))`, whatever its length.

    A codec that takes whole files only (no segments, not streamable) gets the whole file, and the memory for it.

    Args:
        codec: any codec.
        source: as in `open_audio`.
        bandwidth_kbps: None for all codebooks.

    Raises:
        AudioError, OSError: as in `open_audio`; what is wrong with a file may show only at its end.
        ValueError: a bandwidth that the codec does not have.
    """
    with open_audio(source) as audio:
        # mixed here, because the last block may have fewer samples than channels
        blocks = (mix_channels(block, codec.spec.channels) for block in audio.blocks())
        return codec.encode_blocks(blocks, sample_rate=audio.sample_rate, bandwidth_kbps=bandwidth_kbps)


def decode_file(
    codec: Codec,
    encoded: Encoded,
    path: str | Path,
    *,
    bandwidth_kbps: float | None = None,
    sample_rate: int | None = None,
) -> None:
    """Write the waveform of codes to an audio file: what `codec.decode` gives, block by block.

    Args:
        codec: the codec that made the codes.
        encoded: codes of one waveform, [1, K, T].
        path: as in `write_audio`; the extension names the format.
        bandwidth_kbps: at most that of the codes; None uses all levels they have.
        sample_rate: Hz of the file; None for the codec's.

    Raises:
        CodesError, ValueError: as in `codec.decode`; also codes of more than one waveform.
        AudioError, OSError: as in `write_audio`. No error leaves a file behind.
    """
    if encoded.codes.ndim == 3 and encoded.codes.shape[0] != 1:
        raise CodesError(f"a file holds one waveform, these are the codes of {encoded.codes.shape[0]}")
    rate = codec.spec.sample_rate if sample_rate is None else sample_rate
    length = encoded.num_samples if sample_rate is None else encoded.num_samples_at(sample_rate, codec.spec)
    decoded = codec.decode_blocks(encoded, bandwidth_kbps=bandwidth_kbps)
    blocks = _resampled(decoded, StreamingResampler(codec.spec.sample_rate, rate), codec.spec.channels, length)
    write_audio_blocks(path, blocks, rate, num_samples=length)


def _resampled(blocks: Iterator[Tensor], resampler: StreamingResampler, channels: int, length: int) -> Iterator[Tensor]:
    """Blocks [1, C, n] at another rate, [C, n] each and `length` samples in all: the filter may give one more."""
    state = resampler.initial_state(channels)
    for block in blocks:
        piece, state = resampler.step(block[0], state)
        yield piece[:, :length]
        length = max(0, length - piece.shape[-1])
    yield resampler.finish(state)[:, :length]
