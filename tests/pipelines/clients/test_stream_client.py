"""A client's stream: codes in, sound out, and errors that say what to do."""

import asyncio
import threading
import time

import numpy as np
import pytest
from fastapi import FastAPI, WebSocket

from pipelines.clients.client_errors import RequestRefused, ServiceUnreachable, Unauthorized
from pipelines.clients.decode_client import AsyncDecodeClient, DecodeClient
from pipelines.decoding.decode_engine import EngineSettings
from pipelines.decoding.decode_errors import Overloaded, StreamClosed
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import StreamLimits
from tests.conftest import make_codec, tiny_spec
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


def test_sound_comes_while_codes_are_made(url, codec):
    """The first samples are there before the last codes are."""
    codes = some_codes(200)
    with DecodeClient(url) as client, client.stream() as stream:
        stream.push(codes[:, :100])
        samples = [next(iter(stream))]
        stream.push(codes[:, 100:])
        stream.finish()
        samples += list(stream)
        assert stream.started.sample_rate == 24000
    np.testing.assert_allclose(np.concatenate(samples, axis=1), offline(codec, codes), atol=1e-5)


def test_utterance_after_utterance(url, codec):
    """Each is heard to its own end, also where several were pushed before the first was read."""
    with DecodeClient(url) as client, client.stream(num_codebooks=4) as stream:
        for seed in range(3):
            np.testing.assert_allclose(
                spoken(stream, some_codes(50, seed)), offline(codec, some_codes(50, seed)), atol=1e-5
            )
        for seed in range(3):
            stream.push(some_codes(30, seed))
            stream.finish()
        for seed in range(3):
            sound = np.concatenate(list(stream), axis=1)
            np.testing.assert_allclose(sound, offline(codec, some_codes(30, seed)), atol=1e-5)


def test_a_reset_is_silence(url, codec):
    """Nothing of what was pushed before it is heard after it."""
    with DecodeClient(url) as client, client.stream() as stream:
        for _ in range(5):
            stream.push(some_codes(3000))
        next(iter(stream))
        stream.reset()
        np.testing.assert_allclose(spoken(stream, some_codes(40)), offline(codec, some_codes(40)), atol=1e-5)


def test_half_the_bytes(url, codec):
    """s16le gives int16, for players that want them."""
    with DecodeClient(url) as client, client.stream(pcm="s16le") as stream:
        sound = spoken(stream, some_codes(40))
    assert sound.dtype == np.int16
    np.testing.assert_allclose(sound / 32768, np.clip(offline(codec, some_codes(40)), -1, 1), atol=0.51 / 32768)


def test_a_long_utterance_may_be_pushed_before_it_is_read(codec):
    """No deadlock where everything between the two is small: what comes is kept by the client."""
    codes = some_codes(20_000)
    small = {"engine_settings": EngineSettings(max_backlog_s=0.1), "limits": StreamLimits(waiting_s=0.1)}
    with (
        streaming(codec, **small, send_buffer=4096) as (url, _),
        DecodeClient(url) as client,
        client.stream() as stream,
    ):
        sound = spoken(stream, codes, pieces=7)
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


def test_pushing_and_reading_in_two_tasks(url, codec):
    """The way of a program with a model in one task and a loudspeaker in the other; many at once."""

    async def listener(client, seed):
        codes = some_codes(150, seed)
        async with client.stream() as stream:

            async def model():
                for frame in range(0, 150, 5):
                    await stream.push(codes[:, frame : frame + 5])
                    await asyncio.sleep(0.001)
                await stream.finish()

            making = asyncio.create_task(model())
            sound = [samples async for samples in stream]
            await making
        np.testing.assert_allclose(np.concatenate(sound, axis=1), offline(codec, codes), atol=1e-5)

    async def everybody():
        async with AsyncDecodeClient(url) as client:
            await asyncio.gather(*(listener(client, seed) for seed in range(12)))

    asyncio.run(everybody())


def test_chunks_become_sound_in_one_call(url, codec):
    """Making codes and reading sound go on side by side, with and without a loop."""
    codes, made = some_codes(60), []

    def model():
        for piece in np.array_split(codes, 6, axis=1):
            made.append(piece)
            yield piece

    async def in_a_loop():
        async def chunks():
            for piece in model():
                yield piece

        async with AsyncDecodeClient(url) as client:
            return [samples async for samples in client.decode_chunks(chunks(), num_codebooks=4)]

    with DecodeClient(url) as client:
        for sound in (list(client.decode_chunks(model())), asyncio.run(in_a_loop())):
            np.testing.assert_allclose(np.concatenate(sound, axis=1), offline(codec, codes), atol=1e-5)
    assert len(made) == 12


def test_a_model_that_fails_is_heard_of(codec):
    """Its error comes out where the sound is read, and the slot is free; nobody waits for codes that never come."""

    def model():
        yield some_codes(20)
        raise LookupError("no more words")

    async def in_a_loop(url):
        async def chunks():
            for piece in model():
                yield piece

        async with AsyncDecodeClient(url) as client:
            async for _ in client.decode_chunks(chunks()):
                pass

    with streaming(codec) as (url, engine), DecodeClient(url) as client:
        with pytest.raises(LookupError, match="no more words"):
            list(client.decode_chunks(model()))
        with pytest.raises(LookupError, match="no more words"):
            asyncio.run(in_a_loop(url))
        assert wait_until(lambda: engine.health().active_streams == 0) < 0.5


