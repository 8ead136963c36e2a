"""Training of token language models: what one step does, and what the integer grid costs."""

import copy
import dataclasses

import pytest
import torch

from lm_head.activation_grid import LIMIT, RangeWatch, RoundingGrid, Slot, weight_steps
from lm_head.integer_lm import IntegerLM
from lm_head.integer_weights import quantize
from lm_head.lm_training import LMObjective, LMTraining, begin_at_codebooks, rounding_grids
from lm_head.token_lm import LMConfig
from tests.lm_head.small_language import LEVELS, MODELS, SIZE, tiny_lm, utterances
from tests.tokenizer.process_group import run_in_processes
from tokenizer.optimization import OptimizerSettings

CONFIG = LMConfig(
    num_codebooks=4, codebook_size=16, dim=32, num_layers=2, num_heads=2, hidden_dim=64, context_frames=16
)
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, betas=(0.9, 0.95))


def make_training(**objective):
    torch.manual_seed(0)
    settings = LMObjective(**{"levels": (2, 4), "max_offset": 50, **objective})
    return LMTraining(CONFIG, settings, OPTIMIZER)


def counting_codes(batch=8, frames=17, seed=0):
    """[B, 4, T] of a language in which each level counts on by its number plus one, from anywhere."""
    first = torch.randint(0, 16, (batch, 4, 1), generator=torch.Generator().manual_seed(seed))
    return (first + torch.arange(frames) * torch.arange(1, 5)[:, None]) % 16


def run(training, steps, total_steps=None, first=0):
    return [
        training.step(counting_codes(seed=n), n, rate_factor=1.0, seed=3, total_steps=total_steps or steps)
        for n in range(first, first + steps)
    ]


def test_a_language_is_learned():
    """From more than log2(V) bits per code to next to none."""
    results = run(make_training(grid_from=1.0), 200)
    assert max(results[0].bits.values()) > 3.9
    assert all(max(result.bits.values()) < 1.5 for result in results[-5:])


def test_a_resumed_training_goes_on_as_if_nothing_had_happened():
    """Even over the step at which the grid begins to hold."""
    undisturbed = make_training(grid_from=0.5)
    run(undisturbed, 12)
    first = make_training(grid_from=0.5)
    run(first, 8, total_steps=12)
    second = LMTraining(CONFIG, first.objective, OPTIMIZER)
    second.load_state_dict(first.state_dict())
    run(second, 4, total_steps=12, first=8)
    for name, value in undisturbed.to_lm().state_dict().items():
        assert torch.equal(value, second.to_lm().state_dict()[name]), name
    assert torch.equal(undisturbed.grid_steps, second.grid_steps)


def test_the_grid_begins_to_hold_at_its_share_of_the_steps():
    training = make_training(grid_from=0.75)
    run(training, 3, total_steps=4)
    assert training.grid_steps is None
    run(training, 1, total_steps=4, first=3)
    assert training.grid_steps.shape == (CONFIG.num_layers + 1, len(Slot))


def test_a_model_trained_on_the_grid_loses_little_as_integers():
    """Its codes cost within 2 % of what the floating point model says, on a language where that is near nothing."""
    training = make_training(grid_from=0.5)
    run(training, 160)
    lm, codes = training.to_lm(), counting_codes(batch=32, seed=99)
    imitated = lm.loss(codes, grids=rounding_grids(training.grid_steps)).bits.mean()
    integer = IntegerLM(quantize(lm, training.grid_steps))
    shifted = torch.nn.functional.pad(codes[..., :-1] + 1, (1, 0))
    frequencies = integer.step(shifted, integer.begin(len(codes), codes.shape[-1])).double()  # [B, T, K, V]
    shares = frequencies.gather(-1, codes.transpose(1, 2)[..., None]).squeeze(-1) / frequencies.sum(dim=-1)
    assert -shares.log2().mean() == pytest.approx(float(imitated), rel=0.02)


def test_levels_are_drawn_from_those_wanted():
    results = run(make_training(levels=(1, 3), scored_levels=2), 30)
    assert {max(result.bits) for result in results} == {0, 1, 2}
    assert {len(result.bits) for result in results} == {1, 2}


def test_a_run_can_start_from_a_model():
    lm = make_training().to_lm()
    again = LMTraining(CONFIG, LMObjective(), OPTIMIZER, start=lm)
    assert torch.equal(again.to_lm().embeddings, lm.embeddings)
    with pytest.raises(ValueError, match="other sizes"):
        LMTraining(dataclasses.replace(CONFIG, dim=48), LMObjective(), OPTIMIZER, start=lm)


