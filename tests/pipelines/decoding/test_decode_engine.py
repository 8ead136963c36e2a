"""One engine, many callers: each gets its own answer, and no caller can hurt another."""

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
import torch

from pipelines.decoding import decode_steps
from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.decoding.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError, StreamClosed
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.engines import HeldCodec, Watcher, close, collected, offline, paused, random_codes, within
from tokenizer import CodesError


@pytest.fixture
def held():
    return HeldCodec()


def test_utterances_decoded_together_are_those_decoded_alone(tiny_codec):
    """Thirty at once, of any length and number of levels, whole and in blocks, each to the sample that was asked."""

    async def main():
        with DecodeEngine(tiny_codec) as engine:

            async def one(seed):
                frames, levels = 1 + 17 * seed % 150, 1 + seed % 4
                codes, length = random_codes(frames, levels, seed), 8 * frames - seed % 8
                expected = offline(tiny_codec, codes, length)
                assert close(await engine.decode(codes, num_samples=length), expected)
                assert close(await collected(engine.decode_blocks(codes.astype(np.int64))), offline(tiny_codec, codes))

            await asyncio.gather(*map(one, range(30)))

    within(main())


def test_codecs_that_cannot_stream_decode_block_by_block():
    """With segments and their loudness: the very samples of the codec, and a length even where none is given."""
    codec = make_codec(tiny_spec("segmented"))

    async def main():
        with DecodeEngine(codec, EngineSettings(max_backlog_s=0.001)) as engine:  # one block waits for its reader
            encoded = codec.encode(torch.randn(2, 700, generator=torch.Generator().manual_seed(0)))
            codes, scales, expected = encoded.codes[0].numpy(), encoded.scales[0].numpy(), codec.decode(encoded)[0]
            assert np.array_equal(await engine.decode(codes, num_samples=700, scales=scales), expected.numpy())
            blocks = [block async for block in engine.decode_blocks(codes, num_samples=700, scales=scales)]
            assert len(blocks) > 1
            assert np.array_equal(np.concatenate(blocks, axis=1), expected.numpy())
            waveform = await engine.decode(codes, scales=scales)
            assert codec.spec.num_frames(waveform.shape[1]) == codes.shape[1]
            with pytest.raises(ValueError, match="no streams"):
                engine.open_stream(num_codebooks=4)
            with pytest.raises(CodesError, match="scales"):
                await engine.decode(codes, num_samples=700)

    within(main())


def test_streams_that_push_together_share_steps_and_keep_their_batch(held, monkeypatch):
    """Eight streams with a frame each: steps of eight. Their batch is put together again only when one has left."""
    watcher, cuts, put_together = Watcher(), [], decode_steps._put_together
    monkeypatch.setattr(decode_steps, "_put_together", lambda runs: cuts.append(len(runs)) or put_together(runs))

    async def main():
        with DecodeEngine(held.codec, observer=watcher) as engine:
            streams = [engine.open_stream(num_codebooks=4) for _ in range(8)]

            async def together():
                async with paused(engine):
                    for stream in streams:
                        await stream.push(random_codes(1))
                for stream in streams:
                    assert (await stream.read()).shape == (1, 8)

            for _ in range(6):
                await together()
            assert cuts == []
            streams.pop(3).close()
            for _ in range(6):
                await together()
            assert cuts == [2]

    within(main())
    assert [streams for streams, *_ in watcher.named("step")] == [8] * 6 + [7] * 6


def test_late_work_never_reaches_the_networks(held):
    """The caller hears of it at the deadline, even while the model thread is busy; its codes are never decoded."""
    late = np.full((4, 3), 9, np.uint16)
    watcher = Watcher()

    async def main():
        with DecodeEngine(held.codec, observer=watcher) as engine:
            async with paused(engine):
                began = time.monotonic()
                with pytest.raises(DeadlineExceeded):
                    await engine.decode(late, deadline_s=0.05)
                with pytest.raises(DeadlineExceeded):
                    await engine.run(iter([pytest.fail]), deadline_s=0.01)
                with pytest.raises(DeadlineExceeded):
                    await collected(engine.decode_blocks(late, deadline_s=-1.0))
                assert time.monotonic() - began < 2
            assert (await engine.decode(random_codes(5), deadline_s=10.0)).shape == (1, 40)
            assert engine.health().queued == 0

    within(main())
    assert not any((codes == 9).all() for codes in held.seen)
    assert watcher.named("expired") == [["utterance"], ["work"], ["utterance"]]


