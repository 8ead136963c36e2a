"""Reconstruction losses, against independent formulas."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.losses import MelConfig, MelLoss, time_loss
from tokenizer.torchaudio_import import import_torchaudio


def spectrogram(waveform, window, bands, *, normalized=False):
    """Mel magnitudes by torchaudio's own transform."""
    return import_torchaudio().transforms.MelSpectrogram(
        24000, n_fft=window, hop_length=window // 4, n_mels=bands, power=1.0, f_max=12000.0, normalized=normalized
    )(waveform)


@pytest.fixture
def pair():
    """Two stereo waveforms."""
    torch.manual_seed(0)
    return 0.1 * torch.randn(3, 2, 4000), 0.05 * torch.randn(3, 2, 4000)


def test_the_time_loss_is_the_mean_absolute_difference():
    """Written out."""
    assert time_loss(torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[0.5, 1.0]]])) == 1.25


def test_the_paper_form_adds_magnitudes_and_squared_logarithms(pair):
    """At each window |difference| of normalised magnitudes and squared difference of their logarithms; the mean."""
    expected = []
    for window, bands in ((256, 36), (1024, 64)):
        a, b = (spectrogram(waveform, window, bands, normalized=True).numpy() for waveform in pair)
        expected.append(np.abs(a - b).mean() + np.square(np.log10(a + 1e-5) - np.log10(b + 1e-5)).mean())
    loss = MelLoss(24000, MelConfig(windows=(256, 1024)))(*pair)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)


def slaney_filters(window, bands):
    """Triangles of unit area, linear in frequency below 1 kHz and logarithmic above, one by one."""
    step = np.log(6.4) / 27
    top = 15 + np.log(12000 / 1000) / step
    mels = np.linspace(0, top, bands + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (np.maximum(mels, 15) - 15)))
    frequencies = np.arange(window // 2 + 1) * 24000 / window
    bank = np.zeros((len(frequencies), bands))
    for band in range(bands):
        low, middle, high = corners[band : band + 3]
        rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
        bank[:, band] = np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
    return bank


def magnitudes(waveform, window):
    """[..., S] to [..., frames, window // 2 + 1], a frame at a time."""
    padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(window // 2, window // 2)], mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    starts = range(0, padded.shape[-1] - window + 1, window // 4)
    return np.stack([np.abs(np.fft.rfft(padded[..., i : i + window] * hann)) for i in starts], axis=-2)


def test_the_log_form_is_that_of_dac(pair):
    """Slaney's filters, a floor of 1e-5 under magnitudes; the sum over scales, filters that hold nothing included."""
    expected = 0.0
    for window, bands in ((512, 80), (256, 80)):
        bank = slaney_filters(window, bands)
        a, b = (np.log10(np.maximum(magnitudes(w.double().numpy(), window) @ bank, 1e-5)) for w in pair)
        expected += np.abs(a - b).mean()
    assert (bank == 0).all(axis=0).any()  # such filters do occur here
    loss = MelLoss(24000, MelConfig(windows=(512, 256), bins=(80, 80), form="log"))(*pair)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_relative_form_weighs_loud_partials_by_the_reference(pair):
    """Logarithms, and 0.3 of the magnitudes over their mean: the numbers that all speech runs are compared by."""
    expected = []
    for window, bands in ((128, 20), (512, 64), (2048, 64)):
        a, b = (spectrogram(waveform, window, bands).double().numpy() for waveform in pair)
        logarithmic = np.abs(np.log10(a + 1e-5) - np.log10(b + 1e-5)).mean()
        expected.append(logarithmic + 0.3 * np.abs(a - b).mean() / (a.mean() + 1e-3))
    loss = MelLoss(24000, MelConfig(windows=(128, 512, 2048), bins=64, form="relative"))(*pair)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("form", ["paper", "log", "relative"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), gain=st.floats(0.0, 1.0), channels=st.integers(1, 2))
def test_only_magnitudes_count(form, seed, gain, channels):
    """The sign of a waveform is not heard, another level is, and the gradient points towards the reference's."""
    reference = 0.3 * torch.randn(2, channels, 600, generator=torch.Generator().manual_seed(seed))
    loss = MelLoss(24000, MelConfig(windows=(64, 256), form=form))
    assert loss(reference, -reference).item() == pytest.approx(0.0, abs=1e-5)
    level = torch.tensor(0.9 * gain, requires_grad=True)
    distance = loss(reference, level * reference)
    distance.backward()
    assert distance.item() > 0
    assert level.grad < 0 or gain < 1e-3  # under the floor nothing points anywhere


@pytest.mark.parametrize("form", ["paper", "log", "relative"])
def test_equal_sounds_lose_nothing_and_silence_has_a_gradient(form, pair):
    """Digital silence is common at clip ends, and |z| has no gradient at 0."""
    loss = MelLoss(24000, MelConfig(form=form))
    assert loss(pair[0], pair[0]).item() == 0.0
    silence = torch.zeros(1, 1, 4000, requires_grad=True)
    loss(torch.zeros(1, 1, 4000), silence).backward()
    assert bool(silence.grad.isfinite().all())


def test_published_scales_are_taken_without_complaint():
    """EnCodec's seven windows of at most 64 bands, and DAC's with 5 to 320, some of which no frequency falls into."""
    dac = MelConfig(windows=(32, 64, 128, 256, 512, 1024, 2048), bins=(5, 10, 20, 40, 80, 160, 320), form="log")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for config in (MelConfig(), dac):
            assert MelLoss(24000, config)(torch.zeros(1, 1, 4000), torch.ones(1, 1, 4000)).isfinite()
    assert [bands for _, bands in dac.scales] == [5, 10, 20, 40, 80, 160, 320]
    assert [bands for _, bands in MelConfig().scales] == [8, 12, 20, 36, 64, 64, 64]


def test_a_waveform_too_short_to_be_mirrored_is_refused():
    """Frames are centred, so half of the longest window is mirrored at each end."""
    loss = MelLoss(24000, MelConfig(windows=(64, 256)))
    assert loss(torch.zeros(1, 1, 129), torch.ones(1, 1, 129)).isfinite()
    with pytest.raises(ValueError, match="128 samples are too few"):
        loss(torch.zeros(1, 1, 128), torch.ones(1, 1, 128))


@pytest.mark.parametrize(
    "wrong",
    [{"windows": ()}, {"windows": (512, 1024), "bins": (80,)}, {"bins": 0}, {"windows": (8,)}, {"form": "mel"}],
    ids=str,
)
def test_wrong_scales_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match="mel"):
        MelConfig(**wrong)
