"""What libsndfile cannot read goes through PyAV: the first audio stream, no picture, and nothing outside the file."""

import io
import sys

import numpy as np
import pytest
import torch

from tests.conftest import speech_like
from tests.tokenizer.bad_audio import RATE, av_sound, flac_that_claims, patched, sound, with_id3
from tokenizer import AudioError, audio_file, open_audio, read_audio

pytest.importorskip("av")

SPEECH = speech_like(1, RATE)
KINDS = {  # container, codec, picture, rate
    "m4a": ("ipod", "aac", False, RATE),
    "aac": ("adts", "aac", False, RATE),
    "mp4": ("mp4", "aac", True, RATE),
    "mov": ("mov", "pcm_s16le", True, RATE),
    "alac": ("ipod", "alac", False, RATE),
    "webm": ("webm", "libopus", False, 48000),
    "mkv": ("matroska", "aac", True, RATE),
    "mka": ("matroska", "pcm_f32le", False, RATE),
    "ts": ("mpegts", "aac", True, RATE),
    "avi": ("avi", "pcm_u8", True, RATE),
    "flv": ("flv", "aac", False, 44100),
    "amr": ("amr", "libopencore_amrnb", False, 8000),
    "3gp": ("3gp", "libopencore_amrnb", True, 8000),
}


@pytest.fixture(scope="module")
def encoded():
    """The same second of sound in every container, as bytes."""
    return {
        name: av_sound(speech_like(1, rate), container, codec, video=video, rate=rate)
        for name, (container, codec, video, rate) in KINDS.items()
    }


