"""Headers that say too much or too little: half a file is never taken for a whole one, nor a whole one refused."""

import io
import struct

import numpy as np
import pytest
import soundfile

from tests.conftest import speech_like
from tests.tokenizer.bad_audio import RATE, patched, sound, with_id3
from tokenizer import AudioError, read_audio

SPEECH = speech_like(2, RATE)
NUM_SAMPLES = len(SPEECH)


def num_read(content):
    """Samples that arrive."""
    return read_audio(io.BytesIO(content))[0].shape[1]


def without_first_frame(mp3):
    """An MP3 without the frame that counts the others, as many encoders write it."""
    return mp3[mp3.find(mp3[:2], 4) :]


def vbr_mp3(samples):
    """An MP3 whose first frame is small: a decoder that guesses the length from it stops early or late."""
    quiet = np.concatenate([np.zeros(RATE), samples]).astype(np.float32)
    return sound(quiet, "MP3", "MPEG_LAYER_III")


@pytest.mark.parametrize(
    ("file_format", "endian"), [("WAV", "FILE"), ("WAV", "BIG"), ("RF64", "FILE"), ("AIFF", "FILE"), ("AU", "FILE")]
)
def test_half_a_file_of_pcm_is_refused(file_format, endian):
    """libsndfile would give the half that is there; cut by a few bytes, a file is as good as whole."""
    buffer = io.BytesIO()
    soundfile.write(buffer, SPEECH, RATE, format=file_format, subtype="PCM_16", endian=endian)
    content = buffer.getvalue()
    assert num_read(content) == NUM_SAMPLES
    assert num_read(content[:-100]) == NUM_SAMPLES - 50
    for cut in (len(content) // 2, len(content) - 2000):
        with pytest.raises(AudioError, match=r"damaged: ends after \d+ of 9600[08] bytes"):
            read_audio(io.BytesIO(content[:cut]))


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x80000000], ids=hex)
def test_sizes_written_by_pipes_are_no_sizes(size):
    """FFmpeg, SoX and arecord write these where they cannot go back: all that follows is the sound."""
    wav = sound(SPEECH, "WAV", "PCM_16")
    assert num_read(patched(wav, 40, struct.pack("<I", size))) == NUM_SAMPLES


@pytest.mark.parametrize("form_size", [0, 36, 0xFFFFFFFF], ids=hex)
def test_a_wav_that_was_never_closed_is_read_to_its_end(form_size):
    """A recorder that lost its power leaves a data size of 0 in front of all that it recorded."""
    wav = sound(SPEECH, "WAV", "PCM_16")
    unclosed = patched(patched(wav, 4, struct.pack("<I", form_size)), 40, bytes(4))
    waveform, _ = read_audio(io.BytesIO(unclosed))
    assert np.array_equal(waveform, read_audio(io.BytesIO(wav))[0])


def test_a_closed_wav_without_samples_has_none():
    """What follows its empty data is another chunk, not sound."""
    empty = sound(SPEECH[:0], "WAV", "PCM_16")[:44] + b"LIST" + struct.pack("<I", 200) + bytes(200)
    with pytest.raises(AudioError, match="no samples"):
        read_audio(io.BytesIO(patched(empty, 4, struct.pack("<I", len(empty) - 8))))


def test_chunks_before_the_data_are_passed_over():
    """Odd sizes are padded; a chunk that claims more than the file has hides nothing that was there."""
    wav = sound(SPEECH, "WAV", "PCM_16")
    tagged = wav[:36] + b"LIST" + struct.pack("<I", 5) + bytes(6) + wav[36:]
    assert num_read(tagged) == NUM_SAMPLES
    with pytest.raises(AudioError, match="damaged"):
        read_audio(io.BytesIO(tagged[:30000]))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_ends_inside_a_page_is_refused(subtype):
    """Of its last page nothing is read, so a second may be missing for a single byte."""
    ogg = sound(SPEECH, "OGG", subtype)
    for cut in (len(ogg) * 2 // 3, len(ogg) - 1):
        with pytest.raises(AudioError, match=r"ends inside an Ogg page|not audio"):
            read_audio(io.BytesIO(ogg[:cut]))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_stops_between_two_pages_is_a_live_recording(subtype):
    """Nothing shows that more was there; nor do zeros or tags after the last page mean anything."""
    ogg = sound(np.tile(SPEECH, 3), "OGG", subtype)
    last_page = ogg.rfind(b"OggS")
    assert 2 * RATE < num_read(ogg[:last_page]) < 6 * RATE
    assert num_read(ogg + bytes(500)) == 6 * RATE


def test_streams_chained_in_one_ogg_are_refused():
    """libsndfile gives the first of them only."""
    chained = sound(SPEECH, "OGG", "VORBIS") + sound(SPEECH[::2].copy(), "OGG", "VORBIS")
    with pytest.raises(AudioError, match="chained"):
        read_audio(io.BytesIO(chained))


@pytest.mark.parametrize("id3", [0, 300_000])
def test_half_an_mp3_that_counts_its_frames_is_refused(id3):
    """Its first frame tells how many there are, behind whatever tag; the last one may be missing."""
    mp3 = sound(SPEECH, "MP3", "MPEG_LAYER_III")
    content = with_id3(mp3, id3) if id3 else mp3
    assert num_read(content) == NUM_SAMPLES
    assert num_read(content[:-1]) < NUM_SAMPLES
    with pytest.raises(AudioError, match=rf"damaged: ends after \d+ of {NUM_SAMPLES} samples"):
        read_audio(io.BytesIO(content[: len(content) - len(mp3) // 2]))


def test_an_mp3_that_counts_nothing_is_read_to_its_end():
    """libsndfile guesses its length from the first frame, here far too short or too long, and cuts at the guess."""
    for samples in (SPEECH, SPEECH[::-1].copy() * np.linspace(1, 0, NUM_SAMPLES, dtype=np.float32)):
        mp3 = without_first_frame(vbr_mp3(samples))
        assert num_read(mp3) == pytest.approx(NUM_SAMPLES + RATE, abs=4 * 1152)
        assert num_read(mp3 + b"TAG" + bytes(125)) == num_read(mp3)


def test_joined_mp3s_are_read_to_their_end():
    """The first one's count is that of the first one; what follows is sound all the same."""
    mp3 = sound(SPEECH, "MP3", "MPEG_LAYER_III")
    for joined in (mp3 + mp3, with_id3(mp3, 100) + with_id3(mp3, 50)):
        assert num_read(joined) == pytest.approx(2 * NUM_SAMPLES, abs=6 * 1152)
    assert num_read(mp3 + bytes(5000)) == NUM_SAMPLES
