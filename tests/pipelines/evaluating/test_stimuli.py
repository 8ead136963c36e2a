"""What listeners hear: equally loud, in time, and an anchor as the standard wants it."""

import io

import numpy as np
import pytest
import soundfile

from pipelines.evaluating.loudness import loudness
from pipelines.evaluating.stimuli import MAX_PEAK, TARGET_LUFS, low_anchor, make_stimuli
from tests.conftest import speech_like


@pytest.mark.parametrize("sample_rate", [16000, 24000, 44100, 48000])
def test_a_full_scale_tone_is_as_loud_as_the_standard_says(sample_rate):
    """ITU-R BS.1770-4: a sine of 997 Hz at 0 dBFS in one channel measures -3.01 LUFS, half of it 6.02 less."""
    tone = np.sin(2 * np.pi * 997 * np.arange(3 * sample_rate) / sample_rate)
    assert loudness(tone, sample_rate) == pytest.approx(-3.01, abs=0.01)
    assert loudness(0.5 * tone, sample_rate) == pytest.approx(-9.03, abs=0.01)


def test_the_ear_hears_bass_less_and_treble_more():
    """The two filters of the standard: 40 Hz counts for less than 1 kHz, and 8 kHz for 3 dB more."""
    low, middle, high = (np.sin(2 * np.pi * hertz * np.arange(48000) / 48000) for hertz in (40, 1000, 8000))
    assert loudness(low, 48000) < loudness(middle, 48000) - 3
    assert loudness(high, 48000) == pytest.approx(loudness(middle, 48000) + 3.3, abs=0.3)


def test_pauses_do_not_count():
    """Gated: speech with silence around it is as loud as without, but for the blocks at the edges."""
    speech = speech_like(4.0)
    padded = np.concatenate([np.zeros(48000), speech, np.zeros(48000)])
    assert loudness(padded, 24000) == pytest.approx(loudness(speech, 24000), abs=0.5)
    assert loudness(np.zeros(24000), 24000) == -np.inf


@pytest.mark.parametrize("sample_rate", [16000, 24000, 44100])
def test_the_low_anchor_meets_the_standard(sample_rate):
    """ITU-R BS.1534: flat to 0.1 dB up to 3.5 kHz, 25 dB down at 4 kHz, 50 dB down at 4.5 kHz; and no delay."""
    impulse = np.zeros(sample_rate, np.float32)
    impulse[sample_rate // 2] = 1
    response = low_anchor(impulse, sample_rate)
    assert response.argmax() == sample_rate // 2
    decibels = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-9)  # one a hertz
    assert np.abs(decibels[:3501]).max() < 0.1
    assert decibels[4000:].max() < -25
    assert decibels[4500:].max() < -50


def test_all_conditions_are_equally_loud():
    """A system that is quieter or louder is brought to the reference, and all to one level; nothing clips."""
    reference = speech_like(3.0)
    stimuli = make_stimuli(reference, {"quiet": 0.4 * reference, "loud": 1.5 * reference}, 24000)
    assert [one.condition for one in stimuli] == ["reference", "low_anchor", "quiet", "loud"]
    for one in stimuli:
        samples, rate = soundfile.read(io.BytesIO(one.flac))
        assert (rate, len(samples)) == (24000, len(reference))
        assert loudness(samples, rate) == pytest.approx(TARGET_LUFS, abs=0.2)


def test_peaks_bound_the_level_of_all():
    """Where the target would clip, every condition is turned down alike."""
    reference = np.zeros(48000, np.float32)
    reference[::2400] = 0.9  # ticks: all peak, hardly any loudness
    stimuli = make_stimuli(reference, {"half": 0.5 * reference}, 24000)
    assert max(np.abs(one.waveform).max() for one in stimuli) <= MAX_PEAK + 1e-6
    levels = [loudness(one.waveform, 24000) for one in stimuli]
    assert max(levels) - min(levels) < 0.1
    assert max(levels) < TARGET_LUFS


@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_silence_stays_silence(seconds):
    """It has no loudness to bring to another, and a clip may be shorter than the meter's block."""
    reference = speech_like(seconds)
    stimuli = make_stimuli(reference, {"dead": np.zeros_like(reference)}, 24000)
    assert not stimuli[-1].waveform.any()
    assert make_stimuli(np.zeros_like(reference), {}, 24000)[0].waveform.max() == 0
