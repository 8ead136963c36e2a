"""A stream gives exactly what offline decoding gives, whatever its neighbours do, and holds up only itself."""

import asyncio
import gc
import random

import numpy as np
import pytest

from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.decoding.decode_errors import Overloaded, ServiceError, StreamClosed
from tests.pipelines.engines import HeldCodec, Watcher, close, collected, offline, paused, random_codes, within
from tokenizer import CodesError


@pytest.fixture
def held():
    return HeldCodec()


async def pushed(stream, codes, chunks):
    """Hand codes in by so many frames at a time, over and over, and end the utterance."""
    at, turn = 0, 0
    while at < codes.shape[1]:
        await stream.push(codes[:, at : at + chunks[turn % len(chunks)]])
        at, turn = at + chunks[turn % len(chunks)], turn + 1
    stream.finish()


@pytest.mark.parametrize("chunks", [[1], [2, 1, 7], [25], [64], [1, 200], [500]], ids=str)
def test_streams_equal_offline_decoding_for_every_chunking(tiny_codec, chunks):
    """However codes come, at any number of levels, the samples are those of one whole decode."""

    async def main():
        with DecodeEngine(tiny_codec) as engine:
            for levels in (4, 1):
                codes = random_codes(300, levels)
                async with engine.open_stream(num_codebooks=levels) as stream:
                    feeding = asyncio.create_task(pushed(stream, codes, chunks))
                    assert close(await collected(stream), offline(tiny_codec, codes))
                    await feeding

    within(main())


def test_no_neighbour_changes_a_stream(tiny_codec):
    """Thirty-two streams join, pause, reset, park and leave at random; each utterance that ends is its own to 1e-5."""
    checked = []

    async def listener(engine, seed):
        chance = random.Random(seed)  # noqa: S311 - traffic, no secret
        await asyncio.sleep(chance.random() / 20)
        levels = chance.choice([1, 2, 4, 4])
        stream = engine.open_stream(num_codebooks=levels)
        for utterance in range(3):
            codes = random_codes(chance.randint(1, 60), levels, seed=1000 * seed + utterance)
            end = chance.choices(["finish", "reset", "leave"], [8, 2, 1])[0]
            at, heard, last = 0, [], codes.shape[1] if end == "finish" else chance.randrange(codes.shape[1])
            while at < last:
                frames = min(chance.choice([1, 1, 3, 25]), last - at)
                await stream.push(codes[:, at : at + frames])
                at += frames
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() / 100)
                if chance.random() < 0.1:
                    parked = stream.park()
                    await asyncio.sleep(chance.random() / 100)
                    stream = engine.resume(parked)
                if chance.random() < 0.2 and tiny_codec.spec.family == "patch":  # others hold samples back
                    heard.append(await stream.read())
            if end == "leave":
                stream.close()
                return
            if end == "reset":
                stream.reset()
                continue
            stream.finish()
            heard.append(await collected(stream))
            assert close(np.concatenate(heard, axis=1), offline(tiny_codec, codes)), f"listener {seed}"
            checked.append(seed)
            stream.reset()
        stream.close()

    async def main():
        with DecodeEngine(tiny_codec, EngineSettings(max_streams=33)) as engine:
            whole = random_codes(700)
            *_, beside = await asyncio.gather(*(listener(engine, seed) for seed in range(33)), engine.decode(whole))
            assert close(beside, offline(tiny_codec, whole))
            assert engine.health().active_streams == 0

    within(main(), 60.0)
    assert len(checked) > 40


def test_a_new_utterance_begins_in_the_same_slot(held):
    """After its end, in its middle and while a step runs: nothing of the one before is heard in the next."""
    first, second = random_codes(40, seed=1), random_codes(40, seed=2)

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_streams=1)) as engine:
            async with engine.open_stream(num_codebooks=4) as stream:
                await pushed(stream, first, [40])
                assert close(await collected(stream), offline(held.codec, first))
                with pytest.raises(StreamClosed, match="finished: reset"):
                    await stream.push(second)
                assert await stream.read() is None
                for end in (False, True):
                    stream.reset()
                    with held.held():
                        await stream.push(first)
                        if end:
                            stream.finish()
                        await held.stuck()
                        stream.reset()
                    await pushed(stream, second, [7])
                    assert close(await collected(stream), offline(held.codec, second))

    within(main())


