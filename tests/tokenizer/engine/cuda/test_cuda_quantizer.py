"""The code search in bfloat16 parts finds the codes of float32."""

import pytest
import torch

from tests.conftest import fit_codebooks, speech_like
from tests.tokenizer.streaming import noise
from tokenizer import load_codec
from tokenizer.engine.cuda import quantizer as room
from tokenizer.engine.cuda.graph_cache import GraphCache
from tokenizer.engine.cuda.quantizer import CudaQuantizer
from tokenizer.quantizer import ResidualQuantizer


class Never:
    """No recorder is asked for anything here."""


def pair(plain, monkeypatch=None):
    """The plain quantizer and its twin, which takes every frame to be one of many."""
    if monkeypatch is not None:
        monkeypatch.setattr(room, "GRAPH_FRAMES", 0)
        monkeypatch.setattr(room, "BLOCK_FRAMES", 300)
    return plain, CudaQuantizer(plain, GraphCache(Never(), calls_before=10**9))


def fitted(points, num_codebooks=6, codebook_size=64):
    plain = ResidualQuantizer(num_codebooks, codebook_size, points.shape[1]).eval()
    fit_codebooks(plain, points)
    return plain


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e-4, 0.0), (1e3, 0.0), (1.0, 100.0)], ids=["unit", "small", "large", "far"]
)
def test_codes_are_those_of_float32(monkeypatch, scale, offset):
    """Whatever the size of latents is, and wherever they lie."""
    latents = scale * noise(2, 32, 1000) + offset
    plain, fast = pair(fitted(latents), monkeypatch)
    for num_codebooks in (1, 6):
        assert torch.equal(fast.encode(latents, num_codebooks), plain.encode(latents, num_codebooks))


def test_codes_of_the_bundled_codec(monkeypatch):
    """With trained codebooks of 1,024 entries, few frames are searched twice."""
    codec = load_codec("speech_24khz")
    plain, fast = pair(codec.quantizer, monkeypatch)
    with torch.inference_mode():
        latents = codec.encoder(torch.from_numpy(speech_like(6.0))[None, None])
        again = []
        exact = fast._exact
        monkeypatch.setattr(fast, "_exact", lambda frames, count: again.append(len(frames)) or exact(frames, count))
        codes, expected = fast.encode(latents, 16), plain.encode(latents, 16)
    assert torch.equal(codes[:, 0], expected[:, 0])
    assert (codes == expected).float().mean() >= 0.9999
    assert sum(again) < 0.05 * latents.shape[-1]


def test_equal_and_nearly_equal_entries_are_told_apart_as_in_float32(monkeypatch):
    """Two of them in a shortlist, and more of them than a shortlist has."""
    points = noise(1, 16, 500)
    plain = fitted(points, 2, 32)
    codebooks = plain.codebooks.clone()
    codebooks[:, 8] = codebooks[:, 3]
    codebooks[:, 9] = codebooks[:, 4] + 1e-6
    codebooks[:, 10:14] = codebooks[:, 5:6] + 1e-6 * noise(4, 16)
    plain.set_codebooks(codebooks)
    _, fast = pair(plain, monkeypatch)
    near = codebooks[0].t()[None].repeat(1, 1, 20) + 1e-3 * noise(1, 16, 640)
    codes, expected = fast.encode(near, 1), plain.encode(near, 1)
    differs = codes != expected
    twins = torch.tensor([9, 4])  # as near as float32 can tell: either is right
    assert bool(torch.isin(expected[differs], twins).all())
    assert 8 not in codes  # of equal entries the first


def test_the_bound_holds(monkeypatch):
    """No distance in bfloat16 parts is wrong by more: against float64, for 100,000 of them."""
    plain = fitted(noise(1, 128, 600), 1, 512)
    _, fast = pair(plain, monkeypatch)
    relative = 3 * noise(200, 128)
    upper, lower = room._split(relative)
    products = torch.cat([upper, upper, lower], dim=1).float() @ fast._columns[0].t().float()
    wrong = (products.double() + 2 * relative.double() @ plain.offsets[0].double().t()).abs().amax(dim=1)
    bound = (room._SPLIT + room._SUM * 128) * relative.norm(dim=1) * fast._longest[0]
    assert bool((wrong <= bound).all())
    assert bool((wrong > 1e-3 * bound).any())  # and it is no bound that anything would keep


def test_what_is_no_number_is_searched_as_in_float32(monkeypatch):
    plain, fast = pair(fitted(noise(1, 16, 200)), monkeypatch)
    latents = noise(1, 16, 50)
    latents[0, 3, 7] = torch.nan
    latents[0, 4, 9] = torch.inf
    assert torch.equal(fast.encode(latents, 6), plain.encode(latents, 6))


@pytest.mark.parametrize("frames", [0, 1, 5, 50])
def test_few_frames_are_searched_in_float32(frames):
    plain, fast = pair(fitted(noise(1, 16, 200)))
    latents = noise(2, 16, frames)
    assert torch.equal(fast.encode(latents, 4), plain.encode(latents, 4))


@pytest.mark.parametrize("shape", [(2, 6, 40), (1, 1, 3), (1, 6, 0)])
def test_codes_become_latents(shape):
    plain, fast = pair(fitted(noise(1, 16, 200)))
    codes = torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fast.decode(codes), plain.decode(codes), rtol=1e-6, atol=1e-6)