def test_a_step_that_fails_fails_those_who_took_part_and_nobody_else(held):
    """They hear which step and why; a stream beside them goes on, and so does the engine."""
    held.poison = 15
    good, bad = np.zeros((4, 5), np.uint16), np.full((4, 5), 15, np.uint16)

    async def main():
        with DecodeEngine(held.codec) as engine:
            bystander, victim = (engine.open_stream(num_codebooks=4) for _ in range(2))
            await bystander.push(good)
            first = await bystander.read()
            await victim.push(bad)
            with pytest.raises(ServiceError, match="decoding step failed: MemoryError: no room for this step"):
                await victim.read()
            with pytest.raises(ServiceError, match="no room"):
                await victim.push(good)
            with pytest.raises(ServiceError, match="no room"):
                await engine.decode(bad)
            assert engine.health().active_streams == 1
            await bystander.push(good)
            both = np.concatenate([first, await bystander.read()], axis=1)
            held.poison = None
            assert close(both, offline(held.codec, np.zeros((4, 10), np.uint16)))
            assert engine.health().ok

    within(main())


def test_a_full_queue_turns_work_away_and_draining_all_of_it(held):
    """What was taken in goes to its end; a drain that takes too long says so."""
    settings = EngineSettings(max_streams=2, max_queued=2)
    watcher = Watcher()

    async def main():
        with DecodeEngine(held.codec, settings, watcher) as engine:
            stream, other = (engine.open_stream(num_codebooks=levels) for levels in (4, 1))
            with pytest.raises(Overloaded, match="all 2 stream slots"):
                engine.open_stream(num_codebooks=4)
            async with paused(engine):
                taken = [asyncio.create_task(engine.decode(random_codes(4, seed=seed))) for seed in range(10)]
                await asyncio.sleep(0)
                with pytest.raises(Overloaded, match="queue is full: 2 requests wait") as refused:
                    engine.decode_blocks(random_codes(4))
                assert refused.value.retry_after_s > 0
                assert engine.health().queued == 2
                assert not await engine.drain(0.05)
                for refused in (engine.decode(random_codes(4)), engine.run(iter([1]))):
                    with pytest.raises(Draining):
                        await refused
                with pytest.raises(Draining):
                    engine.open_stream(num_codebooks=4)
            assert [waveform.shape for waveform in await asyncio.gather(*taken)] == [(1, 32)] * 10
            await stream.push(random_codes(4))
            assert (await stream.read()).shape == (1, 32)
            assert not await engine.drain(0.0)
            stream.close()
            del other  # dropped without being closed
            gc.collect()
            assert await engine.drain(5.0)

    within(main())
    assert watcher.named("rejected") == [["stream"], ["utterance"], ["utterance"], ["work"], ["stream"]]


def test_other_work_runs_between_steps_and_hurts_nobody(held):
    """In order, in inference mode, on one thread; its errors are its caller's; streams go on between its pieces."""

    async def main():
        with DecodeEngine(held.codec) as engine:
            stream = engine.open_stream(num_codebooks=4)
            seen = []

            def pieces(count):
                for index in range(count):
                    seen.append((threading.current_thread().name, torch.is_inference_mode_enabled()))
                    time.sleep(0.002)
                    yield index

            def broken():
                yield 1
                raise KeyError("mine")

            working = asyncio.create_task(engine.run(pieces(100)))
            for index in range(10):
                await stream.push(random_codes(1))
                assert (await stream.read()).shape == (1, 8)
                assert not working.done(), f"the stream waited for all of the work at frame {index}"
            with pytest.raises(KeyError, match="mine"):
                await engine.run(broken())
            assert await working == list(range(100))
            assert set(seen) == {("decode-engine", True)}

    within(main())


