"""Files of any length: the codes and samples of the whole, block by block, in memory that does not grow."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, speech_like, tiny_spec
from tokenizer import (
    AudioError,
    CodesError,
    Encoded,
    audio_file,
    decode_file,
    encode_file,
    read_audio,
    sinc_filter,
    write_audio,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Short audio in many blocks, which end at other samples where it is read and where it is resampled."""
    monkeypatch.setattr(audio_file, "_BLOCK_SAMPLES", 5000)
    monkeypatch.setattr(sinc_filter, "_BLOCK_SAMPLES", 3000)


@pytest.fixture(scope="module")
def codec():
    """The cheapest of the tiny codecs."""
    return make_codec(tiny_spec("patch"))


def write_speech(path, sample_rate=24000, channels=1, num_samples=23999):
    """A file whose channels differ in loudness."""
    mono = torch.from_numpy(speech_like(num_samples / sample_rate + 0.1, sample_rate)[:num_samples])
    write_audio(path, torch.stack([mono * 0.8**channel for channel in range(channels)]), sample_rate)


@pytest.mark.parametrize(
    ("name", "sample_rate", "channels"), [("a.wav", 24000, 1), ("a.flac", 16000, 2), ("a.opus", 48000, 1)]
)
def test_a_file_has_the_codes_of_its_waveform(tiny_codec, tmp_path, name, sample_rate, channels):
    """Any format, rate and channels: what reading and encoding it at once would give, to the last bit."""
    write_speech(tmp_path / name, sample_rate, channels)
    waveform, rate = read_audio(tmp_path / name)
    whole, in_blocks = tiny_codec.encode(waveform, sample_rate=rate), encode_file(tiny_codec, tmp_path / name)
    assert torch.equal(in_blocks.codes, whole.codes)
    assert (in_blocks.num_samples, in_blocks.source_sample_rate) == (whole.num_samples, sample_rate)
    assert in_blocks.source_num_samples == whole.source_num_samples == waveform.shape[-1]


