"""The door of the stream route: who comes in, and what a first message may say."""

import asyncio
import json

import pytest
from fastapi import FastAPI
from websockets.exceptions import InvalidStatus

from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import stream_router
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import running_service, wait_until
from tests.pipelines.wire_streams import assert_still_right, heard, opened, some_codes, started, streaming


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


@pytest.fixture(scope="module")
def url(codec):
    """One service for all tests that leave it as it was."""
    with streaming(codec) as (url, _):
        yield url


BAD_FIRST = {
    "no JSON": ("hello", "invalid_message", 1007),
    "no object": ("[1]", "invalid_message", 1007),
    "nested without end": ("[" * 4000, "invalid_message", 1007),
    "too long": (json.dumps({"codec": "x" * 5000}), "too_large", 1009),
    "unknown field": ('{"path": "/etc/passwd"}', "invalid_message", 1007),
    "another type": ('{"type": "reset"}', "invalid_message", 1007),
    "unknown codec": ('{"codec": "../../x"}', "unknown_codec", 1008),
    "codec of another type": ('{"codec": 3}', "invalid_message", 1007),
    "no levels": ('{"num_codebooks": 0}', "invalid_message", 1007),
    "too many levels": ('{"num_codebooks": 5}', "invalid_message", 1007),
    "levels by truth": ('{"num_codebooks": true}', "invalid_message", 1007),
    "part of a level": ('{"num_codebooks": 1.5}', "invalid_message", 1007),
    "a bandwidth between levels": ('{"bandwidth_kbps": 0.1}', "invalid_message", 1007),
    "endless bandwidth": ('{"bandwidth_kbps": Infinity}', "invalid_message", 1007),
    "no bandwidth": ('{"bandwidth_kbps": NaN}', "invalid_message", 1007),
    "both": ('{"num_codebooks": 1, "bandwidth_kbps": 12}', "invalid_message", 1007),
    "unknown pcm": ('{"pcm": "mp3"}', "invalid_message", 1007),
    "binary": (b"\x00\x01", "wrong_message_type", 1003),
    "unknown token": ('{"resume": "nobody"}', "resume_failed", 1008),
    "negative samples": ('{"resume": "x", "received_samples": -1}', "invalid_message", 1007),
    "resume with levels": ('{"resume": "x", "num_codebooks": 2}', "invalid_message", 1007),
}


@pytest.mark.parametrize("case", BAD_FIRST)
def test_a_bad_first_message_is_answered_with_a_typed_error(url, codec, case):
    """One word for programs, one sentence for people, no trace, a fitting close; and the service goes on."""
    text, kind, code = BAD_FIRST[case]

    async def talk():
        async with opened(url) as wire:
            await wire.websocket.send(text)
            return await wire.last_words()

    error, closed = asyncio.run(talk())
    assert (error["type"], closed) == (kind, code)
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "\n" not in error["message"]
    assert_still_right(url, codec)


def test_a_codec_that_cannot_stream_is_refused():
    """48 kHz models decode whole segments: the error names the route that takes their codes."""
    segmented = make_codec(tiny_spec("segmented"))

    async def talk(url):
        async with opened(url) as wire:
            await wire.say()
            return await wire.last_words()

    with streaming(segmented) as (url, _):
        error, code = asyncio.run(talk(url))
    assert (error["type"], code) == ("unknown_codec", 1008)
    assert "/v1/audio/decode" in error["message"]


def test_where_several_codecs_are_served_one_has_to_be_named(codec):
    """The error lists them."""

    async def talk(url):
        async with opened(url) as wire:
            await wire.say()
            error, _ = await wire.last_words()
        async with started(url, codec="second") as (_, answer):
            return error, answer

    with DecodeEngine(codec) as one, DecodeEngine(make_codec(tiny_spec("seanet"))) as two:
        app = FastAPI()
        app.include_router(stream_router({"first": one, "second": two}, ServiceSettings()))
        with running_service(app) as url:
            error, answer = asyncio.run(talk(url))
    assert error["type"] == "unknown_codec"
    assert "first, second" in error["message"]
    assert answer["codec"] == "second"


def test_no_slot_is_said_at_once(codec):
    """The client that comes too late hears when to come again; it gets the slot that becomes free."""

    async def talk(url, engine):
        async with started(url) as (_, _), opened(url) as late:
            await late.say()
            refused = await late.last_words()
        await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 0)
        return refused, await heard(url, some_codes(10))

    with streaming(codec, engine_settings=EngineSettings(max_streams=1)) as (url, engine):
        (error, code), (sound, _) = asyncio.run(talk(url, engine))
    assert (error["type"], code) == ("overloaded", 1013)
    assert error["retry_after_s"] > 0
    assert sound.shape == (1, 80)


def test_who_has_no_token_is_not_served(codec):
    """In the header where there is one, in the first message where a browser can set none; wrong ones fail at once."""

    async def attempt(url, header=None, **fields):
        headers = None if header is None else {"Authorization": header}
        async with opened(url, headers=headers) as wire:
            await wire.say(**fields)
            return (await wire.hear())["type"], (await wire.last_words())[1] if header is None and not fields else 0

    with streaming(codec, ServiceSettings(token="sesame")) as (url, engine):  # noqa: S106 - made up
        assert asyncio.run(attempt(url, "Bearer sesame"))[0] == "started"
        assert asyncio.run(attempt(url, token="sesame"))[0] == "started"  # noqa: S106
        assert asyncio.run(attempt(url)) == ("error", 1008)
        assert asyncio.run(attempt(url, token="Sesame"))[0] == "error"  # noqa: S106
        for wrong in ("Bearer simsim", "Basic sesame", "sesame", ""):
            with pytest.raises(InvalidStatus) as refused:
                asyncio.run(attempt(url, wrong))
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body)["error"]["type"] == "unauthorized"
        assert asyncio.run(asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 0)) < 1


def test_pages_of_other_sites_may_not_use_it(codec):
    """Browsers do not hold WebSockets back as they do requests: the origin is checked."""

    async def attempt(url, origin):
        async with opened(url, origin=origin) as wire:
            await wire.say()
            return (await wire.hear())["type"]

    with streaming(codec, ServiceSettings(cors_origins=("https://friend.example",))) as (url, _):
        assert asyncio.run(attempt(url, url)) == "started"
        assert asyncio.run(attempt(url, "https://friend.example")) == "started"
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(attempt(url, "https://other.example"))
    assert refused.value.response.status_code == 403