def test_a_listener_who_leaves_stops_the_model(codec):
    """At its next chunk; the slot is free at once."""
    made = []

    def model():
        for _ in range(1000):
            made.append(1)
            time.sleep(0.01)
            yield some_codes(5)

    with streaming(codec) as (url, engine), DecodeClient(url) as client:
        for _ in client.decode_chunks(model()):
            break
        assert wait_until(lambda: engine.health().active_streams == 0) < 0.5
        count = len(made)
        time.sleep(0.1)
        assert len(made) <= count + 2


def test_threads_share_a_client(url, codec):
    """Each with a stream of its own."""
    failures = []

    def listener(client, seed):
        try:
            with client.stream() as stream:
                sound = spoken(stream, some_codes(100, seed))
            np.testing.assert_allclose(sound, offline(codec, some_codes(100, seed)), atol=1e-5)
        except BaseException as error:  # noqa: BLE001 - it belongs to the main thread
            failures.append(error)

    with DecodeClient(url) as client:
        threads = [threading.Thread(target=listener, args=(client, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not failures


def test_a_full_service_is_asked_again_after_its_retry_after(codec):
    """A slot that becomes free in time is taken; otherwise the error is the service's own."""
    with (
        streaming(codec, engine_settings=EngineSettings(max_streams=1)) as (url, _),
        DecodeClient(url) as first,
        DecodeClient(url, retries=0) as hasty,
        DecodeClient(url) as patient,
    ):
        holding = first.stream()
        holding.__enter__()
        with pytest.raises(Overloaded) as full, hasty.stream():
            pass
        threading.Timer(0.3, holding.close).start()
        begin = time.monotonic()
        with patient.stream() as stream:
            assert time.monotonic() - begin >= full.value.retry_after_s
            np.testing.assert_allclose(spoken(stream, some_codes(10)), offline(codec, some_codes(10)), atol=1e-5)


def test_a_token_is_shown(codec):
    """Without the right one there is no stream, and no second attempt."""
    with streaming(codec, ServiceSettings(token="sesame")) as (url, _):  # noqa: S106 - made up
        with DecodeClient(url, "sesame") as client, client.stream() as stream:
            assert spoken(stream, some_codes(10)).shape == (1, 80)
        for wrong in (None, "simsim"):
            begin = time.monotonic()
            with DecodeClient(url, wrong) as client, pytest.raises(Unauthorized), client.stream():
                pass
            assert time.monotonic() - begin < 1


def test_what_the_service_does_not_have_is_said_at_once(url):
    """Its own word and sentence, and no second attempt."""
    with DecodeClient(url) as client:
        with pytest.raises(RequestRefused, match="no such codec") as refused, client.stream(codec="other"):
            pass
        assert refused.value.kind == "unknown_codec"
        with pytest.raises(RequestRefused, match="from 1 to 4, not 9"), client.stream(num_codebooks=9):
            pass


def test_nobody_there_and_somebody_else_there():
    """The error names the address, and comes after the attempts that the client has."""
    with (
        DecodeClient("http://127.0.0.1:9", retries=1) as client,
        pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9"),
        client.stream(),
    ):
        pass
    app = FastAPI()

    @app.websocket("/v1/audio/stream")
    async def another_protocol(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_text("welcome")

    with (
        running_service(app) as url,
        DecodeClient(url) as client,
        pytest.raises(ServiceUnreachable, match="does not speak this protocol"),
        client.stream(),
    ):
        pass
    with (
        running_service(FastAPI()) as url,
        DecodeClient(url) as client,
        pytest.raises(RequestRefused, match="takes no streams"),
        client.stream(),
    ):
        pass


def test_codes_are_checked_where_they_are_pushed(url):
    """The stream goes on without them."""
    with DecodeClient(url) as client, client.stream() as stream:
        for wrong in (np.zeros((3, 5), int), np.full((4, 1), 16), np.zeros((4, 2)), np.zeros((1, 4, 2), int)):
            with pytest.raises(CodesError):
                stream.push(wrong)
        assert spoken(stream, some_codes(10)).shape == (1, 80)


def test_leaving_frees_the_slot(codec):
    """At the end of the block, in the middle of whatever; then the stream cannot be used any more."""
    with streaming(codec) as (url, engine), DecodeClient(url) as client:
        with client.stream() as stream:
            stream.push(some_codes(9000))
            for _ in stream:
                break
        assert wait_until(lambda: engine.health().active_streams == 0) < 0.5
        with pytest.raises(StreamClosed):
            stream.push(some_codes(1))
        with pytest.raises(StreamClosed):
            list(stream)
        with pytest.raises(StreamClosed):
            _ = client.stream().started


def test_a_closed_client_says_so(url):
    """And closing it twice is nothing."""
    client = DecodeClient(url)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.codecs()
