"""Facts about audio: what level, clipping, speech and identity say of the demo's speech and of sounds made here."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pipelines
from pipelines.datasets.audio_facts import measure_audio
from pipelines.datasets.speech_activity import speech_share
from tokenizer import AudioError, mix_channels, read_audio, resample

RATE = 24000
TIME = np.arange(4 * RATE) / RATE
CLIPS = sorted(Path(pipelines.__file__).parent.glob("demo_speech/*/*.flac"))


@pytest.fixture(scope="module")
def speech():
    """Waveforms [1, S] at 24 kHz of the demo's clips, one channel each."""
    clips = {}
    for path in CLIPS:
        with path.open("rb") as stream:
            waveform, sample_rate = read_audio(stream)
        clips[path.stem] = resample(mix_channels(waveform, 1), sample_rate, RATE).numpy()
    return clips


def noise(level_dbfs, samples=4 * RATE, seed=0):
    return (np.random.default_rng(seed).standard_normal((1, samples)) * 10 ** (level_dbfs / 20)).astype(np.float32)


def tone(frequency, amplitude):
    return (amplitude * np.sin(2 * np.pi * frequency * TIME))[None].astype(np.float32)


def as_16_bits(waveform):
    return np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.float32) / 32768


def resampled(waveform, source, target):
    return resample(torch.from_numpy(waveform), source, target).numpy()


def clipping(waveform):
    return measure_audio(waveform, RATE).clipping_share


def test_level_and_peak_are_those_of_the_samples():
    """A sine of amplitude 0.5 has its peak there and -9.03 dBFS; silence -120 dBFS; a negative peak is a peak."""
    facts = measure_audio(tone(1000, 0.5), RATE)
    assert facts.peak == pytest.approx(0.5, abs=1e-4)
    assert facts.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert measure_audio(np.zeros((1, 100), np.float32), RATE).rms_dbfs == -120
    assert measure_audio(np.array([[0.1, -0.7]], np.float32), RATE).peak == pytest.approx(0.7)


def test_no_samples_are_refused():
    """There is nothing to measure in an empty waveform."""
    with pytest.raises(AudioError, match="no samples"):
        measure_audio(np.zeros((1, 0), np.float32), RATE)


@pytest.mark.parametrize("source_rate", [8000, 16000, 24000, 48000])
def test_clipped_speech_is_found_however_it_was_resampled(speech, source_rate):
    """Resampling smears flat tops, and short ones are missed: 0.4 times to all of what was clipped is counted."""
    checked = 0
    for waveform in speech.values():
        loud = resampled(waveform, RATE, source_rate)
        clipped = as_16_bits(loud / np.abs(loud).max() * 2)
        true_share = float((np.abs(clipped) > 0.9999).mean())
        if true_share > 0.002:
            checked += 1
            assert 0.4 * true_share < clipping(resampled(clipped, source_rate, RATE)) < 1.05 * true_share
    assert checked >= 10


@pytest.mark.parametrize("source_rate", [8000, 16000, 24000, 48000])
def test_clean_speech_at_full_scale_is_no_alarm(speech, source_rate):
    """Speech whose one loudest sample is at full scale is not clipped: the share is 0, not just small."""
    for waveform in speech.values():
        loud = resampled(waveform, RATE, source_rate)
        assert clipping(resampled(as_16_bits(loud / np.abs(loud).max()), source_rate, RATE)) == 0


def test_only_flat_tops_at_full_scale_are_clipping():
    """A square wave is clipped all the time, one loud click, a tone below full scale and a 1 kHz tone at it are not."""
    assert clipping(np.sign(tone(100.5, 1.0))) > 0.99
    assert clipping(tone(1000, 1.0)) == 0
    assert clipping(tone(100, 0.98)) == 0
    click = np.zeros((1, RATE), np.float32)
    click[0, 5000:5005] = 1.0
    assert clipping(click) == 0


def test_one_clipped_channel_counts_by_its_samples():
    """Of two channels, one clipped all the time, half of the samples are."""
    stereo = np.concatenate([np.sign(tone(100.5, 1.0)), tone(300, 0.1)])
    assert clipping(stereo) == pytest.approx(0.5, abs=0.01)


def test_read_speech_is_active_for_most_of_the_time(speech):
    """Short clips with little silence around the words."""
    shares = [speech_share(waveform, RATE) for waveform in speech.values()]
    assert 0.7 < np.mean(shares) < 0.95
    assert min(shares) > 0.3


def test_the_estimate_does_not_depend_on_gain(speech):
    """From a peak of 0 dBFS down to -50, with the rounding of 16 bits."""
    waveform = next(iter(speech.values()))
    waveform = waveform / np.abs(waveform).max()
    shares = [speech_share(as_16_bits(waveform * 10 ** (gain / 20)), RATE) for gain in (0, -20, -50)]
    assert np.ptp(shares) < 0.05


