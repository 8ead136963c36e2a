"""How gradients become better weights."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tokenizer.process_group import run_in_processes
from tokenizer.optimization import Optimization, OptimizerSettings, average_gradients


def model():
    """One matrix large enough for Muon, one convolution, biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))


def trained(settings, steps=40):
    """A model that learns to negate, and its losses."""
    network = model()
    optimization, losses = Optimization(network, settings, settings.learning_rate), []
    for step in range(steps):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        loss = (network(x) + x).square().mean()
        loss.backward()
        optimization.step(1.0)
        losses.append(loss.item())
    return network, optimization, losses


@pytest.mark.parametrize("muon", [False, True])
def test_it_learns(muon):
    """With AdamW alone, and with Muon for the matrices."""
    _, _, losses = trained(OptimizerSettings(learning_rate=3e-2, muon=muon))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("muon", [False, True])
def test_it_goes_on_from_its_state(muon):
    """Twenty steps, a checkpoint, twenty more: the weights of forty."""
    settings = OptimizerSettings(learning_rate=1e-2, muon=muon, weight_average=0.9)
    whole, whole_optimization, _ = trained(settings)
    network, optimization, _ = trained(settings, 20)
    resumed = model()
    resumed.load_state_dict(network.state_dict())
    again = Optimization(resumed, settings, settings.learning_rate)
    again.load_state_dict(optimization.state_dict())
    for step in range(20, 40):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        (resumed(x) + x).square().mean().backward()
        again.step(1.0)
    for ours, theirs in ((resumed, whole), (again.exported, whole_optimization.exported)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key


def test_gradients_are_clipped_by_their_norm():
    """The norm that comes back is the one before; what is applied is at most `gradient_clip` long."""
    network = nn.Linear(1, 1, bias=False)
    optimization = Optimization(network, OptimizerSettings(gradient_clip=0.5), 1.0)
    applied = []
    optimization.optimizers[0].register_step_pre_hook(lambda *_: applied.append(network.weight.grad.item()))
    network(torch.full((1, 1), 3.0)).sum().backward()
    assert optimization.step(1.0).item() == pytest.approx(3.0)
    assert applied == [pytest.approx(0.5, rel=1e-4)]


def test_a_gradient_that_is_not_finite_changes_nothing():
    """The error names whose it is."""
    network = nn.Linear(2, 2)
    before = network.weight.detach().clone()
    optimization = Optimization(network, OptimizerSettings(), 1.0)
    (network(torch.ones(1, 2)) * torch.inf).sum().backward()
    with pytest.raises(FloatingPointError, match="gradient of Linear"):
        optimization.step(1.0)
    assert torch.equal(network.weight, before)


def test_the_average_follows_the_weights():
    """After one step it is their first value moved by one tenth; without an average the weights themselves go out."""
    network = nn.Linear(4, 4)
    optimization = Optimization(network, OptimizerSettings(weight_average=0.9), 0.1)
    values = []
    for _ in range(2):  # the first one is copied: an average of nothing has no value
        network(torch.ones(1, 4)).sum().backward()
        optimization.step(1.0)
        values.append(network.weight.detach().clone())
    torch.testing.assert_close(optimization.exported.weight, 0.9 * values[0] + 0.1 * values[1])
    assert Optimization(network, OptimizerSettings(), 0.1).exported is network


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"discriminator_rate": -1.0}, {"weight_average": 1.0}, {"betas": (0.5, 1.0)}],
    ids=str,
)
def test_wrong_settings_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match=r"positive|lie in"):
        OptimizerSettings(**wrong)


def gradients_of(rank, count):
    """Mean gradients of a batch that `count` processes share."""
    network = model()
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    rows = len(x) // count
    network(x[rank * rows : (rank + 1) * rows]).square().mean().backward()
    average_gradients(list(network.parameters()))
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_processes_share_one_gradient():
    """Two with half of the batch each have, both of them, the gradient of one with all of it."""
    both, alone = run_in_processes(gradients_of, 2, 2), gradients_of(0, 1)
    for name, value in alone.items():
        np.testing.assert_array_equal(both[0][name], both[1][name])
        np.testing.assert_allclose(both[0][name], value.numpy(), rtol=1e-5, atol=1e-7)
