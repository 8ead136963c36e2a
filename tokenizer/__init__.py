"""Waveform to codes and back: codecs, their training step, and quality metrics.

Shape letters, the same everywhere: B batch, C audio channels, S samples, T frames, K codebooks, V codebook size,
D latent dimension, H heads. S = T x hop_length.
"""

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
from tokenizer.resample import RESAMPLER, StreamingResampler, mix_channels, resample
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