def likeness(waveform, samples):
    """Cosine similarity at the best of the delays that encoders have."""
    decoded = waveform[0].numpy()
    return max(
        float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-12))
        for delay in range(0, 2200, 2)
        for a, b in [(decoded[delay : delay + len(samples) // 2], samples[: len(decoded[delay:])][: len(samples) // 2])]
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_container_gives_its_sound(encoded, name):
    """All of it, at full scale 1, finite, whatever samples its codec stores."""
    rate = KINDS[name][3]
    waveform, rate_read = read_audio(io.BytesIO(encoded[name]))
    assert (waveform.shape[0], waveform.dtype, rate_read) == (1, torch.float32, rate)
    assert rate * 0.95 < waveform.shape[1] < rate * 1.1
    assert likeness(waveform, speech_like(1, rate)) > (0.5 if "amrnb" in KINDS[name][1] else 0.95)
    assert waveform.abs().max() == pytest.approx(np.abs(speech_like(1, rate)).max(), rel=0.5)


@pytest.mark.parametrize("name", ["mov", "alac"])
def test_lossless_samples_are_exact(encoded, name):
    """16 bits stay what they were."""
    waveform, _ = read_audio(io.BytesIO(encoded[name]))
    assert np.array_equal(waveform[0].numpy() * 32768, np.rint(SPEECH * 32767))


@pytest.mark.parametrize("name", KINDS)
def test_blocks_and_skipping_are_exact(encoded, name, monkeypatch):
    """Blocks are bounded and join to the whole; what is skipped is skipped to the sample."""
    whole, _ = read_audio(io.BytesIO(encoded[name]))
    monkeypatch.setattr(audio_file, "_BLOCK_SAMPLES", 1000)
    for num_skipped in (0, 1, 4567):
        with open_audio(io.BytesIO(encoded[name])) as reader:
            assert not reader.skips_fast
            reader.skip(num_skipped)
            blocks = list(reader.blocks())
        assert {block.shape[1] for block in blocks[:-1]} == {1000}
        assert torch.equal(torch.cat(blocks, dim=1), whole[:, num_skipped:])
    with pytest.raises(AudioError, match="before the"), open_audio(io.BytesIO(encoded[name])) as reader:
        reader.skip(10 * RATE)


def test_the_first_of_several_audio_streams_is_read():
    """The others, here half as loud, are not mixed in."""
    waveform, _ = read_audio(io.BytesIO(av_sound(SPEECH, "matroska", "pcm_s16le", num_audio=2)))
    assert np.array_equal(waveform[0].numpy() * 32768, np.rint(SPEECH * 32767))


def test_no_picture_is_decoded(encoded):
    """FFmpeg is given audio decoders only; a picture that cannot be decoded changes nothing."""
    import av

    container = bytearray(encoded["mov"])
    start = container.find(b"mdat") + 4
    with av.open(io.BytesIO(encoded["mov"])) as opened:
        pictures = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    assert pictures
    for position, size in pictures:
        assert position >= start
        container[position : position + size] = b"\xa5" * size
    assert torch.equal(read_audio(io.BytesIO(bytes(container)))[0], read_audio(io.BytesIO(encoded["mov"]))[0])


def test_a_video_without_sound_is_refused():
    """With the reason."""
    with pytest.raises(AudioError, match="no audio stream"):
        read_audio(io.BytesIO(av_sound(SPEECH, "mp4", "aac", num_audio=0, video=True)))


def test_an_aac_behind_an_id3_tag_is_read(encoded):
    """As players and podcast tools write it."""
    waveform, _ = read_audio(io.BytesIO(with_id3(encoded["aac"], 5000)))
    assert torch.equal(waveform, read_audio(io.BytesIO(encoded["aac"]))[0])


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["hls", "concat", "sdp"],
)
def test_playlists_are_not_audio(content):
    """FFmpeg would open what they name; here they never reach it."""
    with pytest.raises(AudioError, match="not audio"):
        read_audio(io.BytesIO(content))


def test_flac_is_left_to_libsndfile(monkeypatch):
    """FFmpeg ignores its checksums and would give wrong samples without a word."""
    flac = bytearray(sound(SPEECH, "FLAC", "PCM_16"))
    flac[len(flac) // 2] ^= 1
    monkeypatch.setattr(audio_file, "AvDecoder", None)
    with pytest.raises(AudioError, match="damaged"):
        read_audio(io.BytesIO(bytes(flac)))
    with pytest.raises(AudioError, match="ends after"):
        read_audio(io.BytesIO(flac_that_claims(sound(SPEECH, "FLAC", "PCM_16"), 2 * RATE)))


def test_without_pyav_the_error_says_what_to_install(encoded, monkeypatch):
    """Where the first bytes are those of such a container; a web page is not audio, with or without PyAV."""
    monkeypatch.setitem(sys.modules, "av", None)
    for content in encoded.values():
        with pytest.raises(AudioError, match=r"pip install 'quantone\[audio-extra\]'"):
            read_audio(io.BytesIO(content))
    with pytest.raises(AudioError, match="not audio"):
        read_audio(io.BytesIO(b"<html>" * 100))


def test_half_an_mp4_is_refused(tmp_path):
    """With its tables in front it would read as a shorter file; with its tables behind it does not read at all."""
    import av

    source, path = av_sound(SPEECH, "mp4", "aac"), tmp_path / "fast.mp4"
    with av.open(io.BytesIO(source)) as opened, av.open(path, "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(opened.streams.audio[0])
        for packet in opened.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    content = path.read_bytes()
    assert read_audio(path)[0].shape[1] >= RATE
    with pytest.raises(AudioError, match="damaged"):
        read_audio(io.BytesIO(content[: len(content) // 2]))
    with pytest.raises(AudioError, match="not audio, or damaged"):
        read_audio(io.BytesIO(source[: len(source) // 2]))


@pytest.mark.parametrize("table", [b"trun", b"stsz"])
def test_a_table_that_claims_too_much_is_refused_before_it_is_built(table):
    """In a fragment or in the header; the same file with honest tables is read."""
    options = {"movflags": "empty_moov+default_base_moof"} if table == b"trun" else {}
    content = av_sound(SPEECH, "mp4", "aac", options=options)
    assert read_audio(io.BytesIO(content))[0].shape[1] >= RATE
    count_at = content.find(table) + {b"trun": 8, b"stsz": 12}[table]
    with pytest.raises(AudioError, match="a table of 4000000000 samples"):
        read_audio(io.BytesIO(patched(content, count_at, (4_000_000_000).to_bytes(4, "big"))))


def test_a_file_that_changes_its_rate_is_refused(encoded):
    """Two recordings in one stream would be one of them at the wrong speed."""
    with pytest.raises(AudioError, match="changes from 24000 Hz in 1 channel"):
        read_audio(io.BytesIO(encoded["aac"] + av_sound(speech_like(1, 16000), "adts", "aac", rate=16000)))


def test_limits_and_checks_hold_here_too(encoded):
    """The most samples that are accepted, and no NaN."""
    with pytest.raises(AudioError, match="too large"):
        read_audio(io.BytesIO(encoded["webm"]), max_samples=1000)
    floats = bytearray(encoded["mka"])
    position = floats.find(np.float32(np.rint(SPEECH[12000] * 32767) / 32768).tobytes())
    floats[position : position + 4] = np.float32(np.nan).tobytes()
    with pytest.raises(AudioError, match="NaN"):
        read_audio(io.BytesIO(bytes(floats)))


@pytest.mark.parametrize("name", ["m4a", "webm", "aac"])
def test_a_lost_connection_is_not_the_end_of_the_file(encoded, name, monkeypatch):
    """A file object that fails raises its own error, in the middle and while opening."""

    class Losing(io.BytesIO):
        allowed = 1

        def read(self, size=-1):
            if size > 1000:
                self.allowed -= 1
                if self.allowed < 0:
                    raise ConnectionError("lost")
            return super().read(size)

    monkeypatch.setattr("tokenizer.av_audio._BUFFER_BYTES", 2048)
    for allowed in (0, 3):
        stream = Losing(encoded[name] * (1 if name == "m4a" else 3))
        stream.allowed = allowed
        with pytest.raises(ConnectionError, match="lost"):
            read_audio(stream)
