"""Audio files out: a waveform, whole or block by block, becomes a file that appears whole or not at all."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from tokenizer.errors import AudioError
from tokenizer.segments import cut
from tokenizer.watched_stream import WatchedStream

# extension -> (libsndfile format, subtype, sample rates that the codec takes; empty for any)
_FORMATS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    ".wav": ("WAV", "PCM_16", ()),
    ".flac": ("FLAC", "PCM_16", ()),
    ".ogg": ("OGG", "VORBIS", ()),
    ".opus": ("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    ".mp3": ("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}
_MAX_WAV_BYTES = 2**32 - 2**12  # of samples; sizes in its header have 32 bits
_WRITE_FRAMES = 65536
# One long write overflows the stack of the Vorbis encoder, and the length of the first one changes what it writes.


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """Write a waveform in the format that the extension names: .wav and .flac (16 bit), .ogg, .opus or .mp3.

    Samples outside [-1, 1] are clipped, as every one of these formats would need. The file appears whole or not
    at all: it is written under another name and renamed.

    Args:
        path: where to write; its folder exists.
        waveform: [C, S] floats, finite, S >= 1.
        sample_rate: Hz. Opus takes 8, 12, 16, 24 and 48 kHz only.

    Raises:
        AudioError: unknown extension, or a waveform or sample rate that the format cannot hold.
        OSError: the file cannot be written.
    """
    write_audio_blocks(path, [waveform], sample_rate, num_samples=waveform.shape[-1] if waveform.ndim else None)


def write_audio_blocks(
    path: str | Path, blocks: Iterable[Tensor], sample_rate: int, *, num_samples: int | None = None
) -> None:
    """Write a waveform that comes in blocks, in constant memory: the file that `write_audio` would write of the whole.

    Args:
        path: where to write; its folder exists.
        blocks: [C, n] floats, finite, all with the same C; n may be 0, but not in all.
        sample_rate: Hz, as in `write_audio`.
        num_samples: how many samples there will be, where that is known. A .wav beyond 4 GiB needs it: its header is
            another one (RF64), from the first byte on.

    Raises:
        AudioError, OSError: as in `write_audio`. What `blocks` raises passes through. Either leaves no file behind.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise AudioError(f"{path}: unknown extension {path.suffix!r}, choose one of {', '.join(_FORMATS)}")
    sample_rates = _FORMATS[path.suffix.lower()][2]
    if sample_rates and sample_rate not in sample_rates:
        listed = ", ".join(f"{rate / 1000:g}" for rate in sample_rates)
        raise AudioError(f"{path}: {path.suffix.lower()} takes {listed} kHz, not {sample_rate / 1000:g} kHz")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as stream:
            _encode(WatchedStream(stream), path, blocks, sample_rate, num_samples)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode(
    watched: WatchedStream, path: Path, blocks: Iterable[Tensor], sample_rate: int, num_samples: int | None
) -> None:
    checked = _checked(path, blocks)
    first = next(checked, torch.zeros(1, 0))
    channels, num_written = first.shape[0], 0
    try:
        with _open(watched, path, channels, sample_rate, num_samples) as file:
            for piece in cut(itertools.chain([first], checked), _WRITE_FRAMES, _WRITE_FRAMES):
                num_written += piece.shape[-1]
                if file.format == "WAV" and num_written * channels * 2 > _MAX_WAV_BYTES:
                    raise AudioError(
                        f"{path}: a .wav beyond 4 GiB needs to know its length in advance, a .flac does not"
                    )
                file.write(_stored(piece, file.subtype))
                watched.check()
    except soundfile.LibsndfileError as error:
        watched.check()
        raise AudioError(f"{path}: cannot be written: {error.error_string.rstrip('.')}") from error
    watched.check()  # closing writes, too
    if num_written == 0:
        raise AudioError(f"{path}: a waveform is not empty, this one has no samples")


def _open(
    watched: WatchedStream, path: Path, channels: int, sample_rate: int, num_samples: int | None
) -> soundfile.SoundFile:
    file_format, subtype, _ = _FORMATS[path.suffix.lower()]
    if file_format == "WAV" and (num_samples or 0) * channels * 2 > _MAX_WAV_BYTES:
        file_format = "RF64"
    try:
        return soundfile.SoundFile(watched, "w", sample_rate, channels, subtype=subtype, format=file_format)
    except (soundfile.LibsndfileError, ValueError, OverflowError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise AudioError(
            f"{path}: {file_format} cannot hold {channels} channel(s) at {sample_rate} Hz: {reason}"
        ) from error


def _checked(path: Path, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    channels = None
    for block in blocks:
        if block.ndim != 2 or block.shape[0] == 0:
            raise AudioError(f"{path}: a waveform is [channels, samples], this one is {list(block.shape)}")
        if channels not in (None, block.shape[0]):
            raise AudioError(f"{path}: blocks of {channels} and of {block.shape[0]} channels in one waveform")
        if not block.is_floating_point():
            raise AudioError(f"{path}: a waveform is floats in [-1, 1], this one is {block.dtype}")
        if not bool(block.isfinite().all()):
            raise AudioError(f"{path}: the waveform holds NaN or infinite samples")
        channels = block.shape[0]
        yield block


def _stored(piece: Tensor, subtype: str) -> np.ndarray[Any, Any]:
    """[C, n] as libsndfile takes it: [n, C], clipped."""
    samples = piece.detach().float().cpu().clamp(-1.0, 1.0).T.contiguous().numpy()
    if subtype != "PCM_16":
        return samples
    # the exact inverse of reading, which divides by 32768
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
