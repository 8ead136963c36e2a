"""A tiny seeded codec and small audio, shared by all tests."""

import math

import numpy as np
import pytest
import soundfile
import torch

from tokenizer import Codec, CodecSpec, save_codec
from tokenizer.spec import PatchConfig, SeanetConfig

torch.set_num_threads(1)  # two cores run tests and Ray workers side by side


def tiny_spec(family: str = "seanet", pad_mode: str = "constant") -> CodecSpec:
    """Hop 8, four codebooks of 16: small enough to read, whole enough to break like a real codec."""
    network = (
        SeanetConfig(num_filters=4, strides=(2, 4), num_lstm_layers=1, pad_mode=pad_mode)
        if family == "seanet"
        else PatchConfig(
            patch_width=24, width=16, hidden_width=32, encoder_blocks=2, decoder_blocks=2, kernel_size=3, overlap=4
        )
    )
    return CodecSpec(
        family=family,
        sample_rate=24000,
        hop_length=8,
        num_codebooks=4,
        codebook_size=16,
        latent_dim=8,
        network=network,
    )


def make_codec(spec: CodecSpec) -> Codec:
    """Random weights, and codebooks as wide as the latents of speech-like noise, so that codes vary."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec(spec, name=f"tiny_{spec.family}").eval().requires_grad_(requires_grad=False)
    latents = codec.encoder(0.3 * torch.randn(1, spec.channels, 4000 * spec.hop_length, generator=generator))[0].T
    residual = latents.clone()
    for table in codec.quantizer.codebooks:
        table.copy_(residual[torch.randperm(len(residual), generator=generator)[: spec.codebook_size]])
        residual = residual - table[torch.cdist(residual, table).argmin(dim=1)]
    return codec


@pytest.fixture(scope="session", params=["seanet", "patch"])
def tiny_codec(request):
    """Both families, so that every law about codecs holds for both."""
    return make_codec(tiny_spec(request.param))


@pytest.fixture(scope="session")
def tiny_codec_dir(tmp_path_factory):
    """A codec directory that `load_codec` reads."""
    directory = tmp_path_factory.mktemp("codec") / "tiny"
    save_codec(make_codec(tiny_spec("patch")), directory)
    return directory


def speech_like(seconds: float, sample_rate: int = 24000, seed: int = 0) -> np.ndarray:
    """[S] float32: harmonics under a syllable-like envelope, with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch = 2 * math.pi * np.cumsum(120 + 20 * np.sin(2 * math.pi * 0.7 * time + seed)) / sample_rate
    voice = sum(np.sin(k * pitch) / k for k in range(1, 12))
    envelope = 0.5 + 0.5 * np.sin(2 * math.pi * 3.1 * time + seed)
    return (0.15 * envelope * voice + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def waveform():
    """[1, S] of speech-like sound at 24 kHz, not a whole number of frames."""
    return torch.from_numpy(speech_like(1.0)[None, :23999])


@pytest.fixture
def speech_folder(tmp_path):
    """A folder tree of ten short wavs at two sample rates."""
    for index in range(10):
        rate = (16000, 24000)[index % 2]
        path = tmp_path / "speech" / f"speaker{index % 3}" / f"clip{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech_like(0.2 + 0.05 * index, rate, seed=index), rate)
    return tmp_path / "speech"
