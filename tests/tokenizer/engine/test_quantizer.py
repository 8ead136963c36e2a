"""The search of the kernels finds the nearest entries, as float32 has them, in whatever numbers it looks first."""

import pytest
import torch

from tokenizer.engine import library
from tokenizer.engine.quantizer import EngineQuantizer
from tokenizer.quantizer import ResidualQuantizer

LEVELS = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizers(kernels, entries, width):
    """One of torch and one of the kernels, with entries in twins: they differ by a thousandth of their length."""
    pairs = random(LEVELS, -(-entries // 2), width)
    codebooks = torch.stack([pairs, pairs + 1e-3 * random(*pairs.shape, seed=1)], dim=2).flatten(1, 2)[:, :entries]
    plain = ResidualQuantizer(LEVELS, entries, width)
    plain.set_codebooks(codebooks * torch.tensor([1.0, 0.5, 0.25])[:, None, None] + 0.3)
    return plain, EngineQuantizer(plain, kernels)


def lost_by(codebooks, latents, codes):
    """How much farther than the nearest entry each chosen one is, as a share of |x| |c|: [levels, frames]."""
    residual, lost = latents.double(), []
    for level, entries in enumerate(codebooks.double()):
        distances = torch.cdist(residual, entries, compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = distances.gather(1, codes[:, level : level + 1]).squeeze(1)
        centre = entries.mean(dim=0)
        scale = (residual - centre).norm(dim=1) * (entries - centre).norm(dim=1).amax()
        lost.append((chosen - distances.amin(dim=1)) / scale)
        residual = residual - entries[codes[:, level]]
    return torch.stack(lost)


@pytest.mark.parametrize("width", [8, 64, 128, 256, 272])
@pytest.mark.parametrize(("entries", "frames"), [(1024, 500), (100, 85), (17, 1)])
def test_the_nearest_entries_are_found(kernels, entries, width, frames):
    """Twins are too close for bytes: what comes into question is compared again in floats."""
    plain, searched = quantizers(kernels, entries, width)
    latents = random(1, width, frames, seed=2) * 10 ** random(1, 1, frames, seed=3)
    codes = searched.encode(latents, LEVELS)
    assert codes.shape == (1, LEVELS, frames)
    rows, found = latents[0].T, codes[0].T
    assert lost_by(plain.codebooks, rows, found).max() < 2e-6
    assert (found == plain.encode(latents, LEVELS)[0].T).float().mean() > 0.995


@pytest.mark.parametrize("rounded", ["frame", "entries"])
def test_rounding_that_all_goes_one_way(kernels, rounded):
    """In bytes each value of one of the two vectors loses 0.49 and the product changes its sign; the codes do not."""
    coarse, fine = torch.full((64,), 127.0), torch.full((64,), 1.49)
    coarse[0], fine[0] = -78, 127
    offset, frame = (coarse, fine) if rounded == "frame" else (fine, coarse)
    plain = ResidualQuantizer(1, 2, 64)
    plain.set_codebooks(torch.stack([offset, -offset])[None])
    latents = torch.stack([frame, -frame], dim=1)[None]
    assert torch.equal(EngineQuantizer(plain, kernels).encode(latents, 1), torch.tensor([[[0, 1]]]))


def test_a_frame_has_its_codes_in_any_company(kernels):
    """Alone, among others, and beside one a million times as large."""
    _, searched = quantizers(kernels, 1024, 128)
    latents = random(1, 128, 90, seed=2)
    together = searched.encode(latents, LEVELS)
    for frame in (0, 41, 89):
        assert torch.equal(searched.encode(latents[:, :, frame : frame + 1], LEVELS), together[:, :, frame : frame + 1])
    latents[:, :, 5] *= 1e6
    changed = searched.encode(latents, LEVELS)
    others = [frame for frame in range(90) if frame != 5]
    assert torch.equal(changed[:, :, others], together[:, :, others])


def test_silence_and_an_entry_itself(kernels):
    """Zeros have a nearest entry, and an entry is its own."""
    plain, searched = quantizers(kernels, 64, 64)
    assert torch.equal(searched.encode(torch.zeros(1, 64, 3), 1), plain.encode(torch.zeros(1, 64, 3), 1))
    assert torch.equal(searched.encode(plain.codebooks[0].T[None], 1)[0, 0], torch.arange(64))


@pytest.mark.parametrize("level", ["avx512_vnni", "avx512_bf16"])
def test_bytes_look_first_where_they_are_multiplied_fastest(monkeypatch, level):
    """And leave to others what does not fit them."""
    monkeypatch.setenv("QUANTONE_ENGINE", level)
    kernels = library.find_kernels()
    if kernels is None or kernels.name != level:
        pytest.skip("no products of bytes here, or no compiler")
    assert quantizers(kernels, 64, 128)[1]._scales is not None
    assert quantizers(kernels, 64, 24)[1]._scales is None
