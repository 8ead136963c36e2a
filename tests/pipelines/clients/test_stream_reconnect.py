"""A client's stream over connections that break and servers that die: its sound is whole, or it says that it is not."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
from fastapi import FastAPI, WebSocket

from pipelines.clients.client_errors import StreamCut
from pipelines.clients.decode_client import DecodeClient
from pipelines.serving.service_stream import StreamLimits
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.clients.cutting_proxy import cutting_proxy
from tests.pipelines.running_service import running_service, wait_until
from tests.pipelines.wire_streams import offline, some_codes, spoken, streaming
from tokenizer import CodesError


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


@pytest.fixture(scope="module")
def url(codec):
    with streaming(codec) as (url, _):
        yield url


@pytest.mark.parametrize("step", [250, pytest.param(13, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_cut_connections_are_not_heard(url, codec, direction, step):
    """After any number of bytes either way, twice in a row: the sound is whole and nothing is heard twice."""
    codes = some_codes(60)
    whole = offline(codec, codes)
    with cutting_proxy(url) as (proxy, far), DecodeClient(far) as client:
        for budget in range(30, 2600, step):
            getattr(proxy, f"{direction}_budgets")[:] = [budget + 500, budget]
            with client.stream() as stream:
                np.testing.assert_allclose(spoken(stream, codes, pieces=20), whole, atol=1e-5)
            proxy.down_budgets[:] = proxy.up_budgets[:] = []
        assert proxy.connections > 2 * 1500 // step


def test_another_server_makes_the_same_sound(codec):
    """Where a server dies with its streams and another one answers, the utterance is decoded again there."""
    codes = some_codes(300)
    with (
        streaming(codec) as (first, engine),
        streaming(codec) as (second, _),
        cutting_proxy(first) as (proxy, far),
        DecodeClient(far) as client,
        client.stream() as stream,
    ):
        stream.push(codes[:, :100])
        sound = [next(iter(stream))]
        proxy.target = second
        proxy.cut_all()
        assert wait_until(lambda: engine.health().active_streams == 0) < 0.5
        stream.push(codes[:, 100:])
        stream.finish()
        sound += list(stream)
        spoken_after = spoken(stream, codes)
    np.testing.assert_allclose(np.concatenate(sound, axis=1), offline(codec, codes), atol=1e-5)
    np.testing.assert_allclose(spoken_after, offline(codec, codes), atol=1e-5)


def test_a_cut_that_cannot_be_mended_is_an_error(url):
    """Never a shorter sound: iterating raises, and says how much came; so does pushing on."""
    with cutting_proxy(url) as (proxy, far), DecodeClient(far, retries=0) as client, client.stream() as stream:
        stream.push(some_codes(100))
        heard = [next(iter(stream))]
        proxy.cut_all()
        with pytest.raises(StreamCut) as cut:
            heard.extend(stream)
        assert cut.value.received_samples == sum(samples.shape[1] for samples in heard)
        with pytest.raises(StreamCut):
            stream.push(some_codes(1))


def test_a_lost_connection_between_utterances_is_nothing(url, codec):
    """Nothing was outstanding, so nothing is retried until there are codes again."""
    with cutting_proxy(url) as (proxy, far), DecodeClient(far) as client, client.stream() as stream:
        spoken(stream, some_codes(20))
        proxy.cut_all()
        time.sleep(0.2)
        assert proxy.connections == 1
        np.testing.assert_allclose(spoken(stream, some_codes(30)), offline(codec, some_codes(30)), atol=1e-5)
        assert proxy.connections == 2


def test_a_server_that_asks_an_idle_client_to_leave_is_asked_again(codec):
    """Between utterances and within one: the stream goes on with the next codes."""
    codes = some_codes(60)
    with (
        streaming(codec, limits=StreamLimits(idle_timeout_s=0.3)) as (url, engine),
        DecodeClient(url) as client,
        client.stream() as stream,
    ):
        spoken(stream, codes)
        wait_until(lambda: engine.health().active_streams == 0)
        stream.push(codes[:, :30])
        wait_until(lambda: engine.health().active_streams == 1)
        wait_until(lambda: engine.health().active_streams == 0)
        stream.push(codes[:, 30:])
        stream.finish()
        sound = np.concatenate(list(stream), axis=1)
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


STARTED = {
    "type": "started",
    "codec": "x",
    "sample_rate": 24000,
    "channels": 1,
    "hop_length": 8,
    "frame_rate": 3000.0,
    "num_codebooks": 4,
    "codebook_size": 16,
    "pcm": "f32le",
    "stream": "s",
    "resume_token": "t",
}


@contextmanager
def scripted(then):
    """A service that takes a stream and the first codes, and then does something else; and what it has seen."""
    app, served = FastAPI(), []

    @app.websocket("/v1/audio/stream")
    async def stream(websocket: WebSocket):
        await websocket.accept()
        await websocket.receive_text()
        await websocket.send_json(STARTED)
        await websocket.receive()
        served.append(1)
        await then(websocket)

    with running_service(app) as url:
        yield url, served


def test_codes_that_crossed_a_goodbye_are_sent_again(url, codec):
    """A server that ends an idle stream just as codes are on their way to it says how far it had come."""

    async def leave(websocket):
        error = {"type": "idle", "message": "nobody is here", "utterance": 0, "received_frames": 0}
        proxy.target = url
        await websocket.send_json({"type": "error", "error": error})
        await websocket.close(1008)

    with (
        scripted(leave) as (first, served),
        cutting_proxy(first) as (proxy, far),
        DecodeClient(far) as client,
        client.stream() as stream,
    ):
        stream.push(some_codes(20))
        wait_until(lambda: served)
        first_samples = next(iter(stream))
        stream.finish()
        sound = np.concatenate([first_samples, *stream], axis=1)
    np.testing.assert_allclose(sound, offline(codec, some_codes(20)), atol=1e-5)


def push_forever(stream):
    """Until it raises, or for very long."""
    for _ in range(10_000):
        stream.push(some_codes(100))


@pytest.mark.parametrize("attempt", range(5))
def test_the_last_word_is_heard_by_a_client_that_is_talking(attempt):
    """The reason of the server reaches the program, not the failed sending after it."""

    async def refuse(websocket):
        for _ in range(300):
            await websocket.send_bytes(bytes(32))
        error = {"type": "invalid_codes", "message": "not these"}
        await websocket.send_json({"type": "error", "error": error})
        await websocket.close(1007)

    with (
        scripted(refuse) as (first, served),
        DecodeClient(first) as client,
        client.stream() as stream,
        pytest.raises(CodesError, match="not these"),
    ):
        push_forever(stream)
    assert len(served) == 1


def test_a_server_that_falls_silent_is_left(url, codec):
    """Sound that is due and does not come within the timeout is asked for in another connection."""

    async def fall_silent(websocket):
        while True:
            await websocket.receive()

    with (
        scripted(fall_silent) as (dumb, served),
        cutting_proxy(dumb) as (proxy, far),
        DecodeClient(far, timeout_s=1.0) as client,
        client.stream() as stream,
    ):
        stream.push(some_codes(20))
        stream.finish()
        wait_until(lambda: served)
        proxy.target = url
        sound = np.concatenate(list(stream), axis=1)
    np.testing.assert_allclose(sound, offline(codec, some_codes(20)), atol=1e-5)
