"""Lost connections: a stream that is taken up again gives exactly the samples of an undisturbed one."""

import asyncio

import numpy as np
import pytest

from pipelines.decoding.decode_engine import EngineSettings
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import StreamLimits
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import wait_until
from tests.pipelines.wire_streams import offline, opened, some_codes, started, streaming


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


async def parked(engine):
    """Until the server has noticed that the connection is gone."""
    await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 0)


async def broken_off(url, codes, *, pushed, heard):
    """A stream that is lost after some messages with a frame each and some with sound; its token and the sound."""
    sound = np.zeros((1, 0), np.float32)
    async with started(url) as (wire, answer):
        for frame in range(pushed):
            await wire.push(codes[:, frame : frame + 1])
        if pushed == codes.shape[1]:
            await wire.finish()
        while sound.shape[1] < heard:
            sound = np.concatenate([sound, await wire.hear()], axis=1)
        wire.cut()
    return answer["resume_token"], sound


async def taken_up(url, codes, token, sound):
    """The rest of the utterance: what the server lacks of the codes, and what the client lacks of the sound."""
    async with started(url, resume=token, received_samples=sound.shape[1]) as (wire, answer):
        assert answer["type"] == "started", answer
        assert answer["resumed"]
        if answer["utterance"] == 0:
            rest = codes[:, answer["received_frames"] :]
            if rest.shape[1]:
                await wire.push(rest)
            await wire.finish()
        more, end = await wire.utterance()
    return np.concatenate([sound, more], axis=1), end


@pytest.mark.parametrize("kind", ["patch", "mirrored", "dac"])
def test_a_stream_goes_on_wherever_it_was_cut(kind):
    """After every number of frames sent and every number of samples heard, for codecs that hold samples back too."""
    codec, frames = make_codec(tiny_spec(kind)), 24
    codes = some_codes(frames)
    whole = offline(codec, codes)

    async def cut_everywhere(url, engine):
        for pushed in range(1, frames + 1):
            for heard in {0, 8 * max(0, pushed - 20), 8 * frames if pushed == frames else 0}:
                token, sound = await broken_off(url, codes, pushed=pushed, heard=heard)
                await parked(engine)
                sound, end = await taken_up(url, codes, token, sound)
                np.testing.assert_allclose(sound, whole, atol=1e-5)
                assert (end["num_samples"], end["num_frames"]) == (8 * frames, frames)

    with streaming(codec) as (url, engine):
        asyncio.run(cut_everywhere(url, engine))


def test_a_cut_in_the_middle_of_a_long_message_changes_nothing(codec):
    """Where the engine has taken the first frames of a message and had no room for the others."""
    codes = some_codes(400)

    async def cut_inside(url, engine):
        for heard in range(0, 1600, 160):
            async with started(url) as (wire, answer):
                await wire.push(codes)
                sound = np.zeros((1, 0), np.float32)
                while sound.shape[1] <= heard:
                    sound = np.concatenate([sound, await wire.hear()], axis=1)
                wire.cut()
            await parked(engine)
            sound, _ = await taken_up(url, codes, answer["resume_token"], sound)
            np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)

    with streaming(codec, engine_settings=EngineSettings(max_backlog_s=0.005)) as (url, engine):
        asyncio.run(cut_inside(url, engine))


def test_samples_that_were_sent_and_did_not_arrive_come_again(codec):
    """From any sample on, also in the middle of a message, also after the end was sent."""
    codes = some_codes(50)
    whole = offline(codec, codes)

    async def lose_some(url, engine):
        for received in (0, 1, 7, 8, 133, 399, 400):
            token, sound = await broken_off(url, codes, pushed=50, heard=400)
            await parked(engine)
            sound, end = await taken_up(url, codes, token, sound[:, :received])
            np.testing.assert_allclose(sound, whole, atol=1e-5)
            assert end["num_samples"] == 400

    with streaming(codec) as (url, engine):
        asyncio.run(lose_some(url, engine))


def test_a_stream_may_be_lost_again_and_again(codec):
    """With one token for its whole life."""
    codes = some_codes(60)

    async def lose_often(url, engine):
        token, sound = await broken_off(url, codes, pushed=10, heard=16)
        for received_frames in (20, 30, 40, 50):
            await parked(engine)
            async with started(url, resume=token, received_samples=sound.shape[1]) as (wire, answer):
                await wire.push(codes[:, answer["received_frames"] : received_frames])
                while sound.shape[1] < 8 * received_frames - 80:
                    sound = np.concatenate([sound, await wire.hear()], axis=1)
                wire.cut()
        await parked(engine)
        return await taken_up(url, codes, token, sound)

    with streaming(codec) as (url, engine):
        sound, _ = asyncio.run(lose_often(url, engine))
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


