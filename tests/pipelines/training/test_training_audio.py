"""Training audio reads the same whether it was decoded once or lies where it came from."""

import dataclasses
import pickle

import numpy as np
import pytest
import soundfile

from pipelines.training.clip_reader import ClipReader, probe_seconds
from pipelines.training.data_settings import DataSettings
from pipelines.training.training_audio import open_training_audio
from pipelines.training.training_clips import list_clips
from tests.conftest import speech_like, tiny_spec
from tokenizer import AudioError, DatasetError

STORED, IN_PLACE = DataSettings(), DataSettings(store_hours=0.0)
ONE_STEP = 1.01 / 32767
FORMATS = [
    (suffix, rate, 1)
    for suffix in ("wav", "flac", "ogg", "opus", "mp3")
    for rate in (16000, 24000, 44100, 48000)
    if (suffix, rate) != ("opus", 44100)
] + [("flac", 48000, 2), ("wav", 22051, 1)]
SUBTYPES = {"opus": "OPUS", "ogg": "VORBIS"}


def write(path, rate, channels=1, seconds=2.0, seed=0):
    """A clip in the format of its name."""
    samples = np.stack([speech_like(seconds, rate, seed + c) for c in range(channels)], axis=1)
    kind = "OGG" if path.suffix in (".ogg", ".opus") else path.suffix[1:].upper()
    soundfile.write(path, samples, rate, format=kind, subtype=SUBTYPES.get(path.suffix[1:]))
    return path


def open_both(folder, tmp_path, spec):
    """The same clips in the two forms."""
    return [open_training_audio([folder], spec, form, cache_dir=tmp_path / "cache") for form in (STORED, IN_PLACE)]


@pytest.mark.parametrize(("suffix", "rate", "channels"), FORMATS, ids=str)
def test_reading_in_place_gives_what_was_decoded(tmp_path, suffix, rate, channels):
    """Within 16-bit rounding, wherever a crop starts, and silence where the clip has ended."""
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips" / f"clip.{suffix}", rate, channels)
    stored, in_place = open_both(tmp_path / "clips", tmp_path, tiny_spec())
    assert stored.is_stored
    assert not in_place.is_stored
    length = int(stored.lengths[0])
    assert abs(int(in_place.lengths[0]) - length) <= 1
    for start in (0, 1, 777, 11000, 24001, length - 4000, length - 7):
        expected, found = (audio.crops.read(0, start, 6000) for audio in (stored, in_place))
        assert expected.shape == found.shape == (1, 6000)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ONE_STEP)
    assert np.abs(expected[:, :7]).max() > 0
    assert (found[:, 8:] == 0).all()


def test_a_stereo_codec_hears_stereo(tmp_path):
    """Two channels stay two, and one becomes two equal ones."""
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips" / "a.flac", 48000, channels=2)
    write(tmp_path / "clips" / "b.flac", 48000)
    for audio in open_both(tmp_path / "clips", tmp_path, tiny_spec("segmented")):
        stereo, mono = audio.crops.read(0, 5000, 9000), audio.crops.read(1, 5000, 9000)
        assert stereo.shape == mono.shape == (2, 9000)
        assert np.abs(stereo[0] - stereo[1]).max() > 0.05
        np.testing.assert_array_equal(mono[0], mono[1])


def test_a_flac_of_unknown_length_is_counted(tmp_path):
    """As every encoder writes it that is fed through a pipe."""
    path = write(tmp_path / "piped.flac", 24000)
    header = bytearray(path.read_bytes())
    header[21] &= 0xF0  # the low 36 bits from here on are the number of samples
    header[22:26] = bytes(4)
    path.write_bytes(header)
    (clip,) = list_clips([path])
    assert probe_seconds(clip) == 2.0
    reader, whole = ClipReader(24000, 1), speech_like(2.0)
    np.testing.assert_allclose(reader.read(clip, 30000, 9000)[0], whole[30000:39000], atol=2 * ONE_STEP)


@pytest.mark.parametrize("settings", [STORED, IN_PLACE], ids=["stored", "in place"])
def test_unreadable_clips_are_counted_and_left_out(speech_folder, tmp_path, settings):
    """The run goes on without them, and says how many."""
    (speech_folder / "broken.wav").write_bytes(b"RIFF")
    (speech_folder / "empty.flac").write_bytes(b"")
    audio = open_training_audio([speech_folder], tiny_spec(), settings, cache_dir=tmp_path / "cache")
    assert audio.num_unreadable == 2
    assert audio.seconds == pytest.approx(sum(0.2 + 0.05 * index for index in range(10)), abs=1e-3)
    assert "2 clips cannot be read" in audio.describe()
    assert audio.seconds_by_kind == {"speech": audio.seconds}


def test_no_readable_clip_is_an_error(tmp_path):
    """There is nothing to train on."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF")
    for settings in (STORED, IN_PLACE):
        with pytest.raises(DatasetError, match="none of the 1 clips"):
            open_training_audio([tmp_path / "clips"], tiny_spec(), settings, cache_dir=tmp_path / "cache")


def test_clips_are_decoded_once_and_reused(speech_folder, tmp_path):
    """A second call reads nothing but the store; another rate has a store of its own; workers change no sample."""
    settings = dataclasses.replace(STORED, gain_db=(0.0, 0.0))
    first = open_training_audio([speech_folder], tiny_spec(), settings, cache_dir=tmp_path / "a", num_workers=1)
    alone = open_training_audio([speech_folder], tiny_spec(), settings, cache_dir=tmp_path / "b")
    for path in speech_folder.rglob("*.wav"):
        path.write_bytes(b"x" * path.stat().st_size)
    again = open_training_audio([speech_folder], tiny_spec(), settings, cache_dir=tmp_path / "a")
    for clip in range(10):
        expected = alone.crops.read(clip, 100, 9000)
        for audio in (first, again, pickle.loads(pickle.dumps(first))):  # noqa: S301 - our own
            np.testing.assert_array_equal(audio.crops.read(clip, 100, 9000), expected)
    slower = dataclasses.replace(tiny_spec(), sample_rate=16000)
    with pytest.raises(DatasetError, match="none"):
        open_training_audio([speech_folder], slower, settings, cache_dir=tmp_path / "a")


def test_a_crop_behind_the_end_is_an_error(speech_folder):
    """Where a manifest promised more than the file holds."""
    clip = dataclasses.replace(list_clips([speech_folder])[0], duration_s=60.0)
    with pytest.raises(AudioError, match=r"clip0.wav: ends before 30.00 s"):
        ClipReader(24000, 1).read(clip, 720000, 100)
