"""The multi-period discriminator, against its formula in plain operations."""

import pytest
import torch
from torch.nn import functional

from tokenizer.period_discriminator import MultiPeriodDiscriminator, PeriodDiscriminatorConfig


def by_hand(member, waveform, period):
    """HiFi-GAN's: each of the `period` interleaved signals through the same one-dimensional convolutions."""
    padded = functional.pad(waveform, (0, period - waveform.shape[-1] % period), mode="reflect")
    phases = [padded[..., phase::period] for phase in range(period)]  # each [B, C, S / period]
    features = []
    for layer in member.convs:
        stride = 3 if layer is not member.convs[-1] else 1
        weight = layer.weight.squeeze(-1)
        phases = [
            functional.leaky_relu(functional.conv1d(signal, weight, layer.bias, stride, 2), 0.1) for signal in phases
        ]
        features.append(torch.stack(phases, dim=-1))
    last = member.conv_post
    score = [functional.conv1d(signal, last.weight.squeeze(-1), last.bias, padding=1) for signal in phases]
    return torch.stack(score, dim=-1), features


@pytest.mark.parametrize("channels", [1, 2])
def test_each_member_sees_every_pth_sample(channels):
    """Scores and features are those of one-dimensional convolutions over the interleaved signals."""
    torch.manual_seed(0)
    periods = (2, 3, 7)
    discriminator = MultiPeriodDiscriminator(channels, PeriodDiscriminatorConfig(periods=periods, filters=2))
    waveform = torch.randn(2, channels, 400)
    with torch.no_grad():
        for member, judgement, period in zip(
            discriminator.discriminators, discriminator(waveform), periods, strict=True
        ):
            score, features = by_hand(member, waveform, period)
            torch.testing.assert_close(judgement.score, score, atol=1e-5, rtol=1e-4)
            for found, wanted in zip(judgement.features, features, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_default_is_the_papers():
    """Periods 2 to 11, layers of 32, 128, 512, 1024 and 1024 channels."""
    with torch.device("meta"):  # 41 million weights that nobody has to draw
        discriminator = MultiPeriodDiscriminator(1, PeriodDiscriminatorConfig())
    assert [member.period for member in discriminator.discriminators] == [2, 3, 5, 7, 11]
    assert [layer.out_channels for layer in discriminator.discriminators[0].convs] == [32, 128, 512, 1024, 1024]


def test_silence_has_a_gradient():
    """Nothing divides by what is zero there."""
    silence = torch.zeros(1, 1, 100, requires_grad=True)
    for judgement in MultiPeriodDiscriminator(1, PeriodDiscriminatorConfig(filters=1))(silence):
        judgement.score.sum().backward()
    assert bool(silence.grad.isfinite().all())


def test_a_waveform_no_longer_than_a_period_is_refused():
    """It cannot be mirrored to a whole row."""
    discriminator = MultiPeriodDiscriminator(1, PeriodDiscriminatorConfig(periods=(11,), filters=1))
    assert discriminator(torch.zeros(1, 1, 12))[0].score.shape == (1, 1, 1, 11)
    with pytest.raises(ValueError, match="11 samples are not more"):
        discriminator(torch.zeros(1, 1, 11))


@pytest.mark.parametrize("wrong", [{"periods": ()}, {"periods": (0,)}, {"filters": 0}], ids=str)
def test_wrong_shapes_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match="period discriminator"):
        PeriodDiscriminatorConfig(**wrong)