def test_a_later_utterance_is_taken_up_too(codec):
    """The client says how many ends it has received; an end that it has not comes again."""
    first, second = some_codes(20, seed=1), some_codes(30, seed=2)

    async def talk(url, engine):
        async with started(url) as (wire, answer):
            await wire.push(first)
            await wire.finish()
            await wire.push(second)
            while sound_of_second(await wire.hear()) is None:
                pass
            wire.cut()
        await parked(engine)
        async with started(url, resume=answer["resume_token"], received_samples=160) as (wire, again):
            assert again["utterance"] == 1
            end = await wire.hear()
            await wire.push(second[:, again["received_frames"] :])
            await wire.finish()
            return end, *(await wire.utterance())

    ends = []

    def sound_of_second(message):
        if isinstance(message, dict):
            ends.append(message)
            return None
        return message if ends else None

    with streaming(codec) as (url, engine):
        end, sound, last = asyncio.run(talk(url, engine))
    assert (end["type"], end["utterance"], last["utterance"]) == ("end", 0, 1)
    np.testing.assert_allclose(sound, offline(codec, second), atol=1e-5)


def test_a_client_may_come_back_before_the_server_knows_that_it_was_gone(codec):
    """As where a phone changes networks: the old connection is ended, and the stream goes on in the new one."""
    codes = some_codes(40)

    async def talk(url, engine):
        async with started(url) as (old, answer):
            await old.push(codes[:, :20])
            sound = await old.hear()
            result = await taken_up(url, codes, answer["resume_token"], sound)
            return result, await old.last_words()

    with streaming(codec) as (url, engine):
        (sound, _), (error, code) = asyncio.run(talk(url, engine))
        assert wait_until(lambda: engine.health().active_streams == 0) < 1
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)
    assert (error["type"], code) == ("taken_over", 1008)


def test_where_all_slots_are_taken_the_stream_stays_parked(codec):
    """The client hears when to come again, and then goes on."""
    codes = some_codes(40)

    async def talk(url, engine):
        token, sound = await broken_off(url, codes, pushed=20, heard=8)
        await parked(engine)
        async with started(url), opened(url) as late:
            await late.say(resume=token, received_samples=sound.shape[1])
            refused = await late.last_words()
        await parked(engine)
        return refused, await taken_up(url, codes, token, sound)

    with streaming(codec, engine_settings=EngineSettings(max_streams=1)) as (url, engine):
        (error, code), (sound, _) = asyncio.run(talk(url, engine))
    assert (error["type"], code) == ("overloaded", 1013)
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


async def refused(url, token, **position):
    async with opened(url) as wire:
        await wire.say(resume=token, **position)
        return (await wire.last_words())[0]["type"]


@pytest.mark.parametrize(
    "position",
    [
        {"received_samples": 10**6},
        {"utterance": 1},
        {"utterance": 5, "received_samples": 3},
        {"utterance": 2**53 - 1},
    ],
    ids=str,
)
def test_a_position_that_never_was_is_refused(codec, position):
    """Nobody gets samples by claiming to have others."""

    async def talk(url, engine):
        token, _ = await broken_off(url, some_codes(30), pushed=20, heard=80)
        await parked(engine)
        return await refused(url, token, **position)

    with streaming(codec) as (url, engine):
        assert asyncio.run(talk(url, engine)) == "resume_failed"


def test_what_was_sent_long_ago_is_not_kept(codec):
    """Memory is bounded: who has missed more than that is told to begin anew."""

    async def talk(url, engine):
        codes = some_codes(3000)
        async with started(url) as (wire, answer):
            for piece in np.split(codes, 30, axis=1):
                await wire.push(piece)
            await wire.finish()
            await wire.utterance()
            wire.cut()
        await parked(engine)
        token = answer["resume_token"]
        return await refused(url, token, received_samples=100), await refused(url, token, received_samples=100)

    with streaming(codec, limits=StreamLimits(kept_s=0.5)) as (url, engine):
        assert asyncio.run(talk(url, engine)) == ("resume_failed", "resume_failed")


@pytest.mark.parametrize(
    ("window_s", "limits"),
    [(0.2, StreamLimits()), (0.0, StreamLimits()), (10.0, StreamLimits(max_parked=0))],
    ids=["too late", "no window", "no room"],
)
def test_streams_are_kept_for_a_while_only(codec, window_s, limits):
    """After the window, or where there is no room, nobody knows the stream any more."""

    async def talk(url, engine):
        token, _ = await broken_off(url, some_codes(20), pushed=5, heard=0)
        await parked(engine)
        await asyncio.sleep(0.3)
        return await refused(url, token)

    with streaming(codec, ServiceSettings(resume_window_s=window_s), limits=limits) as (url, engine):
        assert asyncio.run(talk(url, engine)) == "resume_failed"


def test_a_client_that_says_goodbye_is_not_kept(codec):
    """A close that is meant frees everything at once."""

    async def talk(url, engine):
        async with started(url) as (wire, answer):
            await wire.push(some_codes(5))
        await parked(engine)
        return await refused(url, answer["resume_token"])

    with streaming(codec) as (url, engine):
        assert asyncio.run(talk(url, engine)) == "resume_failed"