def test_long_utterances_do_not_hold_up_a_stream(held):
    """Eight of them decode beside it; whenever it has a frame, that frame is in the very next step."""

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_step_frames=8)) as engine:
            decoding = [asyncio.create_task(engine.decode(random_codes(50_000, seed=seed))) for seed in range(8)]
            async with engine.open_stream(num_codebooks=4) as stream:
                for seed in range(20):
                    frame = random_codes(1, seed=100 + seed)
                    async with paused(engine):
                        await stream.push(frame)
                        steps = len(held.seen)
                    await stream.read()
                    assert (held.seen[steps] == frame).all(axis=(1, 2)).any()
                    assert len(held.seen[steps]) == 9, "the utterances go on beside it"
            for one in decoding:
                assert not one.done()
                one.cancel()

    within(main())


def test_readers_that_are_behind_hold_up_no_other_utterance(held):
    """Twenty answers that nobody reads, and the next request is served at once."""

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_backlog_s=0.001)) as engine:
            unread = [engine.decode_blocks(random_codes(500)) for _ in range(20)]
            assert (await engine.decode(random_codes(50))).shape == (1, 400)
            for blocks in unread:
                assert close(await collected(blocks), offline(held.codec, random_codes(500)))

    within(main())


def test_a_caller_who_gives_up_frees_its_place(held):
    """Cancelled while it waits or while it runs, closed or dropped unread: nothing of it goes on."""

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_step_frames=1)) as engine:
            async with paused(engine):
                waiting = asyncio.create_task(engine.decode(random_codes(1000)))
                blocks = engine.decode_blocks(random_codes(1000))
                await asyncio.sleep(0)
                waiting.cancel()
                await blocks.aclose()
                engine.decode_blocks(random_codes(1000))
                gc.collect()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(StreamClosed):
                await anext(blocks)
            assert await engine.drain(5.0)

    within(main())
    assert held.seen == []


def test_a_reader_of_blocks_that_does_not_read_is_waited_for(held):
    """It keeps a bounded amount unread, holds nobody up, and gets all of it in the end."""
    codes = random_codes(2000)

    async def main():
        with DecodeEngine(held.codec, EngineSettings(max_backlog_s=0.02)) as engine:
            blocks = engine.decode_blocks(codes)
            assert (await engine.decode(random_codes(500))).shape == (1, 4000)
            first = await anext(blocks)
            assert first.shape[1] <= 480 + 32 * 8
            rest = await collected(blocks)
            assert close(np.concatenate([first, rest], axis=1), offline(held.codec, codes))

    within(main())


def test_callers_on_several_loops_share_one_engine(tiny_codec):
    """Three threads, each with its own asyncio loop, streams and utterances: everybody gets its own answer."""
    failures = []

    async def caller(engine, seed):
        async def one(index):
            codes = random_codes(20 + index, 1 + index % 4, seed=10 * seed + index)
            async with engine.open_stream(num_codebooks=codes.shape[0]) as stream:
                for frame in range(codes.shape[1]):
                    await stream.push(codes[:, frame : frame + 1])
                stream.finish()
                assert close(await collected(stream), offline(tiny_codec, codes))
            assert close(await engine.decode(codes), offline(tiny_codec, codes))

        await asyncio.gather(*map(one, range(6)))

    def on_its_own_loop(engine, seed):
        try:
            within(caller(engine, seed))
        except Exception as error:  # noqa: BLE001 - raised in the test's own thread below
            failures.append(error)

    with DecodeEngine(tiny_codec) as engine:
        threads = [threading.Thread(target=on_its_own_loop, args=(engine, seed)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.parametrize("codes", [random_codes(3) + 16, random_codes(2), random_codes(3, 5), np.zeros((4, 3))])
def test_codes_are_checked_at_the_door(held, codes):
    """What the codec cannot mean raises CodesError from the call itself, and the next good request is right."""

    async def main():
        with DecodeEngine(held.codec) as engine:
            with pytest.raises(CodesError):
                await engine.decode(codes, num_samples=24)
            with pytest.raises(CodesError):
                engine.decode_blocks(codes, num_samples=24)
            good = random_codes(3)
            assert close(await engine.decode(good, num_samples=17), offline(held.codec, good, 17))

    within(main())
    assert all(seen.shape == (1, 4, 3) for seen in held.seen)


@pytest.mark.parametrize("limit", ["max_streams", "max_step_frames", "max_queued", "max_backlog_s", "stuck_after_s"])
def test_limits_are_positive(limit):
    """A limit that nothing could pass is an error at once."""
    with pytest.raises(ValueError, match=limit):
        EngineSettings(**{limit: -1})
