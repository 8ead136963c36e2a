"""Waveform to codes and back: codecs, their training step, and quality metrics.

Shape letters, the same everywhere: B batch, C audio channels, S samples, T frames, K codebooks, V codebook size,
D latent dimension, H heads. S = T x hop_length.

Importing this package imports nothing else: each public name loads its room, and with it torch, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizer.audio_file import open_audio, read_audio
    from tokenizer.audio_writer import write_audio, write_audio_blocks
    from tokenizer.checkpoint import bundled_codecs, load_codec, save_codec
    from tokenizer.codec import Codec
    from tokenizer.encoded import Encoded
    from tokenizer.errors import (
        AudioError,
        BitstreamError,
        CheckpointError,
        CodesError,
        DatasetError,
        QuantoneError,
    )
    from tokenizer.foreign_checkpoint import export_codec
    from tokenizer.long_audio import decode_file, encode_file
    from tokenizer.resampling import RESAMPLER, StreamingResampler, mix_channels, resample
    from tokenizer.spec import CodecSpec
    from tokenizer.stream_state import reset_streams, split_state, stack_states

__all__ = [
    "RESAMPLER",
    "AudioError",
    "BitstreamError",
    "CheckpointError",
    "Codec",
    "CodecSpec",
    "CodesError",
    "DatasetError",
    "Encoded",
    "QuantoneError",
    "StreamingResampler",
    "bundled_codecs",
    "decode_file",
    "encode_file",
    "export_codec",
    "load_codec",
    "mix_channels",
    "open_audio",
    "read_audio",
    "resample",
    "reset_streams",
    "save_codec",
    "split_state",
    "stack_states",
    "write_audio",
    "write_audio_blocks",
]

_ROOMS = {
    "audio_file": ("open_audio", "read_audio"),
    "audio_writer": ("write_audio", "write_audio_blocks"),
    "checkpoint": ("bundled_codecs", "load_codec", "save_codec"),
    "codec": ("Codec",),
    "encoded": ("Encoded",),
    "errors": ("AudioError", "BitstreamError", "CheckpointError", "CodesError", "DatasetError", "QuantoneError"),
    "foreign_checkpoint": ("export_codec",),
    "long_audio": ("decode_file", "encode_file"),
    "resampling": ("RESAMPLER", "StreamingResampler", "mix_channels", "resample"),
    "spec": ("CodecSpec",),
    "stream_state": ("reset_streams", "split_state", "stack_states"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokenizer.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
