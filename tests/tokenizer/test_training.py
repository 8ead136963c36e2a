"""One training step of a codec and its adversary."""

import dataclasses

import pytest
import torch

from tests.conftest import tiny_spec
from tokenizer.adversarial import DiscriminatorConfig
from tokenizer.losses import MelConfig
from tokenizer.objective import Objective
from tokenizer.optimization import OptimizerSettings
from tokenizer.quantizer_training import QuantizerTraining
from tokenizer.stft_discriminator import StftDiscriminatorConfig
from tokenizer.training import CodecTraining, TrainingSettings

OBJECTIVE = Objective(
    mel=MelConfig(windows=(64, 256), bins=16),
    discriminator=DiscriminatorConfig(stft=StftDiscriminatorConfig(filters=2, windows=(64, 32))),
)
PLAIN = dataclasses.replace(OBJECTIVE, discriminator=None, balanced=False, time_weight=1.0)


def training(kind="patch", objective=OBJECTIVE, **optimizer):
    """A tiny codec about to be trained."""
    torch.manual_seed(0)
    settings = TrainingSettings(
        objective=objective,
        quantizer=QuantizerTraining(),
        optimizer=OptimizerSettings(**{"learning_rate": 1e-3} | optimizer),
    )
    return CodecTraining(tiny_spec(kind), settings)


def sound(step, channels=1):
    """A batch of tones, the same for the same step."""
    generator = torch.Generator().manual_seed(step)
    pitch = 0.05 + 0.3 * torch.rand(4, channels, 1, generator=generator)
    return 0.3 * torch.sin(pitch * torch.arange(800))


def steps(trained, count, first=0):
    """So many steps; what each gave."""
    channels = trained.spec.channels
    return [trained.step(sound(step, channels), step, rate_factor=1.0, seed=0) for step in range(first, first + count)]


@pytest.mark.parametrize("kind", ["seanet", "mirrored", "segmented", "patch", "dac"])
def test_every_kind_of_codec_learns(kind):
    """From weighted losses: in a few steps the mel loss falls by a fifth; nothing balances, nobody judges."""
    results = steps(training(kind, PLAIN, learning_rate=3e-3), 40)
    mel = [result.losses["mel"] for result in results]
    assert sum(mel[-5:]) < 0.8 * sum(mel[:5])
    assert results[0].losses.keys() == {"time", "mel", "commitment"}
    assert results[0].shares == {}


@pytest.mark.parametrize("kind", ["seanet", "segmented", "patch"])
def test_it_learns_from_balanced_losses_and_an_adversary(kind):
    """With most of the gradient for the mel loss, that loss falls."""
    objective = dataclasses.replace(OBJECTIVE, adversarial_weight=0.1, feature_weight=0.1)
    mel = [result.losses["mel"] for result in steps(training(kind, objective), 60)]
    assert sum(mel[-10:]) < 0.95 * sum(mel[:10])


def test_the_same_seed_gives_the_same_run():
    """And another one another."""
    one, two = training(), training()
    assert [result.losses for result in steps(one, 3)] == [result.losses for result in steps(two, 3)]
    other = training()
    assert (
        other.step(sound(0), 0, rate_factor=1.0, seed=1).losses
        != training().step(sound(0), 0, rate_factor=1.0, seed=0).losses
    )


def test_it_goes_on_from_its_state():
    """Three steps, a checkpoint, three more in a fresh process: those of six."""
    whole = training(weight_average=0.9)
    expected = steps(whole, 6)[3:]
    half = training(weight_average=0.9)
    steps(half, 3)
    resumed = training(weight_average=0.9)
    resumed.load_state_dict(half.state_dict())
    assert [result.losses for result in steps(resumed, 3, first=3)] == [result.losses for result in expected]
    assert resumed.to_codec("tiny").sha256 == whole.to_codec("tiny").sha256


def test_discriminators_learn_in_their_share_of_the_steps():
    """Two of three, drawn at random; and only in their own update, never from the codec's losses."""
    trained = training()
    updates = 0
    for step in range(30):
        before = [p.detach().clone() for p in trained.discriminators.parameters()]
        result = trained.step(sound(step), step, rate_factor=1.0, seed=0)
        changed = any(not torch.equal(b, p) for b, p in zip(before, trained.discriminators.parameters(), strict=True))
        assert changed == ("discriminator" in result.losses)
        assert all(p.grad is None for p in trained.discriminators.parameters())
        updates += changed
    assert 14 <= updates <= 26


def test_the_adversary_waits_for_its_first_step():
    """Before it, neither side sees the other."""
    trained = training(objective=dataclasses.replace(OBJECTIVE, adversarial_start=2, discriminator_probability=1.0))
    names = [set(result.losses) for result in steps(trained, 3)]
    assert names[:2] == [{"time", "mel", "commitment"}] * 2
    assert names[2] == {"time", "mel", "adversarial", "feature", "discriminator", "commitment"}


def test_shares_of_the_gradient_are_the_weights():
    """In the first step exactly, later about."""
    shares = steps(training(), 1)[0].shares
    total = 0.1 + 1 + 3 + 3
    assert shares == pytest.approx(
        {"time": 0.1 / total, "mel": 1 / total, "adversarial": 3 / total, "feature": 3 / total}
    )


@pytest.mark.parametrize("name", ["time", "mel"])
def test_a_loss_that_is_not_finite_is_named(name, monkeypatch):
    """Training stops with the culprit instead of with weights that are NaN; the weights are as before."""
    trained = training()
    steps(trained, 1)
    before = {key: value.clone() for key, value in trained.codec.named_parameters()}
    compute = trained.losses.forward

    def broken(*arguments):
        return {key: loss * torch.nan if key == name else loss for key, loss in compute(*arguments).items()}

    monkeypatch.setattr(trained.losses, "forward", broken)
    with pytest.raises(FloatingPointError, match=f"{name} nan"):
        steps(trained, 1, first=1)
    assert all(torch.equal(value, before[key]) for key, value in trained.codec.named_parameters())


def test_reduced_precision_trains():
    """Networks and discriminators in bfloat16; the losses stay close to those of float32."""
    exact = training()
    settings = dataclasses.replace(exact.settings, autocast=torch.bfloat16)
    torch.manual_seed(0)
    reduced = CodecTraining(exact.spec, settings)
    ours, theirs = steps(reduced, 2)[0].losses, steps(exact, 1)[0].losses
    assert ours["mel"] == pytest.approx(theirs["mel"], rel=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"mel_weight": -1.0}, {"time_weight": 0.0, "mel_weight": 0.0}, {"discriminator_probability": 0.0}],
    ids=str,
)
def test_wrong_objectives_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match=r"weights|probability"):
        Objective(**wrong)
