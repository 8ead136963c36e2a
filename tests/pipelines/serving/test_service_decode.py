"""POST /v1/audio/decode: the sound is that of the codec, whatever codes and answer are written in."""

import base64
import gzip
import io
import json
import time

import msgpack
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import soundfile
import torch

from pipelines.decoding.engine_settings import EngineSettings
from pipelines.decoding.stream_scheduler import UTTERANCES_AT_ONCE
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.service_calls import (
    DECODE,
    HALF_STEP,
    assert_serves_right,
    decoded,
    error_of,
    held_engine,
    service_of,
    some_codes,
    sound_of,
)


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("seanet"))


@pytest.fixture(scope="module")
def client(codec):
    with service_of(codec, max_audio_s=0.5, max_body_bytes=2**20) as running:
        yield running


def npy(codes, **kwargs):
    stream = io.BytesIO()
    np.save(stream, codes, **kwargs)
    return stream.getvalue()


def row_of(codes, **columns):
    """A row of a token dataset."""
    levels = {f"codes_{level:02d}": pa.array([row], pa.list_(pa.uint16())) for level, row in enumerate(codes.tolist())}
    return pa.record_batch({"id": pa.array(["one"]), **levels, **columns})


def arrow_stream(batch):
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()


def polars_file(codes):
    stream = io.BytesIO()
    pl.DataFrame({f"codes_{level:02d}": [row] for level, row in enumerate(codes.tolist())}).write_ipc(stream)
    return stream.getvalue()


BODIES = {
    "json": ("application/json", lambda codes: json.dumps({"codes": codes.tolist()}).encode()),
    "indented json": (
        "application/json; charset=utf-8",
        lambda codes: json.dumps({"codes": codes.tolist()}, indent=8).encode(),
    ),
    "msgpack lists": ("application/msgpack", lambda codes: msgpack.packb({"codes": codes.tolist()})),
    "msgpack bytes": (
        "application/x-msgpack",
        lambda codes: msgpack.packb({"codes": [row.astype("<u2").tobytes() for row in codes]}),
    ),
    "npy uint16": ("application/x-npy", lambda codes: npy(codes.astype(np.uint16))),
    "npy big-endian": ("application/x-npy", lambda codes: npy(codes.astype(">i4"))),
    "npy in columns": ("application/x-npy", lambda codes: npy(np.asfortranarray(codes))),
    "arrow stream": ("application/vnd.apache.arrow.stream", lambda codes: arrow_stream(row_of(codes))),
    "arrow file of polars": ("application/vnd.apache.arrow.file", polars_file),
}


@pytest.mark.parametrize("body", BODIES)
def test_codes_may_come_in_any_of_the_formats(client, codec, body):
    """Whatever they are written in, they are the same codes and get the same sound."""
    content_type, write = BODIES[body]
    codes = some_codes(codec, seed=len(body))
    answer = client.post(DECODE, content=write(codes), headers={"Content-Type": content_type})
    np.testing.assert_allclose(sound_of(answer), decoded(codec, codes), atol=HALF_STEP)


def test_a_body_may_be_deflated(client, codec):
    """gzip is read, in one member or several."""
    codes = some_codes(codec)
    content = npy(codes)
    members = gzip.compress(content[:100]) + gzip.compress(content[100:])
    headers = {"Content-Type": "application/x-npy", "Content-Encoding": "gzip"}
    np.testing.assert_allclose(
        sound_of(client.post(DECODE, content=members, headers=headers)), decoded(codec, codes), atol=HALF_STEP
    )


@pytest.mark.parametrize("kind", ["seanet", "mirrored", "patch", "dac"])
def test_every_family_is_served(kind):
    """Also where a stream holds back its start, or looks ahead."""
    codec = make_codec(tiny_spec(kind))
    with service_of(codec) as client:
        for frames in (1, 2, 33, 200):
            codes = some_codes(codec, frames)
            sound = sound_of(client.post(DECODE, json={"codes": codes.tolist()}))
            np.testing.assert_allclose(sound, decoded(codec, codes), atol=HALF_STEP)


@pytest.mark.parametrize("num_samples", [393, 399, 400])
def test_the_sound_is_as_long_as_was_asked(client, codec, num_samples):
    """To the sample, within the last frame; the header of the answer says so before the sound comes."""
    codes = some_codes(codec)
    answer = client.post(DECODE, json={"codes": codes.tolist(), "num_samples": num_samples})
    np.testing.assert_allclose(sound_of(answer), decoded(codec, codes, num_samples), atol=HALF_STEP)
    assert answer.headers["x-num-samples"] == str(num_samples)
    assert answer.headers["content-length"] == str(44 + 2 * num_samples)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_any_bandwidth_of_the_codec_per_request(client, codec, levels):
    """Fewer levels are sent, or left out at the service: the same sound."""
    codes = some_codes(codec)
    want = decoded(codec, codes[:levels])
    few = client.post(DECODE, json={"codes": codes[:levels].tolist()})
    cut = client.post(DECODE, json={"codes": codes.tolist(), "bandwidth_kbps": levels * codec.spec.level_kbps})
    for answer in (few, cut):
        np.testing.assert_allclose(sound_of(answer), want, atol=HALF_STEP)


