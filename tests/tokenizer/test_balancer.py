"""The loss balancer."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.process_group import run_in_processes
from tokenizer.adversarial import feature_matching_loss
from tokenizer.balancer import BalancerState, balance
from tokenizer.losses import MelConfig, MelLoss, time_loss
from tokenizer.stft_discriminator import MultiScaleStftDiscriminator, StftDiscriminatorConfig

WEIGHTS = {"time": 0.1, "mel": 1.0, "feature": 3.0}


def losses_of(decoded, scale=1.0):
    """Three losses of very different size, means over the batch."""
    return {
        "time": scale * decoded.abs().mean(),
        "mel": 1000 * (decoded - 1).square().mean(),
        "feature": 1e-3 * decoded[..., ::2].sin().mean(),
    }


def batch(step, rows=4):
    return torch.randn(rows, 1, 50, generator=torch.Generator().manual_seed(step)).requires_grad_()


def reference(steps, decay):
    """The equation in numpy, with the bias-corrected means of audiocraft: the balanced gradient of the last step.

    audiocraft does not multiply a norm by the number of items, and divides by it here: B times as long.
    """
    totals, counts = dict.fromkeys(WEIGHTS, 0.0), 0.0
    for step in range(steps):
        decoded = batch(step)
        gradients = {
            name: torch.autograd.grad(loss, decoded, retain_graph=True)[0].numpy()
            for name, loss in losses_of(decoded).items()
        }
        counts = decay * counts + 1
        for name, gradient in gradients.items():
            norm = np.mean([np.linalg.norm(row) for row in gradient * len(gradient)])
            totals[name] = decay * totals[name] + norm
    total = sum(WEIGHTS.values())
    return sum(WEIGHTS[name] / total * gradients[name] / (totals[name] / counts) for name in WEIGHTS)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_follows_the_equation(steps):
    """Over several steps, with the means of all of them."""
    state = BalancerState.start(WEIGHTS)
    for step in range(steps):
        decoded = batch(step)
        gradient, _, state = balance(losses_of(decoded), decoded, WEIGHTS, state, decay=0.9)
    np.testing.assert_allclose(gradient.numpy(), reference(steps, 0.9), rtol=1e-4, atol=1e-9)


def test_weights_are_shares_of_the_gradient():
    """Whatever the size of the losses: 0.1 of 4.1 comes from the first, and so on."""
    decoded = batch(0)
    _, shares, _ = balance(losses_of(decoded), decoded, WEIGHTS, BalancerState.start(WEIGHTS))
    assert shares == pytest.approx({name: weight / 4.1 for name, weight in WEIGHTS.items()}, rel=1e-5)


def test_the_scale_of_a_loss_does_not_matter():
    """A thousand times larger: the same gradient."""
    decoded, start = batch(0), BalancerState.start(WEIGHTS)
    one, other = (balance(losses_of(decoded, scale), decoded, WEIGHTS, start)[0] for scale in (1.0, 1000.0))
    torch.testing.assert_close(one, other)


def test_a_loss_that_is_not_there_leaves_its_share():
    """Before the adversary takes part, the others have all of the gradient."""
    decoded = batch(0)
    losses = losses_of(decoded)
    del losses["feature"]
    gradient, shares, _ = balance(losses, decoded, WEIGHTS, BalancerState.start(WEIGHTS))
    assert shares == pytest.approx({"time": 0.1 / 1.1, "mel": 1 / 1.1}, rel=1e-5)
    assert gradient.isfinite().all()


def test_a_loss_without_gradient_takes_no_part():
    """A batch of digital silence, for example."""
    decoded = batch(0)
    losses = losses_of(decoded) | {"time": 0.0 * decoded.sum()}
    gradient, shares, _ = balance(losses, decoded, WEIGHTS, BalancerState.start(WEIGHTS))
    assert shares["time"] == 0.0
    assert gradient.isfinite().all()


def test_a_gradient_that_is_not_finite_is_named():
    """And the state stays what it was, since it is only returned."""
    decoded = batch(0)
    losses = losses_of(decoded) | {"mel": (decoded * 0).sqrt().sum() * torch.inf}
    with pytest.raises(FloatingPointError, match="mel"):
        balance(losses, decoded, WEIGHTS, BalancerState.start(WEIGHTS))


def test_a_checkpoint_goes_on_with_the_same_averages():
    """A state read back gives the gradient of an undisturbed run, to the last bit."""
    state = BalancerState.start(WEIGHTS)
    _, _, state = balance(losses_of(decoded := batch(0)), decoded, WEIGHTS, state)
    resumed = BalancerState.from_dict(json.loads(json.dumps(state.to_dict())))
    one, other = (balance(losses_of(decoded := batch(1)), decoded, WEIGHTS, past)[0] for past in (state, resumed))
    assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [{}, {"sums": {"mel": 1.0}, "weights": {}}], ids=str)
def test_another_state_is_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match="sums and weights of the same losses"):
        BalancerState.from_dict(wrong)


def test_a_loss_without_a_weight_is_refused():
    """Instead of being left out in silence."""
    decoded = batch(0)
    for weights, names in (({"time": 1.0}, WEIGHTS), (WEIGHTS, ["time"]), (dict.fromkeys(WEIGHTS, 0.0), WEIGHTS)):
        with pytest.raises(ValueError, match="need weights"):
            balance(losses_of(decoded), decoded, weights, BalancerState.start(names))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    total_norm=st.floats(0.1, 10),
    scales=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
)
def test_every_item_gets_its_part_of_the_norm(rows, total_norm, scales):
    """Losses that pull in one direction add up to R over the batch size for each item, at every size of the batch."""
    decoded = batch(0, rows)
    losses = {name: scale * decoded.mean() for name, scale in zip(WEIGHTS, scales, strict=True)}
    gradient, _, _ = balance(losses, decoded, WEIGHTS, BalancerState.start(WEIGHTS), total_norm=total_norm)
    norms = gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((rows,), total_norm / rows), rtol=1e-4, atol=0.0)


def real_losses(recorded, decoded):
    """Losses that are relative to the reference of a batch: a mel loss, and features of a discriminator."""
    torch.manual_seed(0)
    discriminator = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig(filters=2, windows=(64,)))
    mel = MelLoss(24000, MelConfig(windows=(128,), form="relative"))
    real, fake = discriminator(recorded), discriminator(decoded)
    return {
        "time": time_loss(recorded, decoded),
        "mel": mel(recorded, decoded),
        "feature": feature_matching_loss(real, fake),
    }


def balanced_share(rank, count):
    """Two steps with this process's rows of each batch, and what its share of the codec would get: the mean."""
    state, loudness = BalancerState.start(WEIGHTS), torch.tensor([0.01, 0.1, 1.0, 3.0])[:, None, None]
    for step in range(2):
        whole = torch.randn(4, 2, 1, 400, generator=torch.Generator().manual_seed(step)) * loudness[:, None]
        rows = len(whole) // count
        recorded, decoded = whole[rank * rows : (rank + 1) * rows].unbind(dim=1)
        losses = real_losses(recorded, decoded.requires_grad_())
        gradient, _, state = balance(losses, decoded, WEIGHTS, state, decay=0.9)
    means = {"mean": torch.tensor(list(state.norms.values())), "losses": torch.stack(list(losses.values()))}
    return {"gradient": gradient / count} | means


def test_processes_balance_like_one():
    """Two with half of the batch each: the same means on both, and together the gradient of one with all of it."""
    first, second = run_in_processes(balanced_share, 2, 2)
    alone = balanced_share(0, 1)
    np.testing.assert_array_equal(first["mean"], second["mean"])
    np.testing.assert_allclose(first["mean"], alone["mean"].numpy(), rtol=1e-5)
    losses = (first["losses"] + second["losses"]) / 2
    np.testing.assert_allclose(losses, alone["losses"].detach().numpy(), rtol=1e-5)
    joined = np.concatenate([first["gradient"], second["gradient"]])
    np.testing.assert_allclose(joined, alone["gradient"].numpy(), rtol=1e-4, atol=1e-8)
