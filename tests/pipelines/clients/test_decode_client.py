"""The client over HTTP: right answers, typed errors, and attempts that are patient, bounded and never harmful."""

import asyncio
import io
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.clients.client_errors import RequestRefused, ServiceUnreachable, Unauthorized
from pipelines.clients.decode_client import AsyncDecodeClient, DecodeClient
from pipelines.clients.retry_policy import RetryPolicy
from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.decoding.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError
from pipelines.serving.service import create_app
from pipelines.serving.service_settings import ServiceSettings
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.pipelines.running_service import running_service
from tests.pipelines.wire_streams import offline, some_codes
from tokenizer import AudioError, CodesError, Encoded

CODES = some_codes(50)


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


@pytest.fixture(scope="module")
def client(codec):
    """Of the whole service, behind a token."""
    app = create_app({"tiny": DecodeEngine(codec)}, ServiceSettings(token="sesame"))  # noqa: S106 - made up
    with running_service(app, lifespan="on") as url, DecodeClient(url, "sesame") as client:
        yield client


def test_codes_become_a_waveform(client, codec):
    """As decoding offline gives it, rounded to 16 bits; of any integer type, length and number of levels."""
    for codes in (CODES, CODES.astype(np.int64), np.asfortranarray(CODES[:2]), CODES[:1, :1]):
        waveform = client.decode(codes)
        assert (waveform.dtype, waveform.shape) == (np.float32, (1, 8 * codes.shape[1]))
        np.testing.assert_allclose(waveform, np.clip(offline(codec, codes), -1, 1), atol=0.51 / 32768 + 1e-5)


def test_options_of_decoding(client, codec):
    """An exact length, fewer levels, the codec's name."""
    assert client.decode(CODES, num_samples=395, codec="tiny").shape == (1, 395)
    two_levels = client.decode(CODES, bandwidth_kbps=2 * codec.spec.level_kbps)
    np.testing.assert_allclose(two_levels, np.clip(offline(codec, CODES[:2]), -1, 1), atol=0.51 / 32768 + 1e-5)


def test_scales_travel_with_codes():
    """Codecs that store a loudness of each segment get it back."""
    segmented = make_codec(tiny_spec("segmented"))
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 16, (4, 19)), np.array([0.25])
    with (
        running_service(create_app({"48k": DecodeEngine(segmented)}), lifespan="on") as url,
        DecodeClient(url) as client,
    ):
        waveform = client.decode(codes, scales=scales, num_samples=150)
    import torch

    encoded = Encoded(torch.from_numpy(codes)[None], torch.tensor([[0.25]]), 150)
    np.testing.assert_allclose(waveform, np.clip(segmented.decode(encoded)[0], -1, 1), atol=0.51 / 32768 + 1e-5)


def test_an_audio_file_of_codes(client, codec):
    """Any format of the service, as bytes to store."""
    samples, rate = soundfile.read(io.BytesIO(client.decode_file(CODES, "flac")), dtype="float32")
    assert rate == 24000
    np.testing.assert_allclose(samples, np.clip(offline(codec, CODES)[0], -1, 1), atol=0.51 / 32768 + 1e-5)


def test_a_recording_becomes_codes_and_back(client, codec, tmp_path):
    """From a path or from bytes; what comes back is all that decoding needs."""
    path = tmp_path / "speech.wav"
    soundfile.write(path, speech_like(0.1), 24000, subtype="FLOAT")
    encoded = client.encode(path)
    assert encoded.codes.shape == (4, 300)
    assert (encoded.num_samples, encoded.sample_rate, encoded.codec) == (2400, 24000, "tiny")
    assert (encoded.codec_sha256, encoded.scales) == (codec.sha256, None)
    again = client.encode(path.read_bytes(), bandwidth_kbps=2 * codec.spec.level_kbps)
    np.testing.assert_array_equal(again.codes, encoded.codes[:2])
    assert client.decode(encoded.codes, num_samples=encoded.num_samples).shape == (1, 2400)


def test_cards_of_codecs(client, codec):
    """What a caller has to know of each."""
    (card,) = client.codecs()
    assert (card["name"], card["sha256"], card["hop_length"]) == ("tiny", codec.sha256, 8)


def test_streams_show_the_token_too(client, codec):
    """The same client, the same service."""
    with client.stream() as stream:
        stream.push(CODES)
        stream.finish()
        sound = np.concatenate(list(stream), axis=1)
    np.testing.assert_allclose(sound, offline(codec, CODES), atol=1e-5)


def test_errors_are_those_of_the_library(client):
    """What the service says in types of JSON, the client says in exceptions, with its sentence."""
    with pytest.raises(CodesError, match="16"):
        client.decode(np.full((4, 3), 16))
    with pytest.raises(CodesError, match="integers"):
        client.decode(np.zeros((4, 3)))
    with pytest.raises(CodesError):
        client.decode(np.full((4, 3), -1))
    with pytest.raises(AudioError):
        client.encode(b"this is no audio file")
    with pytest.raises(FileNotFoundError):
        client.encode("no such file.wav")
    with pytest.raises(RequestRefused, match="other") as refused:
        client.decode(CODES, codec="other")
    assert refused.value.kind == "unknown_codec"
    with pytest.raises(RequestRefused, match="not available"):
        client.decode(CODES, bandwidth_kbps=1.234)


def test_a_wrong_token_is_an_error_at_once(client):
    """No attempt would help."""
    with DecodeClient(client._client._url) as stranger, pytest.raises(Unauthorized):
        stranger.codecs()