@pytest.mark.parametrize("background_dbfs", [-200, -80], ids=["digital", "room"])
def test_half_a_file_of_silence_halves_the_share(speech, background_dbfs):
    """Whether the silence is digital or that of a quiet room."""
    for waveform in list(speech.values())[:10]:
        padded = np.concatenate([waveform, noise(background_dbfs, waveform.shape[-1])], axis=1)
        assert speech_share(padded, RATE) == pytest.approx(speech_share(waveform, RATE) / 2, abs=0.1)


def test_noise_at_10_db_changes_little(speech):
    """On average over clips; the single one may lose its faint words."""
    clean, noisy = [], []
    for seed, waveform in enumerate(speech.values()):
        level = measure_audio(waveform, RATE).rms_dbfs - 10
        clean.append(speech_share(waveform, RATE))
        noisy.append(speech_share(waveform + noise(level, waveform.shape[-1], seed), RATE))
    assert np.mean(noisy) == pytest.approx(np.mean(clean), abs=0.12)


@pytest.mark.parametrize(
    "waveform",
    [
        noise(-20),
        noise(-70),
        tone(440, 0.5),
        tone(50, 0.5),
        np.zeros((1, RATE), np.float32),
        np.ones((2, RATE), np.float32),
    ],
    ids=["noise", "faint noise", "tone", "hum", "silence", "DC"],
)
def test_what_does_not_change_is_not_speech(waveform):
    """Steady sounds of any level have no activity, and neither has a file shorter than a frame."""
    assert speech_share(waveform, RATE) == 0
    assert speech_share(waveform[:, :100], RATE) == 0


def test_wav_and_flac_of_the_same_sound_are_duplicates(speech, tmp_path):
    """Containers, 16 or 24 bits and file names do not matter, at the codec's rate or resampled to it."""
    waveform = next(iter(speech.values()))
    for sample_rate in (RATE, 16000):
        hashes = set()
        for name, subtype in [("a.wav", "PCM_16"), ("b.flac", "PCM_16"), ("c.flac", "PCM_24"), ("d.wav", "FLOAT")]:
            soundfile.write(tmp_path / name, as_16_bits(waveform)[0], sample_rate, subtype=subtype)
            with (tmp_path / name).open("rb") as stream:
                read, _ = read_audio(stream)
            hashes.add(measure_audio(resample(read, sample_rate, RATE).numpy(), RATE).content_hash)
        assert len(hashes) == 1
        assert len(next(iter(hashes))) == 16
        int(next(iter(hashes)), 16)


def test_rounding_errors_of_another_cpu_do_not_change_the_hash(speech):
    """Noise of 1e-7 leaves at least 49 of 50 hashes alone; of samples rounded to 16 bits some would always change."""
    rng = np.random.default_rng(0)
    changed = total = 0
    for waveform in speech.values():
        for _ in range(5):
            other = (waveform + rng.uniform(-1e-7, 1e-7, waveform.shape)).astype(np.float32)
            total += 1
            changed += measure_audio(other, RATE).content_hash != measure_audio(waveform, RATE).content_hash
    assert changed <= total / 50


def test_other_sound_has_another_hash(speech):
    """Every clip, a copy that is 3 dB louder, a second take's worth of noise, half a word cut out, one sample more."""
    waveform = next(iter(speech.values()))
    cut = waveform.copy()
    loudest = int(np.abs(waveform).argmax())
    cut[:, max(0, loudest - 1200) : loudest + 1200] = 0
    others = [
        waveform * 0.7,
        waveform + noise(measure_audio(waveform, RATE).rms_dbfs - 40, waveform.shape[-1]),
        cut,
        waveform[:, :-1],
        waveform[:, ::-1].copy(),
        -waveform,
        *speech.values(),
    ]
    hashes = [measure_audio(other, RATE).content_hash for other in others]
    assert len(set(hashes)) == len(hashes)


def test_silence_of_one_length_is_one_sound():
    """Digital silence is a duplicate of digital silence, but not of more of it."""
    hashes = [measure_audio(np.zeros((1, n), np.float32), RATE).content_hash for n in (500, 500, 501)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_is_frozen():
    """A dataset made today finds its duplicates in one made years from now."""
    ramp = (np.arange(1000, dtype=np.float32)[None] - 500) / 1024
    assert measure_audio(ramp, RATE).content_hash == "2f2167cb29887881"


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 479])
def test_a_few_samples_are_enough(samples):
    """Every fact has a value for any length from one sample up."""
    facts = measure_audio(np.full((1, samples), 0.3, np.float32), RATE)
    assert facts.rms_dbfs == pytest.approx(-10.46, abs=0.01)
    assert (facts.clipping_share, facts.speech_share, len(facts.content_hash)) == (0, 0, 16)
