"""Training of token language models: what one step does, and what the integer grid costs."""

import dataclasses

import pytest
import torch

from lm_head.activation_grid import LIMIT, RangeWatch, RoundingGrid, Slot, weight_steps
from lm_head.integer_lm import IntegerLM
from lm_head.integer_weights import quantize
from lm_head.lm_training import LMObjective, LMTraining, rounding_grids
from lm_head.token_lm import LMConfig
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
