"""Sound as bytes while it is made: players get every sample and no more, and who listens sees where it breaks off."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import soundfile

from pipelines.decoding.decode_errors import StreamClosed
from pipelines.serving.audio_answer import AudioAnswer
from pipelines.serving.audio_writers import FORMATS, SoundShape, blocks_of, open_writer, pcm16
from pipelines.serving.service_errors import BrokenAnswer, RequestError
from tests.conftest import speech_like

LENGTHS = [1, 575, 576, 577, 5000, 70001]
SHAPES = [(24000, 1), (48000, 2), (16000, 1), (8000, 2)]


def sound(shape):
    """[C, S] of speech-like sound."""
    seconds = shape.num_samples / shape.sample_rate + 0.01
    rows = [speech_like(seconds, shape.sample_rate, seed) for seed in range(shape.channels)]
    return np.stack(rows)[:, : shape.num_samples]


def written(name, shape, waveform, step):
    """The pieces of the file, for blocks of `step` samples."""
    writer = open_writer(name, shape)
    blocks = (waveform[:, start : start + step] for start in range(0, shape.num_samples, step))
    pieces = [writer.write(piece) for block in blocks for piece in blocks_of(block)] + [writer.finish()]
    assert writer.num_bytes in (None, sum(map(len, pieces)))
    return pieces


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
@pytest.mark.parametrize("rate_and_channels", SHAPES, ids=str)
def test_players_get_exactly_the_samples_that_there_are(name, rate_and_channels):
    """Though the header was sent before the sound; also of formats whose encoders add sound of their own."""
    for num_samples in LENGTHS:
        shape = SoundShape(*rate_and_channels, num_samples)
        content = b"".join(written(name, shape, sound(shape), 1000))
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            assert (file.samplerate, file.channels) == rate_and_channels
            assert file.read(always_2d=True).shape == (num_samples, shape.channels)


@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_other_decoders_get_them_too(name):
    """FFmpeg reads the length of an MP3 from the tag in its first frame, as browsers do."""
    av = pytest.importorskip("av")
    for num_samples in (1000, 5000, 70001):
        shape = SoundShape(24000, 1, num_samples)
        content = b"".join(written(name, shape, sound(shape), 997))
        with av.open(io.BytesIO(content)) as container:
            duration_s = container.duration / 1e6
            assert sum(frame.samples for frame in container.decode(audio=0)) == num_samples
        assert abs(duration_s - num_samples / 24000) < 1e-3


@pytest.mark.parametrize("name", ["wav", "flac", "pcm"])
@pytest.mark.parametrize("step", [1, 999, 100_000])
def test_lossless_formats_keep_every_bit_of_the_pcm(name, step):
    """However the sound comes in blocks, the same file."""
    shape = SoundShape(24000, 2, 2000 if step == 1 else 70001)
    waveform = sound(shape) * 5  # some of it clipped
    content = b"".join(written(name, shape, waveform, step))
    assert content == b"".join(written(name, shape, waveform, shape.num_samples))
    if name == "pcm":
        assert content == pcm16(waveform).tobytes()
    else:
        read, _ = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
        np.testing.assert_array_equal(read, pcm16(waveform))


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_lossy_formats_sound_like_the_sound(name):
    """In time with it: the delay of the encoder is taken out."""
    shape = SoundShape(24000, 1, 48000)
    waveform = sound(shape)
    read, _ = soundfile.read(io.BytesIO(b"".join(written(name, shape, waveform, 4096))))
    error = read[2000:-2000] - waveform[0, 2000:-2000]
    assert 10 * np.log10((waveform**2).mean() / (error**2).mean()) > 10


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_leave_before_all_the_sound_is_there(name):
    """Every format, within the first two seconds."""
    shape = SoundShape(24000, 1, 10 * 24000)
    pieces = written(name, shape, sound(shape), 2400)
    assert sum(map(len, pieces[:20])) > 1000
    assert len(pieces[-1]) < sum(map(len, pieces)) / 4


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("opus", SoundShape(44100, 1, 9), "8, 12, 16, 24, 48 kHz"),
        ("mp3", SoundShape(96000, 1, 9), "kHz"),
        ("mp3", SoundShape(48000, 6, 9), "6 channel"),
        ("wav", SoundShape(48000, 2, 2**31), "4 GiB"),
    ],
)
def test_a_sound_that_a_format_cannot_hold_is_refused_before_it_is_made(name, shape, complaint):
    """With what the format takes."""
    with pytest.raises(RequestError, match=complaint):
        open_writer(name, shape)


async def later(blocks, error=None):
    """Blocks as an engine gives them; then it fails, if there is an error."""
    for block in blocks:
        await asyncio.sleep(0)
        yield block
    if error is not None:
        raise error


def answered(name, blocks, *, as_events=False, error=None, shape=None):
    """Messages that an answer sends, until its end or its error, and what it said that it sent."""
    shape = shape or SoundShape(24000, 1, sum(block.shape[-1] for block in blocks))
    messages, sent = [], []

    async def send(message):
        messages.append(message)

    answer = AudioAnswer(
        blocks[0],
        later(blocks[1:], error),
        open_writer(name, shape),
        shape,
        response_format=name,
        as_events=as_events,
        codec="tiny",
        on_sent=sent.append,
    )
    failure = None
    try:
        asyncio.run(answer({"type": "http"}, None, send))
    except BrokenAnswer as broken:
        failure = broken
    return messages, sent, failure


BLOCKS = [np.full((1, 500), 0.1 * n, np.float32) for n in range(5)]


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_ends_with_its_last_byte_and_counts_its_samples(name):
    """The last message says that there is no more."""
    messages, sent, failure = answered(name, BLOCKS)
    assert failure is None
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert sum(sent) == 2500


def test_an_answer_that_breaks_off_has_no_end():
    """So a cut shows: the promised length is not reached, and no last message is sent."""
    messages, _, failure = answered("wav", BLOCKS, error=StreamClosed("stopped"), shape=SoundShape(24000, 1, 9999))
    assert str(failure) == "stopped"
    assert messages[-1]["more_body"]
    assert sum(len(message.get("body", b"")) for message in messages) == 44 + 5000


def test_events_that_break_off_end_with_an_error():
    """Typed, as other errors are, and without the event that says that all is done."""
    messages, _, failure = answered("pcm", BLOCKS, as_events=True, error=StreamClosed("stopped"))
    assert failure is None
    lines = b"".join(message.get("body", b"") for message in messages).decode().split("\n\n")[:-1]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 5 + ["error"]
    assert events[-1]["error"] == {"type": "unavailable", "message": "stopped"}
    content = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert content == pcm16(np.concatenate(BLOCKS, axis=1)).tobytes()
