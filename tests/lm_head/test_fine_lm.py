"""The fine model and its pair: finer levels of all frames at once, from the coarser ones alone."""

import math

import pytest
import torch

from lm_head.coarse_first import CoarseFirstConfig, CoarseFirstLM, build_language_model
from lm_head.fine_lm import FineLM
from lm_head.token_lm import LMConfig, TokenLM
from tests.lm_head.small_language import LEVELS, SIZE, taught_lm, tiny_lm, utterances
from tokenizer import CodesError

CODES = torch.randint(SIZE, (2, LEVELS, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair():
    """Random weights."""
    return tiny_lm("coarse_first").requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def fine(pair):
    """The fine half."""
    return pair.fine


def logits(fine, codes, level, complete=0, **settings):
    rows = torch.ones(len(codes), dtype=torch.int64)
    return fine(codes, rows * level, rows * complete, **settings)


def changed(codes, level, frame):
    other = codes.clone()
    other[:, level, frame] = (other[:, level, frame] + 1) % SIZE
    return other


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_a_level_sees_all_frames_of_the_levels_below(fine, level):
    """Both ways: the last frame matters for the first, and the first for the last."""
    for below in range(level):
        for frame in (0, 9):
            difference = logits(fine, CODES, level) - logits(fine, changed(CODES, below, frame), level)
            assert difference.abs().amax(dim=2).min() > 0


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_a_level_sees_neither_itself_nor_what_is_finer(fine, level):
    """What is to be predicted cannot leak."""
    for hidden in range(level, LEVELS):
        assert torch.equal(logits(fine, CODES, level), logits(fine, changed(CODES, hidden, 4), level))


def test_complete_frames_show_all_levels(fine):
    """And only those: the frame behind them hides what is asked for."""
    finest = LEVELS - 1
    assert not torch.equal(logits(fine, CODES, 1, complete=4), logits(fine, changed(CODES, finest, 3), 1, complete=4))
    assert torch.equal(logits(fine, CODES, 1, complete=4), logits(fine, changed(CODES, finest, 4), 1, complete=4))


def test_rows_may_ask_for_different_levels(fine):
    """As training does: each row as if it were alone."""
    together = fine(CODES, torch.tensor([2, 1]), torch.tensor([0, 5]))
    torch.testing.assert_close(together[:1], logits(fine, CODES[:1], 2))
    torch.testing.assert_close(together[1:], logits(fine, CODES[1:], 1, complete=5))


def test_nothing_behind_the_end_is_seen(fine):
    """A row of 6 frames in a batch of 10 is a row of 6 frames."""
    rows = torch.ones(2, dtype=torch.int64)
    ended = fine(CODES, rows, 0 * rows, ends=torch.tensor([6, 10]))
    torch.testing.assert_close(ended[:1, :6], logits(fine, CODES[:1, :, :6], 1))
    torch.testing.assert_close(ended[1:], logits(fine, CODES[1:], 1))


def test_filling_keeps_what_was_given_and_goes_level_by_level(fine):
    """Each level is the likeliest one given those below it, the filled ones included."""
    filled = fine.fill(CODES[:, :1], LEVELS)
    assert torch.equal(filled[:, :1], CODES[:, :1])
    for level in range(1, LEVELS):
        assert torch.equal(filled[:, level], logits(fine, filled, level).argmax(dim=-1))
    assert torch.equal(fine.fill(filled[:, :2], LEVELS), filled)
    assert torch.equal(fine.fill(CODES, LEVELS), CODES)


def test_filling_sees_the_past_within_its_window(fine):
    """`context_frames` frames before: earlier ones do not matter, later ones do."""
    past = CODES.repeat(1, 1, 3)
    filled = fine.fill(CODES[:, :1], LEVELS, past=past)
    window = fine.config.context_frames
    assert torch.equal(filled, fine.fill(CODES[:, :1], LEVELS, past=past[..., -window:]))
    complete = torch.cat([past[..., -window:], filled], dim=-1)
    assert torch.equal(filled[:, 1], logits(fine, complete, 1, complete=window)[:, window:].argmax(dim=-1))


def test_text_reaches_every_frame():
    """Another transcript, other logits; a short one beside a long one as if it were alone."""
    fine = tiny_lm("coarse_first", text=True).fine
    texts = ["up", "to the very end"]
    with torch.no_grad():
        together, other = logits(fine, CODES, 1, text=texts), logits(fine, CODES, 1, text=["up", "to the very End"])
        torch.testing.assert_close(together[:1], logits(fine, CODES[:1], 1, text=["up"]))
    difference = (together - other).abs().amax(dim=2)
    assert difference[0].max() == 0
    assert difference[1].min() > 0


def test_the_loss_is_the_mean_cost_of_codes():
    """Untrained, about log V each; bits of each level beside it, all levels being drawn in a large batch."""
    codes, _ = utterances(64, 12, torch.Generator().manual_seed(0))
    lm = tiny_lm("coarse_first")
    for part in (lm.coarse, lm.fine):  # heads without weights give the uniform distribution
        torch.nn.init.zeros_(part.head_weight)
        torch.nn.init.zeros_(part.head_bias)
    loss = lm.loss(codes, torch.Generator().manual_seed(0))
    assert loss.nats.item() == pytest.approx(math.log(SIZE), rel=1e-5)
    torch.testing.assert_close(loss.bits, torch.full((LEVELS,), math.log2(SIZE)))


def test_levels_that_were_not_drawn_are_not_a_number(pair):
    """One row asks for one level: bits of the others are unknown, not 0."""
    loss = pair.fine.loss(CODES[:1], torch.Generator().manual_seed(0))
    assert loss.bits.isnan().tolist().count(False) == 1
    assert loss.bits[0].isnan()
    assert loss.nats.isfinite()


def test_the_generator_decides_what_is_asked(pair):
    """The same seed, the same loss."""
    first, again, other = (pair.loss(CODES, torch.Generator().manual_seed(seed)).nats.item() for seed in (1, 1, 2))
    assert first == again != other


def test_fine_levels_need_a_coarse_one(pair):
    """Codes of one level have nothing to predict, and a model of one level is none."""
    with pytest.raises(CodesError, match="only level 0"):
        pair.fine.loss(CODES[:, :1])
    with pytest.raises(ValueError, match="at least 2 levels"):
        FineLM(LMConfig(num_codebooks=1))


def test_a_trained_fine_model_knows_the_rule():
    """Levels 1 and 2 follow from level 0 of the same and of the frame before."""
    fine = taught_lm("coarse_first", text=False).fine
    codes, _ = utterances(8, 16, torch.Generator().manual_seed(9))
    assert torch.equal(fine.fill(codes[:, :1, 4:], LEVELS, past=codes[..., :4]), codes[..., 4:])


def test_settings_come_back_from_json(pair):
    """Both kinds of model are built from what they wrote; weights fit."""
    for model in (pair, tiny_lm("delay", text=True)):
        rebuilt = build_language_model(model.config.to_dict())
        assert rebuilt.config == model.config
        assert type(rebuilt) is type(model)
        rebuilt.load_state_dict(model.state_dict())
    assert isinstance(pair, CoarseFirstLM)
    assert (pair.config.num_codebooks, pair.config.codebook_size, pair.config.text) == (LEVELS, SIZE, False)


@pytest.mark.parametrize(
    "change",
    [
        {"stretch_frames": 0},
        {"stretch_frames": "5"},
        {"surprise": 1},
        {"coarse": LMConfig(num_codebooks=2).to_dict()},
        {"coarse": LMConfig(num_codebooks=1, layout="delay").to_dict()},
        {"coarse": LMConfig(num_codebooks=1, codebook_size=8).to_dict()},
        {"coarse": LMConfig(num_codebooks=1, text=True).to_dict()},
        {"fine": 3},
        {"fine": {"layout": "diagonal"}},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(change):
    """Unknown keys, other types, halves that do not belong together."""
    plain = CoarseFirstConfig().to_dict()
    with pytest.raises(ValueError, match=r".+"):
        build_language_model({**plain, **change})
    assert isinstance(build_language_model(LMConfig(dim=16, num_layers=1).to_dict()), TokenLM)