def test_many_calls_at_once(client, codec):
    """Of one asynchronous client, each with its own answer."""

    async def everybody():
        async with AsyncDecodeClient(client._client._url, "sesame") as many:
            return await asyncio.gather(*(many.decode(some_codes(20 + seed, seed)) for seed in range(30)))

    for seed, waveform in enumerate(asyncio.run(everybody())):
        expected = np.clip(offline(codec, some_codes(20 + seed, seed)), -1, 1)
        np.testing.assert_allclose(waveform, expected, atol=0.51 / 32768 + 1e-5)


class Script:
    """A service that answers what it is told to, in order, and then that it has one codec."""

    def __init__(self, *answers):
        self.answers, self.times, self.queries = list(answers), [], []
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request):
        self.times.append(time.monotonic())
        self.queries.append(dict(request.query_params))
        answer = self.answers.pop(0) if self.answers else JSONResponse({"codecs": [{"name": "tiny"}]})
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return JSONResponse({"codecs": []})
        return answer


def said(status, kind, **headers):
    return JSONResponse({"error": {"type": kind, "message": "a sentence"}}, status, headers)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status):
    """Full, draining and failed services: other replicas, or the same one later, can answer."""
    script = Script(Response("a proxy's page", status), said(status, "overloaded"))
    with running_service(script.app, lifespan="off") as url, DecodeClient(url) as client:
        assert client.codecs() == [{"name": "tiny"}]
    assert len(script.times) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422])
def test_what_will_not_pass_is_not_tried_again(status):
    """The same request would be refused again."""
    script = Script(said(status, "bad_request"))
    with (
        running_service(script.app, lifespan="off") as url,
        DecodeClient(url) as client,
        pytest.raises(RequestRefused, match="a sentence"),
    ):
        client.codecs()
    assert len(script.times) == 1


def test_retry_after_is_honoured():
    """No attempt comes sooner than the service asks for."""
    script = Script(said(429, "overloaded", **{"Retry-After": "1"}))
    with running_service(script.app, lifespan="off") as url, DecodeClient(url) as client:
        client.codecs()
    first, second = script.times
    assert 1.0 <= second - first < 1.6


@pytest.mark.parametrize(
    ("kind", "error"), [("overloaded", Overloaded), ("draining", Draining), ("internal_error", ServiceError)]
)
def test_attempts_are_bounded(kind, error):
    """After the last one the error is the service's."""
    script = Script(*(said(503, kind) for _ in range(9)))
    with (
        running_service(script.app, lifespan="off") as url,
        DecodeClient(url, retries=2) as client,
        pytest.raises(error, match="a sentence"),
    ):
        client.codecs()
    assert len(script.times) == 3


def test_time_is_bounded_too():
    """A wait that would pass the timeout is not begun, and a silent service is left at it."""
    script = Script(said(429, "overloaded", **{"Retry-After": "60"}), 5.0)
    with running_service(script.app, lifespan="off") as url, DecodeClient(url, timeout_s=0.5) as client:
        begin = time.monotonic()
        with pytest.raises(Overloaded) as full:
            client.codecs()
        assert (full.value.retry_after_s, len(script.times)) == (60.0, 1)
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.5 s"):
            client.codecs()
        assert time.monotonic() - begin < 2


def test_the_service_hears_how_long_the_client_waits():
    """So that work which nobody will read is dropped before it is done."""
    script = Script(said(422, "invalid_codes"))
    with (
        running_service(script.app, lifespan="off") as url,
        DecodeClient(url, timeout_s=7) as client,
        pytest.raises(CodesError),
    ):
        client.decode(CODES)
    assert 6 < float(script.queries[0]["deadline_s"]) <= 7


def test_nobody_there():
    """The error names the address."""
    with DecodeClient("http://127.0.0.1:9", retries=1) as client, pytest.raises(ServiceUnreachable, match=":9"):
        client.codecs()


@pytest.mark.parametrize(
    "answer", [Response("welcome"), Response("[1]"), Response(b"RIFF")], ids=["text", "list", "RIFF"]
)
def test_answers_of_something_else(answer):
    """Are no waveform, no codes and no cards."""
    for call in (lambda c: c.codecs(), lambda c: c.decode(CODES), lambda c: c.encode(b"RIFF")):
        script = Script(answer)
        with (
            running_service(script.app, lifespan="off") as url,
            DecodeClient(url, retries=0) as client,
            pytest.raises(ServiceUnreachable, match="the service answers with something"),
        ):
            call(client)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "", "http://"])
def test_a_url_of_something_else_is_refused(url):
    """When the client is made, not at its first call."""
    with pytest.raises(ValueError, match="http://"):
        DecodeClient(url)


def test_pauses_grow_and_scatter():
    """Up to a longest one, with full jitter, and never shorter than what the service asks for."""
    policy = RetryPolicy(retries=9, first_s=0.1, longest_s=1.0, random=random.Random(0))  # noqa: S311
    for failures, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (9, 1.0)):
        pauses = [policy.pause_s(failures) for _ in range(200)]
        assert 0 <= min(pauses) < 0.1 * longest
        assert 0.9 * longest < max(pauses) <= longest
    assert policy.pause_s(10) is None
    assert 3.0 <= policy.pause_s(1, retry_after_s=3.0) <= 3.1
    with pytest.raises(ValueError, match="negative"):
        RetryPolicy(retries=-1)


def test_a_client_needs_neither_torch_nor_ray():
    """Nor a web framework: it runs in a program that has none of them."""
    code = "import pipelines.clients.decode_client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "websockets" in modules
    assert not modules & {
        "torch",
        "ray",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "soundfile",
        "pyarrow",
        "polars",
    }
