"""Layout "delay" inside the model: a code is predicted from the coarser ones of its frame, and nothing leaks."""

import math

import pytest
import torch
from torch.nn import functional

from lm_head.layouts import make_layout
from lm_head.token_lm import LMConfig
from tests.lm_head.small_language import LEVELS, SIZE, tiny_lm
from tokenizer import CodesError

CODES = torch.randint(SIZE, (2, LEVELS, 9), generator=torch.Generator().manual_seed(0))
LAYOUT = make_layout("delay", num_codebooks=LEVELS, codebook_size=SIZE)


@pytest.fixture(scope="module")
def lm():
    """Random weights."""
    return tiny_lm("delay").requires_grad_(requires_grad=False)


def influence(lm, level, frame, **settings):
    """[T, K]: which logits change with one code."""
    other = CODES.clone()
    other[:, level, frame] = (other[:, level, frame] + 1) % SIZE
    return (lm(CODES, **settings) - lm(other, **settings)).abs().amax(dim=(0, 3)) > 0


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("level", range(LEVELS))
@pytest.mark.parametrize("frame", [1, 5])
def test_a_code_sees_what_came_on_earlier_diagonals(lm, level, frame, begins):
    """Level k of frame t is predicted from level j of frame s where s + j < t + k, and from nothing else."""
    seen = influence(lm, level, frame, begins=begins)
    first = 0 if begins else 1  # a stream that does not begin here lacks the logits of its first frame
    for row, by_level in enumerate(seen.tolist()):
        for k, changes in enumerate(by_level):
            assert changes == (frame + level < row + first + k)


def test_steps_take_the_tokens_of_the_layout(lm):
    """Stepping through delayed tokens gives the logits of the whole, each level so many steps later."""
    tokens = LAYOUT.tokens(CODES)
    logits, state = lm.begin(2, LEVELS)
    steps = [logits]
    for piece in tokens.split([1, 4, 1, 5], dim=-1):
        logits, state = lm.step(piece, state)
        steps.append(logits)
    stepwise = torch.cat(steps, dim=1)
    for level in range(LEVELS):
        torch.testing.assert_close(stepwise[:, level : level + 9, level], lm(CODES)[:, :, level])


def test_only_delayed_models_know_nothing(lm):
    """The token V stands where no frame is; in layout "parallel" it is an error, and so is V + 1 in either."""
    nothing = torch.full((2, LEVELS, 1), SIZE)
    _, state = lm.begin(2, LEVELS)
    lm.step(nothing, state)
    with pytest.raises(CodesError):
        lm.step(nothing + 1, state)
    parallel = tiny_lm("parallel")
    _, state = parallel.begin(2, LEVELS)
    with pytest.raises(CodesError):
        parallel.step(nothing, state)


@pytest.mark.parametrize("kind", ["parallel", "delay"])
@pytest.mark.parametrize("begins", [True, False])
def test_some_levels_alone_are_those_of_all(kind, begins):
    """`scored` saves work and changes nothing."""
    lm = tiny_lm(kind)
    levels = torch.tensor([0, 2])
    torch.testing.assert_close(lm(CODES, begins=begins, scored=levels), lm(CODES, begins=begins)[:, :, levels])


@pytest.mark.parametrize("kind", ["parallel", "delay"])
@pytest.mark.parametrize("begins", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_logits(kind, begins):
    """In nats over all codes that are predicted, and in bits by level; NaN where a level was left out."""
    lm = tiny_lm(kind).requires_grad_(requires_grad=False)
    offset = torch.tensor([[7], [900]])
    predicted = CODES if begins else CODES[..., 1:]
    logits = lm(CODES, begins=begins, offset=offset)
    costs = functional.cross_entropy(logits.permute(0, 3, 2, 1), predicted, reduction="none")
    loss = lm.loss(CODES, begins=begins, offset=offset)
    torch.testing.assert_close(loss.nats, costs.mean())
    torch.testing.assert_close(loss.bits, costs.mean(dim=(0, 2)) / math.log(2))
    some = lm.loss(CODES, begins=begins, offset=offset, scored=torch.tensor([1]))
    torch.testing.assert_close(some.nats, costs[:, 1].mean())
    assert some.bits.isnan().tolist() == [True, False, True]


def test_settings_of_layout_and_text_are_checked():
    """Unknown layouts, and values of another type; other settings take no true or false."""
    assert LMConfig.from_dict({"layout": "delay", "text": True}) == LMConfig(layout="delay", text=True)
    for wrong in ({"layout": "coarse_first"}, {"layout": 1}, {"text": 1}, {"text": "yes"}, {"dim": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LMConfig.from_dict(wrong)