def test_the_end_of_an_utterance_comes_with_its_last_sample(held):
    """Where networks hold nothing back, no step is taken for the end, whether it is known early or late."""
    watcher = Watcher()

    async def main():
        with DecodeEngine(held.codec, observer=watcher) as engine:
            async with engine.open_stream(num_codebooks=4) as stream:
                for early in (True, False):
                    await stream.push(random_codes(8))
                    if not early:
                        await stream.read()
                    stream.finish()
                    stream.finish()
                    await collected(stream)
                    stream.reset()
                stream.finish()
                assert await stream.read() is None
            await engine.decode(random_codes(8))

    within(main())
    assert [frames for _, _, frames, _ in watcher.named("step")] == [8, 8, 8]


def test_a_reader_that_waits_hears_the_next_utterance_after_a_reset(held):
    """A reset does not end the iterator, unless the utterance had ended."""
    codes = random_codes(5)

    async def main():
        with DecodeEngine(held.codec) as engine:
            async with engine.open_stream(num_codebooks=4) as stream:
                reading = asyncio.create_task(collected(stream))
                await asyncio.sleep(0)
                stream.reset()
                await pushed(stream, codes, [2])
                assert close(await reading, offline(held.codec, codes))

    within(main())


def test_closing_frees_the_slot_at_once_even_while_a_step_runs(held):
    """With one slot: the next stream opens while the model still works for the one before, and hears nothing of it."""
    codes = random_codes(30)

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_streams=1)) as engine:
            before = engine.open_stream(num_codebooks=4)
            with held.held():
                await before.push(random_codes(32, seed=5))
                await held.stuck()
                with pytest.raises(Overloaded):
                    engine.open_stream(num_codebooks=4)
                before.close()
                after = engine.open_stream(num_codebooks=4)
                await pushed(after, codes, [30])
            assert close(await collected(after), offline(held.codec, codes))
            before.close()
            assert engine.health().active_streams == 1

    within(main())


def test_whoever_waits_at_a_stream_that_is_closed_is_told(held):
    """Reader and writer hear StreamClosed at once, as does whoever comes later."""

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_backlog_s=0.01)) as engine:
            stream = engine.open_stream(num_codebooks=4)
            async with paused(engine):
                writing = asyncio.create_task(stream.push(random_codes(500)))
                reading = asyncio.create_task(stream.read())
                await asyncio.sleep(0.01)
                with pytest.raises(RuntimeError, match="another task waits"):
                    await stream.read()
                stream.close()
                for waiting in (writing, reading, stream.push(random_codes(1)), stream.read()):
                    with pytest.raises(StreamClosed, match="was closed"):
                        await waiting
                for call in (stream.finish, stream.reset, stream.park):
                    with pytest.raises(StreamClosed):
                        call()

    within(main())


def test_a_slow_reader_holds_up_only_itself(held):
    """Its backlog fills and its push waits; a neighbour goes on; then it gets everything."""
    codes, settings = random_codes(3000), EngineSettings(max_backlog_s=0.05)  # 150 frames

    async def main():
        with DecodeEngine(held.codec, settings) as engine:
            slow, quick = (engine.open_stream(num_codebooks=4) for _ in range(2))
            writing = asyncio.create_task(pushed(slow, codes, [100]))
            for _ in range(2):
                feeding = asyncio.create_task(pushed(quick, codes, [100]))
                assert close(await collected(quick), offline(held.codec, codes))
                await feeding
                quick.reset()
            assert not writing.done()
            decoded = sum(seen.shape[2] for seen in held.seen if seen.shape[0] == 1)
            assert decoded <= 2 * 3000 + 150 + 2 * settings.max_step_frames
            assert close(await collected(slow), offline(held.codec, codes))
            await writing

    within(main())


def test_a_push_that_is_larger_than_the_backlog_goes_in_by_pieces(held):
    """No chunk is too large, and none makes the engine keep more than its backlog."""
    codes = random_codes(400)

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_backlog_s=0.0001)) as engine:  # one frame
            async with engine.open_stream(num_codebooks=4) as stream:
                writing = asyncio.create_task(pushed(stream, codes, [400]))
                await asyncio.sleep(0.02)
                assert not writing.done()
                assert close(await collected(stream), offline(held.codec, codes))

    within(main())