@pytest.mark.parametrize("sample_rate", [None, 24000, 16000, 44100, 44101])
def test_a_decoded_file_is_the_decoded_waveform(tiny_codec, tmp_path, waveform, sample_rate):
    """What decoding and writing it at once would give, at any sample rate."""
    encoded = tiny_codec.encode(waveform)
    decode_file(tiny_codec, encoded, tmp_path / "blocks.wav", sample_rate=sample_rate)
    write_audio(tmp_path / "whole.wav", tiny_codec.decode(encoded, sample_rate=sample_rate)[0], sample_rate or 24000)
    assert (tmp_path / "blocks.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_codecs_with_segments_take_files_too(tmp_path):
    """Stereo and loudness included, there and back."""
    codec = make_codec(tiny_spec("segmented"))
    write_speech(tmp_path / "in.wav", 44100, channels=3, num_samples=5003)  # the last block: three samples
    waveform, rate = read_audio(tmp_path / "in.wav")
    whole, in_blocks = codec.encode(waveform, sample_rate=rate), encode_file(codec, tmp_path / "in.wav")
    assert torch.equal(in_blocks.codes, whole.codes)
    assert torch.equal(in_blocks.scales, whole.scales)
    decode_file(codec, in_blocks, tmp_path / "out.wav", sample_rate=rate)
    write_audio(tmp_path / "whole.wav", codec.decode(whole, sample_rate=rate)[0], rate)
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_a_bandwidth_goes_through(codec, tmp_path, waveform):
    """Half of the levels when encoding, or when decoding codes that have all."""
    write_audio(tmp_path / "in.wav", waveform, 24000)
    kbps = codec.spec.level_kbps * 2
    half, full = encode_file(codec, tmp_path / "in.wav", bandwidth_kbps=kbps), encode_file(codec, tmp_path / "in.wav")
    assert torch.equal(half.codes, full.codes[:, :2])
    decode_file(codec, half, tmp_path / "half.wav")
    decode_file(codec, full, tmp_path / "full.wav", bandwidth_kbps=kbps)
    assert (tmp_path / "half.wav").read_bytes() == (tmp_path / "full.wav").read_bytes()


@given(num_samples=st.integers(1, 3000), rate_in=st.integers(4000, 50000), rate_out=st.integers(4000, 50000))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lengths_survive_any_sample_rate(codec, tmp_path, num_samples, rate_in, rate_out):
    """Back at the rate it came with, a file has its length to the sample; at another one, the same duration.

    In blocks and at once: ceil(num_samples * rate_out / rate_in).
    """
    waveform = 0.1 * torch.randn(1, num_samples)
    write_audio(tmp_path / "in.wav", waveform, rate_in)
    encoded = encode_file(codec, tmp_path / "in.wav")
    assert codec.encode(waveform, sample_rate=rate_in).num_samples == encoded.num_samples
    for rate in (rate_in, rate_out):
        expected = -(-num_samples * rate // rate_in)
        assert codec.decode(encoded, sample_rate=rate).shape == (1, 1, expected)
        decode_file(codec, encoded, tmp_path / "out.wav", sample_rate=rate)
        assert (soundfile.info(tmp_path / "out.wav").frames, soundfile.info(tmp_path / "out.wav").samplerate) == (
            expected,
            rate,
        )


def test_what_is_wrong_with_a_file_is_seen_at_its_end(codec, tmp_path):
    """A cut FLAC and a lost connection give no codes, although most blocks were fine."""

    class Losing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 20000:
                raise ConnectionError("lost")
            return super().read(size)

    write_speech(tmp_path / "a.flac")
    content = (tmp_path / "a.flac").read_bytes()
    with pytest.raises(AudioError, match="damaged"):
        encode_file(codec, io.BytesIO(content[:-1000]))
    with pytest.raises(ConnectionError, match="lost"):
        encode_file(codec, Losing(content))
    with pytest.raises(AudioError, match="no such file"):
        encode_file(codec, tmp_path / "b.flac")


def test_what_cannot_be_decoded_leaves_no_file(codec, waveform, tmp_path):
    """Wrong codes, codes of several waveforms, a rate that the format or nobody has."""
    encoded = codec.encode(waveform)
    two = codec.encode(waveform.repeat(2, 1, 1))
    wrong = Encoded(encoded.codes + 16, None, encoded.num_samples)
    for codes, options, error, reason in (
        (two, {}, CodesError, "codes of 2"),
        (wrong, {}, CodesError, "allowed is 0 to 15"),
        (encoded, {"sample_rate": 0}, AudioError, "positive integer"),
        (encoded, {"sample_rate": 44100}, AudioError, "8, 12, 16, 24, 48 kHz"),
        (encoded, {"bandwidth_kbps": 1.0}, ValueError, "kbps"),
    ):
        with pytest.raises(error, match=reason):
            decode_file(codec, codes, tmp_path / "a.opus", **options)
    assert list(tmp_path.iterdir()) == []


AN_HOUR = """
import dataclasses, pathlib, sys, torch
from tests.conftest import make_codec, tiny_spec
from tokenizer import decode_file, encode_file, read_audio, write_audio_blocks

folder = pathlib.Path(sys.argv[1])
spec = tiny_spec("patch")
network = dataclasses.replace(spec.network, patch_width=480, encoder_blocks=1, decoder_blocks=1)
codec = make_codec(dataclasses.replace(spec, hop_length=480, network=network))
minute = 0.1 * torch.randn(1, 60 * 16000)

def peak_mb():  # of this process alone: ru_maxrss would start at that of the parent
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def there_and_back(minutes):
    write_audio_blocks(folder / "in.flac", (minute for _ in range(minutes)), 16000)
    encoded = encode_file(codec, folder / "in.flac")
    decode_file(codec, encoded, folder / "out.flac", sample_rate=16000)
    return encoded.codes.numel() * 8 / 2**20

there_and_back(2)
print(peak_mb())
print(there_and_back(60))
print(peak_mb())
waveform, _ = read_audio(folder / "out.flac")
print(waveform.shape[-1])
print(peak_mb())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from Linux")
def test_an_hour_takes_no_more_memory_than_two_minutes(tmp_path):
    """Written, encoded, decoded and resampled twice: only the codes grow. Reading the hour whole takes its size."""
    done = subprocess.run(
        [sys.executable, "-c", AN_HOUR, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    after_minutes, codes, after_hour, num_samples, when_whole = map(float, done.stdout.split())
    assert num_samples == 3600 * 16000
    assert after_hour - after_minutes < 20 + 2 * codes
    assert when_whole - after_hour > 150
