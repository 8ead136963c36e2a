"""Bytes that nobody vouches for become a checked waveform, whole or in blocks, or an AudioError that says why."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenizer import AudioError, audio_file, open_audio, read_audio, sound_file, write_audio

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


def test_a_file_that_fails_is_a_fault_of_the_audio_where_a_path_was_given(tmp_path, encoded, monkeypatch):
    """Whoever gave a path gets one kind of error: an AudioError that names it."""

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    (tmp_path / "a.wav").write_bytes(encoded["wav"])
    monkeypatch.setattr("pathlib.Path.open", lambda *_: Failing(encoded["wav"]))
    with pytest.raises(AudioError, match=r"a\.wav: Input/output error"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3"])
def test_blocks_are_the_waveform_in_pieces(encoded, extension, monkeypatch):
    """Joined they are what reading it whole gives; no block is empty or longer than asked."""
    monkeypatch.setattr(audio_file, "_BLOCK_SAMPLES", 1000)
    with open_audio(io.BytesIO(encoded[extension])) as reader:
        blocks = list(reader.blocks())
        assert (reader.sample_rate, reader.channels) == (RATE, 1)
    assert {block.shape[1] for block in blocks} <= set(range(1, 1001))
    monkeypatch.undo()
    assert torch.equal(torch.cat(blocks, dim=1), read_audio(io.BytesIO(encoded[extension]))[0])


def test_blocks_are_bounded_in_samples_and_in_seconds(tmp_path):
    """Many channels make shorter blocks, and a file that claims to be at 10 Hz gives no days at once."""
    for channels, rate, longest in ((8, RATE, 2**17), (1, 10, 600)):
        write_audio(tmp_path / "a.wav", torch.zeros(channels, 2**17 + 1), rate)
        with open_audio(tmp_path / "a.wav") as reader:
            assert next(reader.blocks()).shape == (channels, longest)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3", "ima_adpcm", "gsm610", "piped flac"])
def test_skipping_is_exact(encoded, waveform, extension):
    """To the sample, in formats that can be entered anywhere and in those that cannot; MP3 differs in the last bit."""
    content = io.BytesIO()
    if extension == "piped flac":
        content = flac_that_claims(encoded["flac"], 0)
    elif extension in encoded:
        content = io.BytesIO(encoded[extension])
    else:
        soundfile.write(content, waveform[0].numpy(), RATE, format="WAV", subtype=extension.upper())
    whole, _ = read_audio(content)
    for num_skipped in (0, 1, 5000, 20001, whole.shape[1] - 1):
        with open_audio(content) as reader:
            reader.skip(num_skipped)
            rest = torch.cat(list(reader.blocks()), dim=1)
        tolerance = 1e-6 if extension == "mp3" else 0
        torch.testing.assert_close(rest, whole[:, num_skipped:], atol=tolerance, rtol=0)
    with open_audio(content) as reader:
        reader.skip(whole.shape[1])
        assert list(reader.blocks()) == []
    with pytest.raises(AudioError, match=r"before the|cannot go on at"), open_audio(content) as reader:
        reader.skip(whole.shape[1] + 1)


def test_a_part_is_read_without_the_rest(encoded):
    """Blocks end where the part ends, and damage behind it is not looked for."""
    truncated = io.BytesIO(encoded["wav"][:-5000])
    with open_audio(truncated) as reader:
        reader.skip(1000)
        assert torch.cat(list(reader.blocks(3000)), dim=1).shape == (1, 3000)
    with open_audio(truncated) as reader, pytest.raises(AudioError, match="damaged"):
        list(reader.blocks(23999))


def test_a_file_of_any_length_is_opened(encoded):
    """What its header claims allocates nothing: 2**36 samples are welcome, until they turn out to be missing."""
    with open_audio(flac_that_claims(encoded["flac"], 2**36 - 1)) as reader:
        blocks = reader.blocks()
        assert next(blocks).shape == (1, 23999)
        with pytest.raises(AudioError, match="ends after 23999 of 68719476735"):
            next(blocks)
    with pytest.raises(AudioError, match="too large"), open_audio(io.BytesIO(encoded["wav"]), max_samples=100):
        pass


def test_faults_of_the_reader_are_not_faults_of_the_file(tmp_path, encoded):
    """An error of whoever uses the blocks passes through as it is, and the file is closed."""
    (tmp_path / "a.wav").write_bytes(encoded["wav"])
    with pytest.raises(OSError, match="their own"), open_audio(tmp_path / "a.wav") as reader:
        raise OSError("their own")
    assert reader._decoder._file.closed


def test_a_wav_beyond_its_header_is_refused(tmp_path, encoded):
    """Sizes in a WAV have 32 bits: beyond 4 GiB, the start of the file would be read as if it were all of it."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav_with(encoded["wav"], 40, b"\xff\xff\xff\xff").read())
    with path.open("r+b") as file:
        file.truncate(2**32 + 100)  # a hole: it takes no space
    with pytest.raises(AudioError, match="counts no further than 4 GiB"), open_audio(path):
        pass


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


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus"])
def test_no_more_is_asked_for_than_the_header_counts(encoded, extension, monkeypatch):
    """libsndfile fills with zeros what it is asked for and does not have: a minute of them, for a file of a second."""
    asked, read = [], sound_file._ForwardFile.read
    monkeypatch.setattr(
        sound_file._ForwardFile, "read", lambda file, frames, **form: asked.append(frames) or read(file, frames, **form)
    )
    waveform, _ = read_audio(io.BytesIO(encoded[extension]))
    assert waveform.shape[-1] <= sum(asked) <= waveform.shape[-1] + 4096