@pytest.mark.parametrize(
    ("name", "media_type", "tolerance"),
    [
        ("wav", "audio/wav", HALF_STEP),
        ("flac", "audio/flac", HALF_STEP),
        ("mp3", "audio/mpeg", 1),
        ("opus", "audio/ogg", 1),
    ],
)
def test_answers_in_every_format(client, codec, name, media_type, tolerance):
    """Each says its type, and holds all samples and no more."""
    codes = some_codes(codec, 900)
    answer = client.post(DECODE, json={"codes": codes.tolist(), "response_format": name})
    sound = sound_of(answer)
    assert answer.headers["content-type"] == media_type
    assert sound.shape == (7200, 1)
    np.testing.assert_allclose(sound, decoded(codec, codes), atol=tolerance)


def test_pcm_is_int16_without_a_header(client, codec):
    """Little-endian, as long as the sound."""
    codes = some_codes(codec)
    answer = client.post(
        f"{DECODE}?response_format=pcm", content=npy(codes), headers={"Content-Type": "application/x-npy"}
    )
    assert answer.headers["content-type"] == "audio/pcm"
    sound = np.frombuffer(answer.content, "<i2").reshape(-1, 1) / 32768
    np.testing.assert_allclose(sound, decoded(codec, codes), atol=HALF_STEP)


def test_events_carry_the_file_in_pieces(client, codec):
    """As of OpenAI's speech endpoint: deltas that make up the file, then that it is done."""
    codes = some_codes(codec, 300)
    answer = client.post(DECODE, json={"codes": codes.tolist(), "stream_format": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done == {"type": "speech.audio.done", "num_samples": 2400}
    content = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    sound, _ = soundfile.read(io.BytesIO(content), always_2d=True)
    np.testing.assert_allclose(sound, decoded(codec, codes), atol=HALF_STEP)


def test_options_of_the_body_count_more_than_those_of_the_query(client, codec):
    """Both are read."""
    answer = client.post(
        f"{DECODE}?response_format=flac&num_samples=397", json={"codes": some_codes(codec).tolist(), "num_samples": 393}
    )
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["x-num-samples"] == "393"


def test_scales_make_the_sound_of_codecs_that_have_them():
    """In JSON and in a row of Arrow; num_samples comes with the row, too."""
    codec = make_codec(tiny_spec("segmented"))
    encoded = codec.encode(0.3 * torch.randn(2, 500, generator=torch.Generator().manual_seed(0)))
    want = codec.decode(encoded)[0].clamp(-1, 1).T.numpy()
    codes, scales = encoded.codes[0].numpy(), encoded.scales[0].tolist()
    row = row_of(codes, num_samples=pa.array([500]), scales=pa.array([scales], pa.list_(pa.float32())))
    with service_of(codec) as client:
        by_json = client.post(DECODE, json={"codes": codes.tolist(), "num_samples": 500, "scales": scales})
        headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
        by_arrow = client.post(DECODE, content=arrow_stream(row), headers=headers)
        without = client.post(DECODE, json={"codes": codes.tolist(), "num_samples": 500})
    for answer in (by_json, by_arrow):
        np.testing.assert_allclose(sound_of(answer), want, atol=HALF_STEP)
    assert error_of(without) == (422, "invalid_codes")


def test_several_codecs_are_chosen_by_name(codec):
    """Each has its own sound; without a name nobody knows which is meant."""
    other = make_codec(tiny_spec("patch"))
    with service_of(codec, other) as client:
        assert_serves_right(client, codec)
        assert_serves_right(client, other)
        assert error_of(client.post(DECODE, json={"codes": [[1]]})) == (422, "invalid_argument")


def test_a_full_queue_is_said_at_once(codec):
    """429 with Retry-After, while the service is busy with others; when it is not, the next request is right."""
    with (
        service_of(codec, engine=EngineSettings(max_queued=0)) as client,
        held_engine(client) as (engine, release),
    ):
        others = [client.portal.start_task_soon(engine.decode, some_codes(codec)) for _ in range(UTTERANCES_AT_ONCE)]
        client.get("/healthz")  # the loop has taken it in when it answers
        begin = time.monotonic()
        answer = client.post(DECODE, json={"codes": [[1]]})
        took_s = time.monotonic() - begin
        release.set()
        assert error_of(answer) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert took_s < 0.1
        for other in others:
            other.result(10)
        assert_serves_right(client, codec)


def test_a_deadline_that_passes_is_an_error_of_its_own(codec):
    """504, and what was asked is never computed."""
    with service_of(codec) as client, held_engine(client) as (_, release):
        answer = client.post(DECODE, json={"codes": [[1]], "deadline_s": 0.05})
        release.set()
        assert error_of(answer) == (504, "deadline_exceeded")
        assert_serves_right(client, codec)
