"""Generation: what follows a prompt, frame by frame, decided by the model, the settings and the seed alone."""

import itertools

import pytest
import torch

from lm_head.generation import generate
from lm_head.sampling import Sampling
from tests.lm_head.small_language import LEVELS, MODELS, SIZE, sharpened, spoken, taught_lm, tiny_lm
from tokenizer import CodesError

GREEDY = Sampling(temperature=0)


def random_codes(*shape, seed=0):
    return torch.randint(SIZE, shape, generator=torch.Generator().manual_seed(seed))


def generated(lm, prompt, num_frames, **settings):
    """All new frames at once."""
    return torch.cat(list(generate(lm, prompt, num_frames, **settings)), dim=-1)


@pytest.fixture(scope="module", params=MODELS)
def lm(request):
    """Random weights: every code is possible."""
    return sharpened(tiny_lm(request.param))


@pytest.fixture(scope="module", params=[(kind, text) for kind in MODELS for text in (False, True)], ids=str)
def taught(request):
    """A model that knows the small language, and whether it goes by text."""
    kind, text = request.param
    return taught_lm(kind, text=text), text


def test_a_trained_model_continues_the_pattern(taught):
    """Counting up or down goes on as it began; with text, one frame is enough: the word says where to."""
    lm, text = taught
    prompt_frames = 1 if text else 4
    directions = ["up", "down"] * 4
    codes = torch.stack([spoken(3 * row, direction, 20) for row, direction in enumerate(directions)])
    new = generated(
        lm, codes[..., :prompt_frames], 20 - prompt_frames, sampling=GREEDY, text=directions if text else None
    )
    assert (new == codes[..., prompt_frames:]).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["parallel", "delay"])
@pytest.mark.parametrize("prompt_frames", [0, 1, 7])
def test_greedy_steps_are_the_likeliest_codes_of_the_whole(kind, prompt_frames):
    """Stepwise generation is the argmax of one pass over prompt and result, beyond the model's window too."""
    lm = tiny_lm(kind)
    prompt = random_codes(2, LEVELS, prompt_frames)
    new = generated(lm, prompt, 25, sampling=GREEDY)
    with torch.no_grad():
        logits = lm(torch.cat([prompt, new], dim=-1))
    assert torch.equal(new, logits[:, prompt_frames:].argmax(dim=-1).transpose(1, 2))


def test_greedy_coarse_codes_are_those_of_the_coarse_model():
    """Level 0 owes nothing to the other levels, which are those that the fine model gives for it."""
    lm = tiny_lm("coarse_first")
    prompt = random_codes(2, LEVELS, 4)
    new = generated(lm, prompt, 5, sampling=GREEDY)
    assert torch.equal(new[:, :1], generated(lm.coarse, prompt[:, :1], 5, sampling=GREEDY))
    assert torch.equal(new, lm.fine.fill(new[:, :1], LEVELS, past=prompt))


def test_the_seed_decides_everything(lm):
    """The same seed gives the same codes, another one does not."""
    prompt = random_codes(1, LEVELS, 3)
    first = generated(lm, prompt, 12, seed=4)
    assert torch.equal(first, generated(lm, prompt, 12, seed=4))
    assert not torch.equal(first, generated(lm, prompt, 12, seed=5))


def test_one_candidate_is_greedy(lm):
    """top_k 1 leaves nothing to chance, at any temperature."""
    prompt = random_codes(2, LEVELS, 3)
    likeliest = generated(lm, prompt, 12, sampling=GREEDY)
    assert torch.equal(likeliest, generated(lm, prompt, 12, sampling=Sampling(temperature=3.0, top_k=1), seed=8))


def test_rows_do_not_depend_on_each_other(lm):
    """A row is what its seed gives alone."""
    prompt = random_codes(3, LEVELS, 3)
    together = generated(lm, prompt, 12, seed=[7, 1, 7])
    for row, seed in enumerate([7, 1, 7]):
        assert torch.equal(together[row : row + 1], generated(lm, prompt[row : row + 1], 12, seed=seed))


def test_prompts_are_never_changed(lm):
    """Neither the caller's tensor, nor what the model goes on from: any other prompt is followed by something else."""
    prompt = random_codes(1, LEVELS, 6)
    kept = prompt.clone()
    new = generated(lm, prompt, 12, seed=3)
    assert torch.equal(prompt, kept)
    other = prompt.clone()
    other[0, 0, 2] = (other[0, 0, 2] + 1) % SIZE
    assert not torch.equal(new, generated(lm, other, 12, seed=3))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 11])
@pytest.mark.parametrize("num_codebooks", [1, 2, LEVELS])
def test_as_many_frames_come_as_were_asked_for(lm, num_frames, num_codebooks):
    """Exactly, with any number of levels, and without a prompt too; all of them are codes."""
    new = generated(lm, random_codes(2, num_codebooks, 0), num_frames)
    assert new.shape == (2, num_codebooks, num_frames)
    assert 0 <= int(new.min()) <= int(new.max()) < SIZE


@pytest.mark.parametrize(
    ("kind", "steps", "frames"), [("parallel", 1, 1), ("delay", LEVELS, 1), ("coarse_first", 5, 5)]
)
def test_frames_come_as_soon_as_they_are_known(kind, steps, frames, monkeypatch):
    """The first ones are there long before the last: after one step, one for each level, or a stretch."""
    lm = tiny_lm(kind)
    stepping = lm.coarse if kind == "coarse_first" else lm
    calls = []
    step = stepping._step
    monkeypatch.setattr(stepping, "_step", lambda *state: calls.append(1) or step(*state))
    stream = generate(lm, random_codes(1, LEVELS, 0), 1000)
    assert calls == []
    assert next(stream).shape == (1, LEVELS, frames)
    assert len(calls) <= steps


def test_stopping_early_gives_the_beginning(lm):
    """Nobody needs to wait for the end: what has come does not depend on what was asked for after it."""
    prompt = random_codes(2, LEVELS, 3)
    stream = generate(lm, prompt, 1000, seed=1)
    some = torch.cat(list(itertools.islice(stream, 10)), dim=-1)
    assert torch.equal(some, generated(lm, prompt, some.shape[-1] + LEVELS, seed=1)[..., : some.shape[-1]])


def test_generation_keeps_no_gradient(lm):
    """Memory does not grow with what lies behind, also where gradients are on."""
    assert all(not frame.requires_grad for frame in generate(lm, random_codes(1, LEVELS, 2), 6))


@pytest.mark.parametrize(
    "prompt",
    [
        random_codes(LEVELS, 4),
        random_codes(0, LEVELS, 4),
        random_codes(1, 0, 4),
        random_codes(1, LEVELS + 1, 4),
        random_codes(1, LEVELS, 4).int(),
        random_codes(1, LEVELS, 4) + SIZE,
        random_codes(1, LEVELS, 4) - SIZE,
    ],
    ids=lambda prompt: f"{prompt.dtype} {list(prompt.shape)}",
)
def test_prompts_are_checked_at_once(lm, prompt):
    """When generate is called, not when the first frame is asked for."""
    with pytest.raises(CodesError):
        generate(lm, prompt, 3)


def test_wrong_arguments_are_refused_at_once(lm):
    """No frames, too few seeds, text for a model that takes none."""
    prompt = random_codes(2, LEVELS, 4)
    with pytest.raises(ValueError, match="at least 1 frame"):
        generate(lm, prompt, 0)
    with pytest.raises(ValueError, match="1 seeds for 2 rows"):
        generate(lm, prompt, 3, seed=[1])
    with pytest.raises(ValueError, match="without text"):
        generate(lm, prompt, 3, text=["up", "down"])
