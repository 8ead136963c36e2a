"""POST /v1/audio/encode: the codes are those of the codec, whatever the sound came in and the codes go out as."""

import gzip
import io
import json

import msgpack
import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.serving.encode_steps import encode_steps, joined_pieces
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.pipelines.service_calls import (
    DECODE,
    ENCODE,
    HALF_STEP,
    error_of,
    service_of,
    sound_of,
    wav_bytes,
)
from tokenizer import read_audio

KINDS = ["seanet", "mirrored", "patch", "dac", "segmented"]


@pytest.fixture(scope="module")
def codec():
    """As services compute: steps and batches move no bit."""
    return make_codec(tiny_spec("seanet")).with_precision("exact")


@pytest.fixture(scope="module")
def client(codec):
    with service_of(codec, max_audio_s=3, max_body_bytes=2**20) as running:
        yield running


def codes_of(codec, content, bandwidth_kbps=None):
    """[K, T] as the codec gives them for the file."""
    waveform, rate = read_audio(io.BytesIO(content))
    return codec.encode(waveform, sample_rate=rate, bandwidth_kbps=bandwidth_kbps).codes[0].numpy()


def posted(client, content, content_type="audio/wav", query=""):
    return client.post(ENCODE + query, content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 7, 8, 12001])
def test_codes_in_steps_are_those_of_the_whole(kind, num_samples):
    """However short the steps between which streams are served."""
    codec = make_codec(tiny_spec(kind)).with_precision("exact")
    waveform = torch.from_numpy(speech_like(2.0)[:num_samples]).expand(codec.spec.channels, -1)
    whole = codec.encode(waveform, bandwidth_kbps=codec.spec.level_kbps * 3)
    pieces = joined_pieces(list(encode_steps(codec, waveform, 3)))
    np.testing.assert_array_equal(pieces.codes, whole.codes[0].numpy())
    if whole.scales is not None:
        np.testing.assert_allclose(pieces.scales, whole.scales[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("sample_rate", [8000, 24000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_any_channels_are_encoded(client, codec, sample_rate, channels):
    """As `codec.encode` does with the file's sample rate."""
    samples = np.stack([speech_like(0.4, sample_rate, seed) for seed in range(channels)], axis=1)
    content = wav_bytes(samples, sample_rate)
    answer = posted(client, content).json()
    np.testing.assert_array_equal(answer["codes"], codes_of(codec, content))
    assert answer["num_samples"] == -(-len(samples) * 24000 // sample_rate)
    assert answer["codec_sha256"] == codec.sha256
    assert (answer["codec"], answer["sample_rate"], answer["bandwidth_kbps"]) == ("tiny_seanet", 24000, 48.0)


@pytest.mark.parametrize(
    ("file_format", "subtype", "content_type"),
    [
        ("FLAC", "PCM_16", "audio/flac"),
        ("OGG", "OPUS", "audio/ogg"),
        ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
        ("AIFF", "PCM_24", "application/octet-stream"),
        ("FLAC", "PCM_16", "audio/wav"),
    ],
)
def test_the_format_is_found_in_the_file(client, codec, file_format, subtype, content_type):
    """And not believed from the header of the request."""
    content = wav_bytes(speech_like(0.3), 24000, subtype=subtype, file_format=file_format)
    answer = posted(client, content, content_type)
    np.testing.assert_array_equal(answer.json()["codes"], codes_of(codec, content))


def test_a_form_and_a_deflated_body_hold_the_same_file(client, codec):
    """As browsers, curl and HTTP libraries send files; the name of the file plays no part."""
    content = wav_bytes(speech_like(0.2), 24000)
    want = codes_of(codec, content)
    form = client.post(ENCODE, files={"note": ("n", b"x"), "file": ("../../etc/passwd", content, "audio/wav")})
    headers = {"Content-Type": "audio/wav", "Content-Encoding": "gzip"}
    deflated = client.post(ENCODE, content=gzip.compress(content), headers=headers)
    for answer in (form, deflated):
        np.testing.assert_array_equal(answer.json()["codes"], want)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_bandwidth_of_the_codec(client, codec, levels):
    """As many levels as make it up."""
    content = wav_bytes(speech_like(0.2), 24000)
    answer = posted(client, content, query=f"?bandwidth_kbps={levels * codec.spec.level_kbps}").json()
    np.testing.assert_array_equal(answer["codes"], codes_of(codec, content, levels * codec.spec.level_kbps))
    assert answer["bandwidth_kbps"] == levels * codec.spec.level_kbps


def test_every_format_of_answers_can_be_sent_back(client, codec):
    """What encode gives in a format, decode takes in it: the sound of the codes, to the sample."""
    content = wav_bytes(speech_like(0.21, 16000), 16000)
    want = codec.decode(codec.encode(*read_audio(io.BytesIO(content))[:1], sample_rate=16000))[0]
    for name in ("json", "msgpack", "npy", "arrow"):
        answer = posted(client, content, query=f"?format={name}")
        body, query = answer.content, f"?num_samples={answer.headers['x-num-samples']}"
        if name in ("json", "msgpack"):
            fields = json.loads(body) if name == "json" else msgpack.unpackb(body)
            keep = {key: fields[key] for key in ("codec", "codes", "num_samples")}
            body, query = (json.dumps(keep).encode() if name == "json" else msgpack.packb(keep)), ""
        headers = {"Content-Type": answer.headers["content-type"]}
        sound = sound_of(client.post(DECODE + query, content=body, headers=headers))
        np.testing.assert_allclose(sound, want.clamp(-1, 1).T.numpy(), atol=HALF_STEP)


def test_binary_answers_say_what_else_there_is(client, codec):
    """npy in headers, Arrow in columns beside those of the codes."""
    content = wav_bytes(speech_like(0.2), 24000)
    npy, arrow = (posted(client, content, query=f"?format={name}") for name in ("npy", "arrow"))
    assert np.load(io.BytesIO(npy.content)).dtype == np.uint16
    assert (npy.headers["x-codec"], npy.headers["x-sample-rate"]) == ("tiny_seanet", "24000")
    assert (npy.headers["x-codec-sha256"], npy.headers["x-bandwidth-kbps"]) == (codec.sha256, "48")
    row = pa.ipc.open_stream(arrow.content).read_all().to_pylist()[0]
    assert row.keys() >= {
        "codec",
        "codec_sha256",
        "sample_rate",
        "num_samples",
        "bandwidth_kbps",
        "codes_00",
        "codes_03",
    }


def test_scales_come_with_the_codes_of_codecs_that_have_them():
    """And go back with them, to the sound of the codec."""
    codec = make_codec(tiny_spec("segmented"))
    content = wav_bytes(np.stack([speech_like(0.05), speech_like(0.05, seed=1)], axis=1), 24000)
    waveform, _ = read_audio(io.BytesIO(content))
    want = codec.decode(codec.encode(waveform))[0].clamp(-1, 1).T.numpy()
    with service_of(codec) as client:
        answer = posted(client, content).json()
        keep = {key: answer[key] for key in ("codes", "num_samples", "scales")}
        np.testing.assert_allclose(sound_of(client.post(DECODE, json=keep)), want, atol=2 * HALF_STEP)
        assert posted(client, content, query="?format=npy").headers["x-scales"].count(",") == len(answer["scales"]) - 1


WAV = wav_bytes(speech_like(0.1), 24000)
BAD = {
    "nothing": ("audio/wav", b"", (400, "bad_request")),
    "HTML": ("audio/wav", b"<html>" * 100, (422, "invalid_audio")),
    "a header only": ("audio/wav", WAV[:44], (422, "invalid_audio")),
    "half a file": ("audio/wav", WAV[:2000], (422, "invalid_audio")),
    "NaN": ("audio/wav", wav_bytes(np.full(99, np.nan, np.float32), 24000, subtype="FLOAT"), (422, "invalid_audio")),
    "sound that is too long": (
        "audio/flac",
        wav_bytes(np.zeros(24001 * 3, np.float32), 24000, file_format="FLAC"),
        (413, "too_large"),
    ),
    "silence at 655 kHz in 8 channels": (
        "audio/flac",
        wav_bytes(np.zeros((655350, 8), np.float32), 655350, file_format="FLAC"),
        (422, "invalid_audio"),
    ),
    "JSON": ("application/json", b"{}", (415, "unsupported_media_type")),
    "a playlist": ("audio/x-mpegurl", b"#EXTM3U\nfile:///etc/passwd\n", (422, "invalid_audio")),
    "a form without boundary": ("multipart/form-data", b"--x--", (400, "bad_request")),
    "a form without end": ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\nabc", (400, "bad_request")),
    "a form without the file": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc\r\n--x--',
        (400, "bad_request"),
    ),
    "a form of many parts": (
        "multipart/form-data; boundary=x",
        b"\r\n--x\r\n\r\n" * 999 + b"--x--",
        (400, "bad_request"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_sound_gets_a_typed_error(client, codec, case):
    """And the next recording is encoded right."""
    content_type, body, expected = BAD[case]
    assert error_of(posted(client, body, content_type)) == expected
    np.testing.assert_array_equal(posted(client, WAV).json()["codes"], codes_of(codec, WAV))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?codec=other", (404, "unknown_codec")),
        ("?bandwidth_kbps=5", (422, "invalid_argument")),
        ("?bandwidth_kbps=nan", (422, "invalid_argument")),
        ("?format=xml", (422, "invalid_argument")),
        ("?path=/etc/passwd", (422, "invalid_argument")),
    ],
)
def test_options_that_do_not_exist_are_refused(client, query, expected):
    """By name, or by value."""
    assert error_of(posted(client, WAV, query=query)) == expected
