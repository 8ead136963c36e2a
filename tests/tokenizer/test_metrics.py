"""What the quality metrics promise: their scale, their order, and an answer or a reason."""

import sys

import pytest
import torch

from tests.conftest import speech_like
from tokenizer import metrics, resample
from tokenizer.metrics import mel_distance, pesq_wb, si_snr, stoi, visqol

ALL = [si_snr, mel_distance, stoi, pesq_wb, visqol]
PERCEPTUAL = [stoi, pesq_wb, visqol]


@pytest.fixture(scope="module")
def speech():
    """[S] a second and a half at 16 kHz."""
    return torch.from_numpy(speech_like(1.5, 16000))


def with_noise(speech, level):
    """Speech under noise of a seeded shape."""
    return speech + level * torch.randn(len(speech), generator=torch.Generator().manual_seed(1))


def test_si_snr_is_the_ratio_of_powers_in_decibels(speech):
    """Noise with a hundredth of the power gives 20 dB."""
    noise = with_noise(torch.zeros_like(speech), 1.0)
    noise *= 0.1 * speech.std() / noise.std()
    assert si_snr(speech, speech + noise, 16000) == pytest.approx(20.0, abs=0.2)


def test_si_snr_ignores_loudness_and_offset(speech):
    """The same noise at half the volume, shifted by a constant, is as good."""
    noisy = with_noise(speech, 0.01)
    assert si_snr(speech, 0.5 * noisy + 0.1, 16000) == pytest.approx(si_snr(speech, noisy, 16000), abs=1e-3)


def test_si_snr_of_silence_is_finite(speech):
    """A codec that answers speech with silence gets the worst score, not an error or an infinity."""
    silence = torch.zeros_like(speech)
    assert si_snr(speech, silence, 16000) == -100
    assert si_snr(silence, speech, 16000) == -100
    assert si_snr(silence, silence, 16000) == si_snr(speech, speech, 16000) == 100


def test_mel_distance_counts_factors_of_ten(speech):
    """A tenth of the amplitude in every band is a distance of 1; equal waveforms have none."""
    noise = with_noise(torch.zeros(24000), 0.3)
    assert mel_distance(noise, 0.1 * noise, 24000) == pytest.approx(1.0, abs=1e-3)
    assert mel_distance(speech, speech, 16000) == 0


def test_mel_distance_is_measured_at_24_khz(speech):
    """Other rates are resampled first, so scores of codecs at different rates can be compared."""
    noisy = with_noise(speech, 0.01)
    at_24_khz = resample(torch.stack([speech, noisy]), 16000, 24000)
    assert mel_distance(speech, noisy, 16000) == pytest.approx(mel_distance(*at_24_khz, 24000), abs=1e-6)


def test_mel_distance_takes_the_shortest_waveforms():
    """One sample is enough."""
    assert mel_distance(torch.ones(1), torch.zeros(1), 24000) > 0


@pytest.mark.parametrize("metric", ALL)
def test_every_metric_falls_with_noise(metric, speech):
    """More noise is worse, by every metric; the mel distance counts the other way."""
    scores = [metric(speech, with_noise(speech, level), 16000) for level in (0.0001, 0.003, 0.01)]
    assert scores == sorted(scores, reverse=metric is not mel_distance)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize(("metric", "best"), [(stoi, 1.0), (pesq_wb, 4.64)])
def test_equal_waveforms_get_the_best_score(metric, best, speech):
    """Each scale ends where nothing differs."""
    assert metric(speech, speech, 16000) == pytest.approx(best, abs=0.01)


def test_visqol_maps_by_its_lattice(speech):
    """The lattice never gives equal speech a full 5; the polynomial, which does, is on another scale."""
    assert 3.5 < visqol(speech, speech, 16000) < 4.9


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("reference", "degraded", "reason"),
    [
        (torch.ones(100), torch.ones(99), "same length"),
        (torch.ones(0), torch.ones(0), "same length"),
        (torch.ones(1, 100), torch.ones(1, 100), "one channel"),
        (torch.ones(100), torch.full((100,), torch.nan), "finite"),
    ],
    ids=["lengths", "empty", "channels", "nan"],
)
def test_what_cannot_be_compared_is_refused(metric, reference, degraded, reason):
    """The error says what was wrong."""
    with pytest.raises(ValueError, match=reason):
        metric(reference, degraded, 16000)


@pytest.mark.parametrize("metric", PERCEPTUAL)
def test_a_metric_without_an_answer_says_so(metric, speech):
    """Silent or very short references have no intelligibility or quality: a ValueError, never an invented number."""
    with pytest.raises(ValueError, match="silent"):
        metric(torch.zeros_like(speech), speech, 16000)
    with pytest.raises(ValueError, match=r"STOI|PESQ|ViSQOL"):
        metric(speech[4000:4100], speech[4000:4100], 16000)


def test_pesq_refuses_long_waveforms(speech):
    """Its C code has fixed tables."""
    with pytest.raises(ValueError, match="at most 30 s"):
        pesq_wb(speech.repeat(21), speech.repeat(21), 16000)


@pytest.mark.parametrize(
    ("metric", "package"),
    [(stoi, "pystoi"), (pesq_wb, "pesq"), (visqol, "visqol"), (visqol, "ai_edge_litert")],
)
def test_a_missing_package_names_the_extra(metric, package, speech, monkeypatch):
    """Metric packages are optional; the error says how to get them."""
    metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*quantone\[train\]"):
        metric(speech, speech, 16000)
