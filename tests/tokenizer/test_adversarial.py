"""What discriminators and codec lose to each other."""

import pytest
import torch

from tokenizer.adversarial import (
    DiscriminatorConfig,
    Discriminators,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from tokenizer.judgement import Judgement
from tokenizer.period_discriminator import PeriodDiscriminatorConfig
from tokenizer.stft_discriminator import StftDiscriminatorConfig

REAL = [Judgement(torch.tensor([2.0, 0.5]), []), Judgement(torch.tensor([-1.0]), [])]
FAKE = [Judgement(torch.tensor([-2.0, 0.0]), []), Judgement(torch.tensor([3.0]), [])]


def test_the_hinge_losses_are_the_papers():
    """Means over places, then over scales.

    Of max(0, 1 - D(x)) + max(0, 1 + D(decoded)) for the discriminators, of max(0, 1 - D(decoded)) for the codec.
    """
    first, second = (0.0 + 0.5) / 2 + (0.0 + 1.0) / 2, 2.0 + 4.0
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx((first + second) / 2)
    assert generator_loss(FAKE).item() == pytest.approx(((3.0 + 1.0) / 2 + 0.0) / 2)


def test_the_least_squares_losses_are_those_of_dac():
    """(1 - D(x))^2 + D(decoded)^2, and (1 - D(decoded))^2."""
    first, second = (1.0 + 0.25) / 2 + (4.0 + 0.0) / 2, 4.0 + 9.0
    assert discriminator_loss(REAL, FAKE, kind="least_squares").item() == pytest.approx((first + second) / 2)
    assert generator_loss(FAKE, kind="least_squares").item() == pytest.approx(((9.0 + 1.0) / 2 + 4.0) / 2)


def test_features_are_compared_relative_to_their_size():
    """|difference| over the mean magnitude of the real ones, the mean over layers and scales."""
    real = [Judgement(torch.zeros(1), [torch.tensor([1.0, -3.0]), torch.tensor([10.0])])]
    found = torch.tensor([2.0, -3.0], requires_grad=True)
    fake = [Judgement(torch.zeros(1), [found, torch.tensor([5.0])])]
    loss = feature_matching_loss(real, fake)
    assert loss.item() == pytest.approx((0.5 / 2.0 + 5.0 / 10.0) / 2)
    loss.backward()
    torch.testing.assert_close(found.grad, torch.tensor([0.125, 0.0]))
    louder = [Judgement(torch.zeros(1), [10 * one for one in side[0].features]) for side in (real, fake)]
    assert feature_matching_loss([louder[0]], [louder[1]]).item() == pytest.approx(loss.item())


def test_recorded_features_are_constants():
    """Else the codec could win by making recordings look like its own output."""
    recorded = torch.ones(3, requires_grad=True)
    fake = [Judgement(torch.zeros(1), [torch.zeros(3, requires_grad=True)])]
    feature_matching_loss([Judgement(torch.zeros(1), [recorded])], fake).backward()
    assert recorded.grad is None


def test_discriminators_of_different_depth_count_alike():
    """The mean over layers comes first: one with three layers weighs no more than one with a single layer."""
    real = [Judgement(torch.zeros(1), [torch.ones(2)] * depth) for depth in (3, 1)]
    fake = [Judgement(torch.zeros(1), [torch.ones(2)] * 3), Judgement(torch.zeros(1), [torch.zeros(2)])]
    assert feature_matching_loss(real, fake).item() == pytest.approx(0.5)


def test_a_dead_layer_does_not_make_the_loss_infinite():
    """Zero is no scale to be relative to."""
    real, fake = ([Judgement(torch.zeros(1), [size * torch.ones(2)])] for size in (0.0, 1e-7))
    assert feature_matching_loss(real, fake).isfinite()


def test_reduced_precision_sums_in_full():
    """A mean over many places keeps what bfloat16 would round away."""
    real = [Judgement(torch.zeros(1), [torch.ones(1 << 16, dtype=torch.bfloat16)])]
    decoded = torch.ones(1 << 16, dtype=torch.bfloat16)
    decoded[:333] = 0
    fake = [Judgement(torch.zeros(1), [decoded])]
    assert feature_matching_loss(real, fake).item() == pytest.approx(333 / 65536, rel=1e-5)


def test_all_discriminators_judge():
    """Those over spectrograms, then those over periods."""
    config = DiscriminatorConfig(
        stft=StftDiscriminatorConfig(filters=2, windows=(64, 32)), period=PeriodDiscriminatorConfig(filters=1)
    )
    assert len(Discriminators(1, config)(torch.randn(2, 1, 400))) == 2 + 5
    with pytest.raises(ValueError, match="stft, period or both"):
        DiscriminatorConfig(stft=None)


def test_discriminators_learn_to_tell_noise_from_tones():
    """Sixty steps take the hinge loss from about 2 to under 1."""
    torch.manual_seed(0)
    discriminators = Discriminators(1, DiscriminatorConfig(stft=StftDiscriminatorConfig(filters=4, windows=(64,))))
    optimizer = torch.optim.AdamW(discriminators.parameters(), 3e-3)
    tones = 0.3 * torch.sin(torch.arange(800) * torch.tensor([[[0.2]], [[0.4]]]))
    for _ in range(60):
        loss = discriminator_loss(discriminators(tones), discriminators(0.2 * torch.randn(2, 1, 800)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0
