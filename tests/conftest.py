"""A tiny seeded codec and small audio, shared by all tests."""

import dataclasses
import math

import numpy as np
import pytest
import soundfile
import torch

from tokenizer import Codec, CodecSpec, save_codec
from tokenizer.network_config import DacConfig, PatchConfig, SeanetConfig
from tokenizer.quantizer import FactorizedQuantizer, Quantizer
from tokenizer.spec import SegmentConfig

torch.set_num_threads(1)  # two cores run tests and Ray workers side by side


def pytest_collection_modifyitems(items):
    """Tests marked gpu need one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


_TINY_SEANET = SeanetConfig(num_filters=4, strides=(2, 4), num_lstm_layers=1)
_TINY_NETWORKS = {
    "seanet": _TINY_SEANET,
    "mirrored": dataclasses.replace(_TINY_SEANET, pad_mode="reflect"),
    "segmented": dataclasses.replace(_TINY_SEANET, pad_mode="reflect", causal=False, norm="time_group_norm"),
    "patch": PatchConfig(
        patch_width=24, width=16, hidden_width=32, encoder_blocks=2, decoder_blocks=2, kernel_size=3, overlap=4
    ),
    "dac": DacConfig(encoder_width=4, decoder_width=16, strides=(2, 4), codebook_dim=4),
}


def tiny_spec(kind: str = "seanet") -> CodecSpec:
    """Hop 8, four codebooks of 16: small enough to read, whole enough to break like a real codec."""
    return CodecSpec(
        family="seanet" if kind in ("mirrored", "segmented") else kind,
        sample_rate=24000,
        hop_length=8,
        num_codebooks=4,
        codebook_size=16,
        latent_dim=8,
        network=_TINY_NETWORKS[kind],
        channels=2 if kind == "segmented" else 1,
        segment=SegmentConfig(length=160, stride=152, normalize=True) if kind == "segmented" else None,
    )


def make_codec(spec: CodecSpec) -> Codec:
    """Random weights, with codebooks fitted to the latents of noise."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec(spec, name=f"tiny_{spec.family}").eval().requires_grad_(requires_grad=False)
    num_samples = 4000 * spec.hop_length if spec.segment is None else spec.segment.length
    rows = 1 if spec.segment is None else 200
    waveform = torch.randn(rows, spec.channels, num_samples, generator=generator) * (0.3 if rows == 1 else 1.0)
    fit_codebooks(codec.quantizer, codec.encoder(waveform))
    return codec


def fit_codebooks(quantizer: Quantizer, latents: torch.Tensor) -> None:
    """Entries are latents, or what the levels before left of them, so that codes vary at every level."""
    generator = torch.Generator().manual_seed(0)
    residual = latents.transpose(1, 2).flatten(0, 1)  # [N, D]
    codebooks = quantizer.codebooks.clone()
    for level, codebook in enumerate(codebooks):
        some = residual[torch.randperm(len(residual), generator=generator)[: len(codebook)]]
        if isinstance(quantizer, FactorizedQuantizer):
            some = some @ quantizer.in_weight[level].T + quantizer.in_bias[level]
        codebook.copy_(some)
        quantizer.set_codebooks(codebooks)
        residual = residual - quantizer.search(residual, level)[1]


@pytest.fixture(scope="session", params=["seanet", "mirrored", "patch", "dac"])
def tiny_codec(request):
    """Every family that streams, so that every law about codecs holds for all."""
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
