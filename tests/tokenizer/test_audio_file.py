"""Bytes that nobody vouches for become a checked waveform or an AudioError that says why; writing is all or nothing."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenizer import AudioError, read_audio, write_audio

RATE = 24000


@pytest.fixture(scope="module")
def encoded(waveform, tmp_path_factory):
    """The same second of sound in every format, as bytes."""
    folder = tmp_path_factory.mktemp("formats")
    for extension in ("wav", "flac", "ogg", "opus", "mp3"):
        write_audio(folder / f"speech.{extension}", waveform, RATE)
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


def flac_that_claims(content: bytes, num_samples: int) -> io.BytesIO:
    """A FLAC whose STREAMINFO says another number of samples (36 bits from the middle of byte 21)."""
    changed = bytearray(content)
    changed[21] = changed[21] & 0xF0 | num_samples >> 32
    changed[22:26] = struct.pack(">I", num_samples & 0xFFFFFFFF)
    return io.BytesIO(bytes(changed))


def wav_with(content: bytes, offset: int, value: bytes) -> io.BytesIO:
    """A WAV with some header bytes replaced."""
    return io.BytesIO(content[:offset] + value + content[offset + len(value) :])


def float_wav(samples) -> io.BytesIO:
    """A WAV of 32-bit floats, which can hold anything."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_lossless_formats_give_back_every_sample(tmp_path, extension):
    """What has 16 bits comes back exactly, also at full scale and in two channels."""
    pcm = torch.tensor([[-32768, -1, 0, 1, 32767], [5, -5, 300, -32767, 32766]])
    write_audio(tmp_path / f"a.{extension}", pcm / 32768, 44100)
    waveform, rate = read_audio(tmp_path / f"a.{extension}")
    assert rate == 44100
    assert torch.equal(waveform * 32768, pcm.float())


@pytest.mark.parametrize("extension", ["ogg", "opus", "mp3"])
def test_lossy_formats_keep_length_and_likeness(encoded, waveform, extension):
    """Not a sample more or less, and the sound is recognisable."""
    decoded, rate = read_audio(io.BytesIO(encoded[extension]))
    assert (decoded.shape, decoded.dtype, rate) == (waveform.shape, torch.float32, RATE)
    assert torch.nn.functional.cosine_similarity(decoded, waveform).item() > 0.9


def test_a_path_a_string_and_a_file_object_read_the_same(tmp_path, encoded):
    """A file object is read from its start, wherever it stands, and is left open."""
    path = tmp_path / "speech.flac"
    path.write_bytes(encoded["flac"])
    stream = io.BytesIO(encoded["flac"])
    stream.seek(1000)
    expected = read_audio(path)[0]
    assert torch.equal(read_audio(str(path))[0], expected)
    assert torch.equal(read_audio(stream)[0], expected)
    assert not stream.closed