def test_a_loss_that_is_not_finite_stops_before_anything_is_updated():
    training = make_training()
    with torch.no_grad():
        training.model.head_bias[0, 0] = torch.inf
    before = training.model.embeddings.clone()
    with pytest.raises(FloatingPointError):
        run(training, 1)
    assert torch.equal(before, training.model.embeddings)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_padding_never_changes_the_loss_of_a_row(kind, text, seed):
    """Whatever stands behind the end of a row: its loss, the bits of each level and the gradient are its own."""
    lm, length = tiny_lm(kind, text=text), 7
    codes, said = utterances(1, 12, torch.Generator().manual_seed(0))
    results = []
    for row, lengths in [(codes[..., :length], None), (codes, [length]), ((codes + 5) % SIZE, [length])]:
        padded = torch.cat([codes[..., :length], row[..., length:]], dim=-1)
        lm.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        loss = lm.loss(padded, generator, text=said if text else None, lengths=lengths and torch.tensor(lengths))
        loss.nats.backward()
        gradient = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
        results.append((loss.nats.detach(), loss.bits, loss.counts, gradient))
    for alone, beside, beside_others in zip(*results, strict=True):
        torch.testing.assert_close(beside, alone, equal_nan=True)
        torch.testing.assert_close(beside_others, alone, equal_nan=True)


@pytest.mark.parametrize("kind", ["parallel", "delay"])
def test_rows_of_a_padded_batch_count_by_their_codes(kind):
    """The loss of rows together is the mean over all of their codes."""
    lm = tiny_lm(kind).requires_grad_(requires_grad=False)
    codes, _ = utterances(2, 12, torch.Generator().manual_seed(0))
    together = lm.loss(codes, lengths=torch.tensor([4, 12]))
    short, long = lm.loss(codes[:1, :, :4]), lm.loss(codes[1:])
    torch.testing.assert_close(together.nats, (4 * short.nats + 12 * long.nats) / 16)
    assert together.counts.tolist() == [16] * LEVELS


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lengths", [[0, 3], [3, 13], [3]], ids=str)
def test_lengths_lie_within_the_batch(kind, lengths):
    """A row has a frame, and no more than there are."""
    codes, _ = utterances(2, 12, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="2 numbers from 1 to 12"):
        tiny_lm(kind).loss(codes, lengths=torch.tensor(lengths))


@pytest.mark.parametrize("kind", ["delay", "coarse_first"])
def test_every_kind_of_model_is_trained(kind):
    """From log2(V) bits per code down, with text that says where each row goes; `to_lm` gives the same kind."""
    torch.manual_seed(0)
    lm = tiny_lm(kind, text=True)
    objective = LMObjective(levels=(LEVELS,), max_offset=0, grid_from=1.0, scored_levels=2)
    training = LMTraining(lm.config, objective, OPTIMIZER)
    means = []
    for step in range(90):
        codes, said = utterances(16, 12, torch.Generator().manual_seed(step))
        lengths = torch.randint(6, 13, (16,), generator=torch.Generator().manual_seed(step))
        settings = {"rate_factor": 1.0, "seed": 0, "total_steps": 90}
        result = training.step(codes, step, text=said, lengths=lengths, **settings)
        means.append(sum(result.bits.values()) / len(result.bits))
    assert means[0] > 3.5
    assert sum(means[-10:]) / 10 < 0.6 * means[0]
    assert type(training.to_lm()) is type(lm)
    assert training.grid_steps is None


@pytest.mark.parametrize("kind", ["delay", "coarse_first"])
def test_a_resumed_training_of_any_kind_goes_on_alike(kind):
    """What a fine model is asked for follows from the number of the step too."""
    objective = LMObjective(levels=(2, 3), grid_from=1.0)
    one, other = (LMTraining(tiny_lm(kind).config, objective, OPTIMIZER) for _ in range(2))
    codes, _ = utterances(4, 12, torch.Generator().manual_seed(0))
    for step in range(4):
        if step == 2:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        for training in (one, other)[: 1 + (step >= 2)]:
            training.step(codes, step, rate_factor=1.0, seed=0, total_steps=4)
    for name, value in one.to_lm().state_dict().items():
        assert torch.equal(value, other.to_lm().state_dict()[name]), name


def test_rows_with_text_are_beginnings():
    """Their first frame is predicted, whatever share of crops is: one of a single frame can be trained on."""
    codes, said = utterances(2, 1, torch.Generator().manual_seed(0))
    objective = LMObjective(levels=(LEVELS,), grid_from=1.0, begin_share=0.0)
    training = LMTraining(tiny_lm("delay", text=True).config, objective, OPTIMIZER)
    result = training.step(codes, 0, text=said, rate_factor=1.0, seed=0, total_steps=1)
    assert len(result.bits) == LEVELS


