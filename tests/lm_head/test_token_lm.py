"""The token language model in floating point: one function, at once, in chunks and step by step."""

import dataclasses

import pytest
import torch

from lm_head.lm_training import begin_at_codebooks
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer import CodesError

CONFIG = LMConfig(
    num_codebooks=4, codebook_size=16, dim=24, num_layers=2, num_heads=2, hidden_dim=32, context_frames=10
)


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    return TokenLM(CONFIG).eval().requires_grad_(requires_grad=False)


def some_codes(batch=2, levels=4, frames=40):
    return torch.randint(0, 16, (batch, levels, frames), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunks", [[1] * 39, [3, 36], [20, 1, 18], [39]], ids=lambda value: str(value[:3]))
def test_chunks_and_steps_are_at_once(lm, chunks):
    codes = some_codes()
    logits, state = lm.begin(2, 4)
    found = [logits]
    for chunk in torch.split(codes[..., :-1], chunks, dim=-1):
        logits, state = lm.step(chunk, state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), lm(codes), atol=2e-6, rtol=0)


def test_a_state_can_be_gone_on_from_twice(lm):
    """Nothing of a stream is kept on the model or changed in its state."""
    codes = some_codes()
    _, state = lm.begin(2, 4)
    first, _ = lm.step(codes[..., :5], state)
    lm.step(codes[..., 5:9], state)
    again, _ = lm.step(codes[..., :5], state)
    assert torch.equal(first, again)


def test_no_frame_sees_itself_or_the_future(lm):
    codes = some_codes()
    changed = codes.clone()
    changed[..., 20] = (changed[..., 20] + 1) % 16
    before, after = lm(codes), lm(changed)
    assert torch.equal(before[:, :21], after[:, :21])
    assert (before[:, 21] != after[:, 21]).any()


def test_the_past_beyond_the_context_does_not_count():
    """With one layer: what a layer sees is its context, and not one frame more."""
    torch.manual_seed(0)
    lm = TokenLM(dataclasses.replace(CONFIG, num_layers=1)).eval()
    codes = some_codes()
    changed = codes.clone()
    changed[..., 5] = (changed[..., 5] + 1) % 16
    same = (lm(codes) == lm(changed)).all(dim=-1).all(dim=-1)[0]  # [T]; frame 5 is the input at position 6
    assert same[:6].all()
    assert not same[6:17].any()
    assert same[17:].all()


def test_a_piece_without_its_beginning_is_the_middle_of_a_stream(lm):
    """Once the context is full, nothing tells a piece from its whole stream but the position."""
    codes = some_codes(frames=60)
    single = TokenLM(dataclasses.replace(CONFIG, num_layers=1)).eval()
    whole = single(codes)
    piece = single(codes[..., 20:], begins=False, offset=21)
    torch.testing.assert_close(piece[:, 10:], whole[:, 31:], atol=2e-6, rtol=0)


def test_the_offset_is_that_of_positions(lm):
    """Each row may have its own, and another offset is another prediction."""
    codes = some_codes()
    rows = torch.cat([lm(codes[:1], offset=3), lm(codes[1:], offset=700)])
    torch.testing.assert_close(lm(codes, offset=torch.tensor([[3], [700]])), rows, atol=2e-6, rtol=0)
    assert not torch.allclose(lm(codes), rows, atol=1e-3)


def test_scored_levels_are_those_of_all(lm):
    codes, levels = some_codes(), torch.tensor([0, 3])
    torch.testing.assert_close(lm(codes, scored=levels), lm(codes)[:, :, levels], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 5, 3, dtype=torch.int64), "5 levels"),
        (torch.full((1, 4, 3), 16), "0 to 15"),
        (torch.full((1, 4, 3), -1), "0 to 15"),
        (torch.zeros(4, 3, dtype=torch.int64), "int64"),
        (torch.zeros(1, 4, 3), "int64"),
        (torch.zeros(1, 4, 0, dtype=torch.int64), "empty"),
    ],
    ids=["levels", "large", "negative", "shape", "type", "empty"],
)
def test_codes_are_checked_at_the_door(lm, codes, message):
    with pytest.raises(CodesError, match=message):
        lm(codes)


@pytest.mark.parametrize("change", [{"dim": 25}, {"num_layers": 0}, {"context_frames": -1}], ids=str)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match=r"dim|positive"):
        dataclasses.replace(CONFIG, **change)


def test_config_survives_json_and_refuses_unknown_keys():
    assert LMConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="num_heds"):
        LMConfig.from_dict({"num_heds": 3})
    with pytest.raises(ValueError, match="dim"):
        LMConfig.from_dict({"dim": "wide"})


@pytest.mark.parametrize("width", [8, 24, 40])
def test_a_model_begins_at_the_codebooks(width):
    """Frames are embedded as a turned copy of their latents: distances between frames are those of the latents."""
    torch.manual_seed(0)
    lm, codebooks = TokenLM(CONFIG), torch.randn(4, 16, width)
    begin_at_codebooks(lm, codebooks)
    centred = codebooks - codebooks.mean(dim=1, keepdim=True)
    latents = centred[0, :, None] + centred[1][None]  # [V, V, D'] of two levels
    embedded = lm.embeddings[0, 1:, None] + lm.embeddings[1, 1:][None]
    expected, found = torch.pdist(latents.flatten(0, 1)), torch.pdist(embedded.detach().flatten(0, 1))
    correlation = torch.corrcoef(torch.stack([expected, found]))[0, 1]
    assert correlation > (0.9999 if width <= CONFIG.dim else 0.8)


@pytest.mark.parametrize("shape", [(3, 16, 8), (4, 32, 8)], ids=["levels", "size"])
def test_codebooks_of_another_codec_are_refused(shape):
    with pytest.raises(ValueError, match="codebooks are"):
        begin_at_codebooks(TokenLM(CONFIG), torch.randn(shape))
