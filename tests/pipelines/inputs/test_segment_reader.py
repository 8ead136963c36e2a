"""Inputs at the codec's rate, whole or in segments cut at silence, read in as many calls as one likes."""

import io
import pickle

import numpy as np
import pytest
import torch

from pipelines.inputs import segment_reader
from pipelines.inputs.segment_reader import read_segments
from pipelines.inputs.silence_cut import silence_cut
from tests.conftest import speech_like, tiny_spec
from tests.tokenizer.bad_audio import av_sound, sound, write_silence
from tokenizer import AudioError, mix_channels, read_audio, resample

SPEC = tiny_spec()
RATE = SPEC.sample_rate
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


@pytest.fixture(scope="module")
def encoded():
    """Eight seconds at 16 kHz, a little different in each channel, as bytes of every format."""
    speech = speech_like(8, 16000)
    stereo = np.stack([speech, np.roll(speech, 7) * 0.5], axis=1)
    pytest.importorskip("av")
    return {name: sound(stereo, *kind, 16000) for name, kind in FORMATS.items()} | {
        "m4a": av_sound(speech, "ipod", "aac", rate=16000)
    }


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch):
    monkeypatch.setattr(segment_reader, "_STRETCH_S", 1.5)


def at_once(content):
    """[1, S] the whole file, read, mixed and resampled by one call each."""
    waveform, rate = read_audio(io.BytesIO(content))
    return resample(mix_channels(waveform, SPEC.channels), rate, RATE).numpy()


def in_calls(content, at_most_s, **arguments):
    """Segments of all calls, each of which gets a cursor that travelled."""
    segments, cursor, num_calls = [], None, 0
    while cursor is not None or num_calls == 0:
        read = read_segments(io.BytesIO(content), SPEC, at_most_s=at_most_s, cursor=cursor, **arguments)
        segments += read.segments
        cursor, num_calls = pickle.loads(pickle.dumps(read.rest)), num_calls + 1  # noqa: S301 - our own
    return segments, num_calls


def joined(segments):
    """[C, S] segments one after another, which is where they say they are."""
    position = 0
    for segment in segments:
        assert segment.start_sample == position
        position += segment.waveform.shape[-1]
    return np.concatenate([segment.waveform for segment in segments], axis=-1)


def noise(*loudness):
    """[S] tenths of seconds of noise, each of its own loudness."""
    blocks = np.random.default_rng(0).standard_normal((len(loudness), RATE // 10)) * np.array(loudness)[:, None]
    return blocks.ravel().astype(np.float32)


@pytest.mark.parametrize("name", [*FORMATS, "m4a"])
def test_a_whole_input_is_the_file_resampled(encoded, name):
    """Bit for bit, so that codes do not depend on who reads."""
    read = read_segments(io.BytesIO(encoded[name]), SPEC)
    assert (read.source_sample_rate, read.source_channels, read.rest) == (16000, 1 if name == "m4a" else 2, None)
    assert len(read.segments) == 1
    assert np.array_equal(joined(read.segments), at_once(encoded[name]))


@pytest.mark.parametrize(("channels", "tolerance"), [(1, 0), (2, 0), (4, 0), (8, 1e-7)])
@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_mixing_and_resampling_in_blocks_change_no_sample(channels, tolerance, rate, monkeypatch):
    """Whatever the blocks that a file arrives in; of many channels, the order of a sum depends on its length."""
    content = sound(np.random.default_rng(0).uniform(-1, 1, (3 * rate, channels)), "WAV", "FLOAT", rate)
    expected = at_once(content)
    monkeypatch.setattr("tokenizer.audio_file._BLOCK_SAMPLES", 12345)
    whole = joined(read_segments(io.BytesIO(content), SPEC).segments)
    torch.testing.assert_close(whole, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [*FORMATS, "m4a"])
def test_segments_do_not_depend_on_the_calls(encoded, name):
    """Many short calls, a few, or one: the same segments, and joined the whole file, sample for sample."""
    segments, num_calls = in_calls(encoded[name], 1e9, max_segment_s=2.5)
    assert num_calls == 1
    for at_most_s in (0.5, 4.0):
        others, num_calls = in_calls(encoded[name], at_most_s, max_segment_s=2.5)
        assert num_calls >= 2
        assert np.array_equal(joined(others), joined(segments))
        assert [other.start_sample for other in others] == [segment.start_sample for segment in segments]
    tolerance = 1e-6 if name == "mp3" else 0
    torch.testing.assert_close(joined(segments), at_once(encoded[name]), atol=tolerance, rtol=0)


def test_segments_are_as_long_as_asked(encoded):
    """No longer than the limit, and all but the last at least two thirds of it, in whole frames."""
    for limit in (1.0, 1.7, 3.3):
        segments, _ = in_calls(encoded["flac"], 1e9, max_segment_s=limit)
        lengths = [segment.waveform.shape[-1] for segment in segments]
        assert len(lengths) >= 3
        assert max(lengths) <= round(limit * RATE)
        for length in lengths[:-1]:
            assert length >= round(limit * RATE) * 2 // 3 - SPEC.hop_length
            assert length % SPEC.hop_length == 0


def test_what_fits_is_not_cut():
    """An input of exactly the limit is one segment; one sample more makes two."""
    for num_samples, expected in ((2 * RATE, 1), (2 * RATE + 1, 2)):
        content = sound(speech_like(3)[:num_samples], "WAV", "PCM_16")
        assert len(read_segments(io.BytesIO(content), SPEC, max_segment_s=2).segments) == expected


def test_cuts_fall_where_it_is_quietest():
    """In the middle of the quietest 0.3 s of the last third; not in a shorter pause, nor in an earlier one."""
    loudness = np.full(60, 0.3)
    loudness[10:16] = 0  # quiet, but in the first two thirds
    loudness[42] = 0  # a pause, but a short one
    loudness[50:53] = 0.01
    waveform = np.stack([noise(*loudness), noise(*loudness) * 0.5])
    cut = silence_cut(waveform, RATE, 8)
    assert cut == pytest.approx(5.15 * RATE, abs=0.02 * RATE)
    silent = np.zeros((1, 30 * RATE), np.float32)
    assert silence_cut(silent, RATE, 320) == pytest.approx(29.85 * RATE, abs=320)  # of equals the latest: long segments


def test_a_part_of_a_file_is_that_part(encoded):
    """A manifest's offset and duration, to the sample of the file; what is longer than the file ends with it."""
    speech = speech_like(8, 24000)
    content = sound(speech, "WAV", "FLOAT")
    for limit in (None, 2.0):
        for start_s, duration_s, end in ((2, 3.5, 5.5), (1.25, None, 8), (6, 100, 8), (0, 2, 2)):
            segments, _ = in_calls(content, 1, start_s=start_s, duration_s=duration_s, max_segment_s=limit)
            assert np.array_equal(joined(segments)[0], speech[round(start_s * RATE) : round(end * RATE)])
    whole = read_audio(io.BytesIO(encoded["m4a"]))[0]
    part = read_segments(io.BytesIO(encoded["m4a"]), SPEC, start_s=3, duration_s=2).segments[0].waveform
    assert np.array_equal(part, resample(whole[:, 48000:80000], 16000, RATE).numpy())


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"start_s": 8.5}, "before the"),
        ({"start_s": 8.0}, "ends where the part to be read begins"),
        ({"start_s": -1}, "begins at -1 s"),
        ({"start_s": float("nan")}, "begins at nan"),
        ({"duration_s": 0}, "takes 0 s"),
        ({"duration_s": 1e-6}, "not one sample"),
    ],
    ids=str,
)
def test_parts_that_are_not_there_are_refused(encoded, limit, part, reason):
    """An AudioError, which the job turns into an error row."""
    with pytest.raises(AudioError, match=reason):
        read_segments(io.BytesIO(encoded["wav"]), SPEC, max_segment_s=limit, **part)
    if part.get("start_s") == 8.5:
        with pytest.raises(AudioError, match=reason):  # where skipping is decoding
            read_segments(io.BytesIO(encoded["m4a"]), SPEC, max_segment_s=limit, **part)