def test_samples_beyond_full_scale_are_clipped_when_written(tmp_path):
    """Clipped, not wrapped around."""
    write_audio(tmp_path / "loud.wav", torch.tensor([[2.0, -2.0]]), RATE)
    assert read_audio(tmp_path / "loud.wav")[0].tolist() == [[32767 / 32768, -1.0]]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: io.BytesIO(), "empty"),
        (lambda _: io.BytesIO(b"<html>not found</html>" * 20), "not audio"),
        (lambda _: float_wav([]), "no samples"),
        (lambda _: float_wav([0.0, float("nan")]), "NaN"),
        (lambda _: float_wav([0.0, float("-inf")]), "infinite"),
        (lambda e: wav_with(e["wav"], 24, struct.pack("<I", 0)), "not audio"),
        (lambda e: wav_with(e["wav"], 24, struct.pack("<I", 2**31 - 1)), "2147483647 Hz"),
        (lambda e: wav_with(e["wav"], 22, struct.pack("<H", 300)), "300 channels"),
        (lambda e: io.BytesIO(e["flac"][: len(e["flac"]) // 2]), "damaged"),
        (lambda e: io.BytesIO(e["flac"][:-1]), "damaged"),
        (lambda e: io.BytesIO(e["flac"][:30] + bytes(60)), "no samples"),
        (lambda e: flac_that_claims(e["flac"], 24050), "ends after 23999 of 24050"),
        (lambda e: flac_that_claims(e["flac"], 2**36 - 1), "too large"),
    ],
    ids=[
        "empty",
        "html",
        "no samples",
        "nan",
        "infinite",
        "rate 0",
        "absurd rate",
        "300 channels",
        "half a flac",
        "flac without its last byte",
        "garbage after a flac header",
        "flac cut between frames",
        "flac that claims 2**36 samples",
    ],
)
def test_bad_files_are_refused_with_the_reason(encoded, make, reason):
    """Whatever is wrong, the error is an AudioError and names it."""
    with pytest.raises(AudioError, match=reason):
        read_audio(make(encoded))


def test_missing_files_and_folders_are_refused(tmp_path):
    """The path is in the message."""
    with pytest.raises(AudioError, match=r"nowhere\.wav: no such file"):
        read_audio(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="not a file"):
        read_audio(tmp_path)


def test_sizes_in_headers_are_never_believed(encoded):
    """A WAV from a pipe says 4 GiB, a FLAC from a pipe says nothing: both give what is really there."""
    piped_wav = wav_with(encoded["wav"], 40, b"\xff\xff\xff\xff")
    assert read_audio(piped_wav)[0].shape == (1, 23999)
    assert read_audio(flac_that_claims(encoded["flac"], 0))[0].shape == (1, 23999)


def test_max_samples_holds_whether_or_not_the_header_tells(encoded):
    """The limit counts all channels, and is kept while reading where the length is unknown."""
    assert read_audio(io.BytesIO(encoded["wav"]), max_samples=23999)[0].shape == (1, 23999)
    for source in (io.BytesIO(encoded["wav"]), flac_that_claims(encoded["flac"], 0)):
        with pytest.raises(AudioError, match=r"(at most|more than) 23998"):
            read_audio(source, max_samples=23998)
    with pytest.raises(AudioError, match="2 channel"):
        read_audio(float_wav([[0.0, 0.0]] * 10), max_samples=19)


def test_a_lost_connection_is_not_the_end_of_the_file(encoded):
    """A file object that fails raises its own error: a shorter waveform would be a wrong one."""

    class Losing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 8192:
                raise ConnectionError("lost")
            return super().read(size)

    for extension in ("wav", "flac", "ogg"):
        with pytest.raises(ConnectionError, match="lost"):
            read_audio(Losing(encoded[extension] * 3))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_audio_or_an_audio_error_and_nothing_else(encoded, data):
    """Flipped bits and cuts never raise anything else, and what they give is finite and not empty."""
    content = bytearray(encoded[data.draw(st.sampled_from(sorted(encoded)), label="format")])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4), label="positions"):
        content[position] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    cut = data.draw(st.integers(0, len(content)), label="cut")
    try:
        waveform, rate = read_audio(io.BytesIO(bytes(content[:cut])), max_samples=2**22)
    except AudioError:
        return
    assert waveform.numel() > 0
    assert bool(waveform.isfinite().all())
    assert 1 <= rate <= 1_000_000


@pytest.mark.parametrize(
    ("name", "waveform", "rate", "reason"),
    [
        ("a.aac", torch.zeros(1, 10), RATE, r"choose one of \.wav"),
        ("a", torch.zeros(1, 10), RATE, "unknown extension"),
        ("a.opus", torch.zeros(1, 10), 44100, "8, 12, 16, 24, 48 kHz"),
        ("a.mp3", torch.zeros(3, 10), RATE, "3 channel"),
        ("a.wav", torch.zeros(1, 10), 0, "at 0 Hz"),
        ("a.wav", torch.zeros(10), RATE, r"\[channels, samples\]"),
        ("a.wav", torch.zeros(1, 0), RATE, "not empty"),
        ("a.wav", torch.tensor([[torch.nan]]), RATE, "NaN"),
        ("a.wav", torch.zeros(1, 10, dtype=torch.int16), RATE, "floats"),
    ],
    ids=["aac", "no extension", "opus rate", "mp3 channels", "rate 0", "flat", "empty", "nan", "integers"],
)
def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path, name, waveform, rate, reason):
    """The error says what is allowed, and no file is left behind."""
    with pytest.raises(AudioError, match=reason):
        write_audio(tmp_path / name, waveform, rate)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, waveform, monkeypatch):
    """The file appears whole or not at all."""
    path = tmp_path / "a.wav"
    write_audio(path, waveform[:, :100], RATE)
    before = path.read_bytes()

    def full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_audio(path, waveform, RATE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_long_vorbis_is_written_in_pieces(tmp_path):
    """The Vorbis encoder of libsndfile overflows its stack when it gets a long file in one call."""
    noise = 0.1 * torch.randn(1, 3_000_000, generator=torch.Generator().manual_seed(0))
    write_audio(tmp_path / "long.ogg", noise, 48000)
    assert read_audio(tmp_path / "long.ogg")[0].shape == noise.shape
