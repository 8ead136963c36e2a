"""The multi-scale STFT discriminator, against the one in the `encodec` package."""

import pytest
import torch

from tokenizer.stft_discriminator import MultiScaleStftDiscriminator, StftDiscriminatorConfig
from tokenizer.torchaudio_import import import_torchaudio

WINDOWS = (256, 64)


def reference(channels, filters):
    """The package's own, in the windows of this test."""
    import_torchaudio()  # before the package imports it unguarded
    msstftd = pytest.importorskip("encodec.msstftd")
    sizes = list(WINDOWS)
    return msstftd.MultiScaleSTFTDiscriminator(
        filters, in_channels=channels, n_ffts=sizes, hop_lengths=[size // 4 for size in sizes], win_lengths=sizes
    )


def copy_weights(theirs, ours):
    """By name: theirs wrap each layer, and torch itself reads the older spelling of weight norm."""
    weights = {name.replace(".conv.", "."): weight for name, weight in theirs.state_dict().items()}
    ours.load_state_dict({name: weight for name, weight in weights.items() if "spec_transform" not in name})


@pytest.mark.parametrize("channels", [1, 2])
def test_it_judges_like_the_reference(channels):
    """The same weights: the same scores and features at every scale, mono and stereo."""
    torch.manual_seed(0)
    theirs = reference(channels, 4)
    ours = MultiScaleStftDiscriminator(channels, StftDiscriminatorConfig(filters=4, windows=WINDOWS))
    with torch.no_grad():
        copy_weights(theirs, ours)
        waveform = 0.1 * torch.randn(2, channels, 2000)
        scores, features = theirs(waveform)
        judgements = ours(waveform)
    for judgement, score, maps in zip(judgements, scores, features, strict=True):
        torch.testing.assert_close(judgement.score, score, atol=1e-5, rtol=1e-4)
        for found, wanted in zip(judgement.features, maps, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_default_is_the_papers():
    """Five windows, 32 filters, three dilated layers between the first and the last two; one score for each place."""
    discriminator = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig())
    with torch.no_grad():
        judgements = discriminator(torch.randn(1, 1, 4800))
    assert len(judgements) == 5
    frames = [1 + (4800 - window) // (window // 4) for window in (2048, 1024, 512, 256, 128)]
    for judgement, count in zip(judgements, frames, strict=True):
        assert len(judgement.features) == 5
        assert all(features.shape[:3] == (1, 32, count) for features in judgement.features)
        assert judgement.score.shape[:3] == (1, 1, count)


def test_reduced_precision_keeps_the_spectrum_exact():
    """The transform has no bfloat16 form; the convolutions follow the autocast."""
    torch.manual_seed(0)
    discriminator = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig(filters=4, windows=(256,)))
    waveform = 0.1 * torch.randn(1, 1, 2000)
    with torch.no_grad():
        exact = discriminator(waveform)[0]
        with torch.autocast("cpu", torch.bfloat16):
            reduced = discriminator(waveform)[0]
    assert {features.dtype for features in reduced.features} == {torch.bfloat16}
    assert reduced.score.dtype == torch.float32  # losses are sums over many of them
    torch.testing.assert_close(reduced.score, exact.score, atol=0.02, rtol=0.1)


def test_silence_has_a_gradient():
    """Nothing divides by what is zero there."""
    discriminator = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig(filters=4, windows=(256,)))
    silence = torch.zeros(1, 1, 2000, requires_grad=True)
    discriminator(silence)[0].score.sum().backward()
    assert bool(silence.grad.isfinite().all())


def test_both_the_waveform_and_the_weights_get_the_gradient_of_the_reference():
    """Of the scores: so that codec and discriminators learn what they would from the reference."""
    torch.manual_seed(0)
    theirs, waveform = reference(1, 4), 0.1 * torch.randn(2, 1, 2000)
    ours = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig(filters=4, windows=WINDOWS))
    copy_weights(theirs, ours)
    one, other = waveform.clone().requires_grad_(), waveform.clone().requires_grad_()
    torch.stack([score.square().mean() for score in theirs(one)[0]]).sum().backward()
    torch.stack([judgement.score.square().mean() for judgement in ours(other)]).sum().backward()
    torch.testing.assert_close(other.grad, one.grad, atol=1e-9, rtol=1e-3)
    lengths = [layer.conv.weight_g.grad for member in theirs.discriminators for layer in member.convs[1:]]
    found = [
        layer.parametrizations.weight.original0.grad for member in ours.discriminators for layer in member.convs[1:]
    ]
    for gradient, wanted in zip(found, lengths, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-8, rtol=1e-3)


def test_a_waveform_shorter_than_a_window_is_refused():
    """There would be no frame to judge."""
    discriminator = MultiScaleStftDiscriminator(1, StftDiscriminatorConfig(filters=1, windows=(64, 256)))
    assert len(discriminator(torch.zeros(1, 1, 256))) == 2
    with pytest.raises(ValueError, match="255 samples are fewer"):
        discriminator(torch.zeros(1, 1, 255))


@pytest.mark.parametrize("wrong", [{"windows": ()}, {"filters": 0}, {"kernel": (3, 8)}, {"windows": (2,)}], ids=str)
def test_wrong_shapes_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match="STFT discriminator"):
        StftDiscriminatorConfig(**wrong)