def test_an_input_too_long_for_one_segment_is_refused_with_the_way_out(encoded, monkeypatch):
    """By what the header claims, or else by what arrives; a short part of it is welcome."""
    monkeypatch.setattr(segment_reader, "MAX_SAMPLES", 2 * 16000 * 4)
    for name in ("wav", "adpcm"):
        with pytest.raises(AudioError, match="--max-segment-s"):
            read_segments(io.BytesIO(encoded[name]), SPEC)
        read_segments(io.BytesIO(encoded[name]), SPEC, start_s=1, duration_s=4)
        assert len(read_segments(io.BytesIO(encoded[name]), SPEC, max_segment_s=4, at_most_s=100).segments) >= 2


def test_a_rate_without_sound_is_refused():
    """At 10 Hz a kilobyte would become minutes of nothing."""
    with pytest.raises(AudioError, match="10 Hz"):
        read_segments(io.BytesIO(sound(np.zeros(50), "WAV", "PCM_16", 10)), SPEC)


@pytest.mark.parametrize(
    "arguments",
    [{"max_segment_s": 0.9}, {"max_segment_s": float("inf")}, {"at_most_s": 0}, {"at_most_s": float("nan")}],
)
def test_wrong_arguments_are_the_callers_fault(encoded, arguments):
    """ValueError, not an error row for every file."""
    with pytest.raises(ValueError, match=r"max_segment_s|at_most_s"):
        read_segments(io.BytesIO(encoded["wav"]), SPEC, **arguments)


def test_a_call_reads_what_it_needs(tmp_path):
    """The middle of an hour costs the bytes of a stretch, not those of half an hour."""

    class Counting(io.FileIO):
        num_read = 0

        def read(self, size=-1):
            content = super().read(size)
            self.num_read += len(content)
            return content

    write_silence(tmp_path / "a.wav", 3600, 8000)
    with Counting(tmp_path / "a.wav") as stream:
        read = read_segments(stream, SPEC, start_s=1800, max_segment_s=10, at_most_s=3)
        assert read.rest.position == 3 * 8000
        assert stream.num_read < 4 * 8000 * 2


def test_a_cursor_is_small(tmp_path):
    """It holds less than a segment and what the resampler waits for, however much was read."""
    write_silence(tmp_path / "a.wav", 600, 8000)
    with (tmp_path / "a.wav").open("rb") as stream:
        read = read_segments(stream, SPEC, max_segment_s=5, at_most_s=300)
    assert len(read.segments) > 50
    assert len(pickle.dumps(read.rest)) < 4 * (5 * RATE + 2 * 8000) + 1000 + 4 * 2**16


def test_a_file_that_changes_between_two_calls_is_refused(encoded):
    """Half of one file and half of another is nobody's audio."""
    rest = read_segments(io.BytesIO(encoded["wav"]), SPEC, max_segment_s=2, at_most_s=1).rest
    other = sound(speech_like(8), "WAV", "PCM_16")
    with pytest.raises(AudioError, match="changed while it was read"):
        read_segments(io.BytesIO(other), SPEC, max_segment_s=2, cursor=rest)
