"""Files are written whole or not at all, in blocks as in one piece."""

import io

import pytest
import soundfile
import torch

from tokenizer import AudioError, audio_writer, read_audio, write_audio, write_audio_blocks

RATE = 24000


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_lossless_formats_give_back_every_sample(tmp_path, extension):
    """What has 16 bits comes back exactly, also at full scale and in two channels."""
    pcm = torch.tensor([[-32768, -1, 0, 1, 32767], [5, -5, 300, -32767, 32766]])
    write_audio(tmp_path / f"a.{extension}", pcm / 32768, 44100)
    waveform, rate = read_audio(tmp_path / f"a.{extension}")
    assert rate == 44100
    assert torch.equal(waveform * 32768, pcm.float())


def test_samples_beyond_full_scale_are_clipped_when_written(tmp_path):
    """Clipped, not wrapped around."""
    write_audio(tmp_path / "loud.wav", torch.tensor([[2.0, -2.0]]), RATE)
    assert read_audio(tmp_path / "loud.wav")[0].tolist() == [[32767 / 32768, -1.0]]


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


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("block", [1000, 23999])
def test_blocks_are_written_as_the_whole_is(tmp_path, waveform, extension, block):
    """However a waveform is cut, the file holds the same sound to the sample; empty blocks add nothing."""
    write_audio(tmp_path / f"whole.{extension}", waveform, RATE)
    blocks = (waveform[:, start : start + block] for start in range(-block, 24000, block))  # the first one is empty
    write_audio_blocks(tmp_path / f"blocks.{extension}", blocks, RATE)
    whole, in_blocks = (read_audio(tmp_path / f"{name}.{extension}")[0] for name in ("whole", "blocks"))
    assert torch.equal(in_blocks, whole)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([], "no samples"),
        ([torch.zeros(2, 0)] * 3, "no samples"),
        ([torch.zeros(1, 10), torch.zeros(2, 10)], "1 and of 2 channels"),
        ([torch.zeros(1, 10), torch.zeros(10)], r"\[channels, samples\]"),
        ([torch.zeros(1, 10), torch.tensor([[torch.inf]])], "infinite"),
    ],
    ids=["none", "empty", "channels", "flat", "infinite"],
)
def test_bad_blocks_leave_nothing(tmp_path, blocks, reason):
    """Also after good ones."""
    with pytest.raises(AudioError, match=reason):
        write_audio_blocks(tmp_path / "a.wav", blocks, RATE)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_blocks_are_made_passes_through(tmp_path):
    """And leaves nothing, although blocks were written."""

    def failing():
        yield torch.zeros(1, 100_000)
        raise ValueError("no more codes")

    with pytest.raises(ValueError, match="no more codes"):
        write_audio_blocks(tmp_path / "a.flac", failing(), RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3"])
def test_a_full_disk_is_not_the_end_of_the_file(tmp_path, waveform, extension, monkeypatch):
    """The failure of the disk is raised as it is, at once and at the end, and leaves nothing."""

    class Full(io.BytesIO):
        def write(self, content):
            if self.tell() + len(content) > self.space:
                raise OSError(28, "No space left on device")
            return super().write(content)

    monkeypatch.setattr("pathlib.Path.open", lambda *_: Full())
    for space in (0, 3000):
        Full.space = space
        with pytest.raises(OSError, match="No space left"):
            write_audio(tmp_path / f"a.{extension}", waveform, RATE)
    assert list(tmp_path.iterdir()) == []


def test_a_wav_beyond_4_gib_gets_the_header_it_needs_or_is_refused(tmp_path, waveform, monkeypatch):
    """RF64 where the length is known in advance; otherwise an error, never a header that is wrong."""
    monkeypatch.setattr(audio_writer, "_MAX_WAV_BYTES", 40_000)
    write_audio(tmp_path / "long.wav", waveform, RATE)
    write_audio(tmp_path / "short.wav", waveform[:, :20_000], RATE)
    assert [soundfile.info(tmp_path / f"{name}.wav").format for name in ("long", "short")] == ["RF64", "WAV"]
    assert read_audio(tmp_path / "long.wav")[0].shape == waveform.shape
    with pytest.raises(AudioError, match=r"beyond 4 GiB .* a \.flac does not"):
        write_audio_blocks(tmp_path / "stream.wav", waveform.split(1000, dim=1), RATE)
    assert not (tmp_path / "stream.wav").exists()
    write_audio_blocks(tmp_path / "stream.flac", waveform.split(1000, dim=1), RATE)
