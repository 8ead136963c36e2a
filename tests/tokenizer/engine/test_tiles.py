"""AMX in plain C++, so that what is multiplied with what is tested on machines without it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import fit_codebooks, tiny_spec
from tests.tokenizer.streaming import noise, seeded, stream
from tokenizer.codec import Codec
from tokenizer.engine import build_engine, library
from tokenizer.networks import Networks

pytestmark = pytest.mark.slow  # the kernels are compiled for it


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Kernels whose tiles are emulated."""
    patch = pytest.MonkeyPatch()
    patch.setenv("QUANTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(library, "_COMMON_FLAGS", (*library._COMMON_FLAGS, "-DEMULATED_TILES=1"))
    library._loaded.cache_clear()
    found = library.find_kernels()
    if found is None or found.name != "amx":
        pytest.skip("no compiler, or no AVX-512 for bfloats")
    yield found
    patch.undo()
    library._loaded.cache_clear()


def wide_codec(kind, **changed):
    """Rows of 16 words and more, so that tiles are full; random weights."""
    spec = tiny_spec(kind)
    spec = dataclasses.replace(
        spec, network=dataclasses.replace(spec.network, **changed), latent_dim=64, codebook_size=64
    )
    codec = seeded(Codec, spec)
    latents = codec.encoder(noise(1, spec.channels, 4000) if spec.segment is None else noise(9, 2, 160))
    fit_codebooks(codec.quantizer, latents)
    return codec


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("mirrored", {"num_filters": 32, "num_residual_layers": 2, "dilation_base": 3}),
        ("segmented", {"num_filters": 32}),
        ("patch", {"width": 64, "hidden_width": 96, "patch_width": 160}),
    ],
    ids=["mirrored", "segmented", "patch"],
)
@pytest.mark.parametrize("rows", [1, 3, 19])
@torch.inference_mode()
def test_tiles_multiply_what_vectors_multiply(emulated, kind, changed, rows):
    """Networks of full tiles, of tiles that rows do not fill, and of rows from several streams."""
    codec = wide_codec(kind, **changed)
    networks = Networks(codec.encoder, codec.decoder, codec.quantizer)
    fast = build_engine(networks, codec.spec, "fast")
    assert fast.name == "amx, bfloat16"
    waveform = 0.5 * noise(rows, codec.spec.channels, 37 * 8 if kind != "segmented" else 160)
    latents = networks.encoder(waveform)
    for network, plain, x in (
        (fast.networks.encoder, networks.encoder, waveform),
        (fast.networks.decoder, networks.decoder, latents),
    ):
        y = network(x) if kind == "segmented" else stream(network, x, [])
        expected = plain(x)
        assert y.shape == expected.shape
        assert float((y - expected).square().sum() / expected.square().sum()) < 1e-3
    assert torch.equal(fast.networks.quantizer.encode(latents, 4), networks.quantizer.encode(latents, 4))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", ["test_networks.py", "test_compact.py", "test_engine_codec.py", "test_quantizer.py"])
def test_all_laws_hold_with_tiles(emulated, file):
    """What the other files ask of the best kernels that are here, they ask of these."""
    environment = os.environ | {"QUANTONE_TEST_TILES": "emulated"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", str(Path(__file__).parent / file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