def step_with_two_rows(rank, rows):
    """One step on some rows of a padded batch, of 4 and of 12 frames; what came of it."""
    codes, said = utterances(2, 12, torch.Generator().manual_seed(0))
    objective = LMObjective(levels=(LEVELS,), max_offset=9, grid_from=1.0)
    training = LMTraining(tiny_lm("delay", text=True).config, objective, OPTIMIZER, start=tiny_lm("delay", text=True))
    mine = slice(None) if rows is None else slice(rank, rank + rows)
    settings = {"rate_factor": 1.0, "seed": 0, "total_steps": 1}
    result = training.step(codes[mine], 0, text=said[mine], lengths=torch.tensor([4, 12])[mine], **settings)
    bits, norm = torch.tensor(list(result.bits.values())), torch.tensor(result.gradient_norm)
    return {"bits": bits, "norm": norm, "weights": training.model.head_bias}


def test_processes_count_by_their_codes():
    """One has a row of 4 frames, the other one of 12: together they make the step of one process with both."""
    alone = step_with_two_rows(0, None)
    for together in run_in_processes(step_with_two_rows, 2, 1):
        for name, value in alone.items():
            torch.testing.assert_close(torch.from_numpy(together[name]), value.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_can_begin_at_codebooks(kind):
    """Codes that sound alike start alike: distances between embeddings are those of entries, in either half."""
    lm, codebooks = tiny_lm(kind), torch.randn(LEVELS, SIZE, 8, generator=torch.Generator().manual_seed(0))
    begin_at_codebooks(lm, codebooks)
    expected = torch.pdist(codebooks[0])
    parts = [lm.coarse, lm.fine] if kind == "coarse_first" else [lm]
    for part in parts:
        distances = torch.pdist(part.embeddings[0, 1:].detach())
        torch.testing.assert_close(distances / distances.mean(), expected / expected.mean())
        heads = torch.pdist(part.head_weight[-1].detach())
        level = torch.pdist(codebooks[part.config.num_codebooks - 1])
        torch.testing.assert_close(heads / heads.mean(), level / level.mean())
    with pytest.raises(ValueError, match="3 levels of 16"):
        begin_at_codebooks(lm, codebooks[:2])


@pytest.mark.parametrize(
    ("kind", "text", "change"),
    [
        ("delay", False, {}),
        ("coarse_first", False, {}),
        ("parallel", True, {}),
        ("coarse_first", False, {"grid_from": 1, "levels": (1, 3)}),
    ],
    ids=["delay", "coarse_first", "text", "levels"],
)
def test_what_a_model_lacks_cannot_be_trained(kind, text, change):
    """An integer form, or a coarser level than the coarsest to predict finer ones from."""
    with pytest.raises(ValueError, match=r"set grid_from to 1|at least 2 levels"):
        LMTraining(tiny_lm(kind, text=text).config, LMObjective(**change), OPTIMIZER)


@pytest.mark.parametrize(
    "change", [{"levels": ()}, {"grid_from": 1.5}, {"begin_share": -1}, {"scored_levels": 0}], ids=str
)
def test_impossible_objectives_are_refused(change):
    with pytest.raises(ValueError, match=r"levels|lie in"):
        LMObjective(**change)


def test_rounding_has_a_slope_of_one():
    """The gradient passes the grid as if it were not there, values end up on it, and large ones are cut off."""
    steps = torch.full((len(Slot),), 0.1)
    x = torch.tensor([0.234, -0.05001, 99.0], requires_grad=True)
    y = RoundingGrid(steps).activation(x, Slot.QUERY)
    torch.testing.assert_close(y, torch.tensor([0.2, -0.1, LIMIT * 0.1]))
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_weights_are_rounded_by_row():
    weight = torch.tensor([[1.0, -0.5, 0.3], [100.0, 1.0, 0.2]])
    rounded = RoundingGrid(torch.ones(len(Slot))).weight(weight)
    assert torch.equal((rounded / weight_steps(weight)).round(), torch.tensor([[127.0, -64, 38], [127, 1, 0]]))


def test_calibration_cuts_off_outliers():
    watch = RangeWatch(quantile=0.99)
    values = torch.linspace(-1, 1, 1001)
    values[0] = 50
    assert torch.equal(watch.activation(values, Slot.KEY), values)
    assert watch.steps()[Slot.KEY] == pytest.approx(1 / LIMIT, rel=0.02)
