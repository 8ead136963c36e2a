"""Gain stays in its range, nothing clips, and a room changes neither level nor time."""

import numpy as np
import pytest

from pipelines.training.augment import draw_gain, guard_peak, reverberate, room_response
from tests.conftest import speech_like

RATE = 24000


@pytest.fixture
def speech():
    """[2, S]: two seconds of two voices, the first second of each is silence."""
    voices = np.stack([speech_like(2.0, seed=seed) for seed in (1, 2)])
    voices[:, :RATE] = 0.0
    return voices


def test_gains_are_uniform_in_decibels():
    """From the lowest to the highest, and half of them below the middle."""
    rng = np.random.default_rng(0)
    gains = 20 * np.log10([draw_gain(rng, (-10.0, 6.0)) for _ in range(4000)])
    assert -10.0 <= gains.min() < -9.9
    assert 5.9 < gains.max() <= 6.0
    assert abs((gains < -2.0).mean() - 0.5) < 5 * 0.5 / 4000**0.5


def test_what_would_clip_is_turned_down():
    """To 0.99 of full scale, all channels alike; what does not clip is not touched."""
    quiet = np.array([[0.5, -0.9], [0.1, 0.2]], np.float32)
    np.testing.assert_array_equal(guard_peak(quiet), quiet)
    np.testing.assert_allclose(guard_peak(quiet * 3), quiet * 1.1, rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_room_keeps_length_level_and_start(speech, seed):
    """And it is heard: what comes out is neither the dry sound nor something else."""
    wet = reverberate(np.random.default_rng(seed), speech, RATE)
    assert wet.shape == speech.shape
    assert wet.dtype == np.float32
    np.testing.assert_allclose(np.square(wet).mean(), np.square(speech).mean(), rtol=1e-3)
    np.testing.assert_allclose(wet[:, :RATE], 0.0, atol=1e-6)  # no sound before the sound
    for dry_voice, wet_voice in zip(speech, wet, strict=True):
        assert 0.3 < np.corrcoef(dry_voice, wet_voice)[0, 1] < 0.999


@pytest.mark.parametrize("seed", range(8))
def test_direct_sound_is_not_delayed(seed):
    """It is the loudest of all that arrives: noise resembles what becomes of it most where nothing is shifted."""
    noise = np.random.default_rng(seed).standard_normal((1, RATE)).astype(np.float32)
    wet = reverberate(np.random.default_rng(seed), noise, RATE)
    cross = np.fft.irfft(np.conj(np.fft.rfft(noise[0], 2 * RATE)) * np.fft.rfft(wet[0], 2 * RATE))
    assert int(np.argmax(cross)) == 0


def test_silence_stays_silence():
    """No division by a level of nothing."""
    assert (reverberate(np.random.default_rng(0), np.zeros((1, 500), np.float32), RATE) == 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_room_decays(seed):
    """Direct sound first; 60 dB later after 0.3 to 1.3 s; its energy 0 to 12 dB below the direct sound's."""
    response = room_response(np.random.default_rng(seed), 2, RATE)
    assert 0.3 * RATE - 1 <= response.shape[1] <= 1.3 * RATE + 1
    assert (response[:, 0] == 1.0).all()
    ratio_db = -10 * np.log10(np.square(response[:, 1:]).sum(axis=1))
    assert ((ratio_db > -0.01) & (ratio_db < 12.01)).all()
    quarter = response.shape[1] // 4
    energies = [np.square(response[:, k * quarter : (k + 1) * quarter][:, 1:]).sum() for k in range(4)]
    # 15 dB for each quarter of RT60; the first holds the early reflections too
    falls_db = 10 * np.log10(np.array(energies[1:3]) / np.array(energies[2:4]))
    assert ((falls_db > 11) & (falls_db < 19)).all()
    assert energies[0] > energies[1]
