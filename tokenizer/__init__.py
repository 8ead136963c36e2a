"""Waveform to codes and back: codecs, their training step, and quality metrics.

Shape letters, the same everywhere: B batch, C audio channels, S samples, T frames, K codebooks, V codebook size,
D latent dimension, H heads. S = T x hop_length.
"""

from tokenizer.audio_file import read_audio, write_audio
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
from tokenizer.resample import RESAMPLER, mix_channels, resample
from tokenizer.spec import CodecSpec

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
    "bundled_codecs",
    "export_codec",
    "load_codec",
    "mix_channels",
    "read_audio",
    "resample",
    "save_codec",
    "write_audio",
]
