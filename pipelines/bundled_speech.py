"""The speech that comes with Quantone: what the demo encodes, and what speeds and agreements are measured on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tokenizer import CodecSpec, mix_channels, read_audio, resample

DEMO_SPEECH = Path(__file__).parent / "demo_speech"


def bundled_speech(spec: CodecSpec, seconds: float, batch_size: int) -> Tensor:
    """[B, C, S] of the bundled clips, end to end, another part of it in each row."""
    rate = spec.sample_rate
    clips = []
    for path in sorted(DEMO_SPEECH.rglob("*.*")):
        if path.suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3"):
            waveform, source_rate = read_audio(path)
            clips.append(resample(mix_channels(waveform, spec.channels), source_rate, rate))
    everything = torch.cat(clips, dim=-1)
    length = round(seconds * rate)
    everything = everything.repeat(1, -(-length // everything.shape[-1]))
    return torch.stack([everything.roll(-row * rate, dims=-1)[:, :length] for row in range(batch_size)])