def test_a_parked_stream_goes_on_exactly_where_it_stood(tiny_codec):
    """With codes not decoded and samples not read, at its start, in its middle and at its end; its slot is free."""
    codes = random_codes(50)

    async def main():
        with DecodeEngine(tiny_codec, EngineSettings(max_streams=1)) as engine:
            for at in (0, 1, 20, 50):
                stream, heard = engine.open_stream(num_codebooks=4), []
                if at:
                    await stream.push(codes[:, :at])
                parked = stream.park()
                assert parked.num_codebooks == 4
                async with engine.open_stream(num_codebooks=4) as other:
                    await pushed(other, random_codes(9, seed=3), [9])
                    await collected(other)
                    assert parked.nbytes < 200_000
                    with pytest.raises(Overloaded):
                        engine.resume(parked)
                with pytest.raises(StreamClosed, match="parked"):
                    await stream.push(codes)
                stream.close()
                again = engine.resume(parked)
                with pytest.raises(ValueError, match="resumed already"):
                    engine.resume(parked)
                if at < 50:
                    await again.push(codes[:, at:])
                again.finish()
                heard.append(await collected(again))
                assert close(np.concatenate(heard, axis=1), offline(tiny_codec, codes)), f"parked at {at}"
                again.close()

    within(main())


def test_a_stream_parked_while_its_step_runs_loses_nothing(held):
    """The step ends without it; what it gave, and the state after it, wait with the stream."""
    codes = random_codes(40)

    async def main():
        with DecodeEngine(held.codec) as engine:
            stream = engine.open_stream(num_codebooks=4)
            reading = asyncio.create_task(stream.read())
            with held.held():
                await stream.push(codes[:, :30])
                await held.stuck()
                parked = stream.park()
                with pytest.raises(StreamClosed, match="parked"):
                    await reading
                parked = engine.resume(parked).park()
            async with paused(engine):
                stream = engine.resume(parked)
            await stream.push(codes[:, 30:])
            stream.finish()
            assert close(await collected(stream), offline(held.codec, codes))
            stream.close()
            with DecodeEngine(held.codec) as elsewhere, pytest.raises(ValueError, match="another engine"):
                elsewhere.resume(parked)

    within(main())


def test_a_step_that_fails_under_a_parked_stream_is_told_when_it_resumes(held):
    """Its slot was given up once, not twice, and no slot is taken for a stream that cannot go on."""
    held.poison, watcher = 15, Watcher()

    async def main():
        with DecodeEngine(held.codec, observer=watcher) as engine:
            stream = engine.open_stream(num_codebooks=4)
            with held.held():
                await stream.push(np.full((4, 2), 15, np.uint16))
                await held.stuck()
                parked = stream.park()
            async with paused(engine):
                with pytest.raises(ServiceError, match="no room for this step"):
                    engine.resume(parked)
            assert engine.health().active_streams == 0

    within(main())
    assert len(watcher.named("stream_closed")) == len(watcher.named("stream_opened")) == 1


def test_streams_that_are_gone_leave_no_state_behind(held):
    """Closed, parked and dropped, or dropped without being closed: slots and network states are free."""

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_streams=3)) as engine:
            for _ in range(3):
                streams = [engine.open_stream(num_codebooks=4) for _ in range(3)]
                for stream in streams:
                    await stream.push(random_codes(3))
                    await stream.read()
                streams[0].close()
                streams[1].park()
                del stream, streams
                gc.collect()
            assert await engine.run(iter([1])) == [1]
            assert engine.health().active_streams == 0
            assert engine._thread._states._places == {}

    within(main())


@pytest.mark.parametrize("codes", [random_codes(3, 3), random_codes(3) + 15, random_codes(3)[:, :0], np.ones((4, 3))])
def test_a_push_is_checked_at_the_door(held, codes):
    """Other levels than the stream was opened for, too high ones, none, or no integers: the stream goes on without."""
    good = random_codes(3)

    async def main():
        with DecodeEngine(held.codec) as engine:
            for levels in (0, 5):
                with pytest.raises(CodesError, match="num_codebooks must be 1 to 4"):
                    engine.open_stream(num_codebooks=levels)
            async with engine.open_stream(num_codebooks=4) as stream:
                with pytest.raises(CodesError):
                    await stream.push(codes)
                await pushed(stream, good, [1])
                assert close(await collected(stream), offline(held.codec, good))

    within(main())


def test_a_reset_right_after_a_parked_stream_goes_on_starts_anew(held):
    """The state that was parked belongs to the utterance before: the next one hears nothing of it."""
    before, after = random_codes(20, seed=1), random_codes(20, seed=2)

    async def main():
        with DecodeEngine(held.codec) as engine:
            stream = engine.open_stream(num_codebooks=4)
            await stream.push(before)
            await stream.read()
            parked = stream.park()
            while parked.nbytes == 0:  # until the model thread has handed the state out
                await asyncio.sleep(0.001)
            async with paused(engine):
                stream = engine.resume(parked)
                stream.reset()
                await pushed(stream, after, [5])
            assert close(await collected(stream), offline(held.codec, after))

    within(main())
