"""The model thread: its health can be seen, and when it ends, nobody is left waiting."""

import asyncio
import threading

import pytest

from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.decoding.decode_errors import StreamClosed
from tests.pipelines.engines import HeldCodec, random_codes, within


@pytest.fixture
def held():
    return HeldCodec()


def test_health_names_a_thread_that_is_stuck_or_dead(held):
    """A step that does not end is no health after `stuck_after_s`, and health again when it ends; so for the thread."""
    settings = EngineSettings(stuck_after_s=0.1)
    engine = DecodeEngine(held.codec, settings)
    assert engine.health().reason == "the engine was not started"

    async def main():
        with engine:
            assert engine.health().ok
            with held.held():
                decoding = asyncio.create_task(engine.decode(random_codes(3)))
                await held.stuck()
                assert engine.health().ok
                await asyncio.sleep(0.15)
                sick = engine.health()
                assert not sick.ok
                assert "stuck in one step" in sick.reason
                assert sick.last_step_age_s > 0.1
            await decoding
            await engine.decode(random_codes(3))
            assert engine.health().ok
        assert engine.health().reason == "the engine has stopped"

    within(main())


def test_a_model_thread_that_dies_leaves_nobody_waiting(held, monkeypatch):
    """What no handler may catch ends the thread: health says so, and everything open is told."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    async def main():
        with DecodeEngine(held.codec) as engine:
            stream = engine.open_stream(num_codebooks=4)
            reading = asyncio.create_task(stream.read())

            def deadly():
                raise SystemExit(3)
                yield

            with pytest.raises(StreamClosed, match="model thread has died of SystemExit"):
                await engine.run(deadly())
            with pytest.raises(StreamClosed, match="died"):
                await reading
            with pytest.raises(StreamClosed, match="died"):
                await engine.decode(random_codes(3))
            assert not engine.health().ok
            assert "died of SystemExit" in engine.health().reason

    within(main())


def test_stopping_ends_what_is_open_and_starting_again_serves_again(held):
    """Waiting callers hear StreamClosed; so does whoever comes later."""

    async def main():
        engine = DecodeEngine(held.codec)
        with pytest.raises(StreamClosed, match="not running"):
            await engine.decode(random_codes(3))
        for _ in range(2):
            with engine:
                with pytest.raises(RuntimeError, match="runs already"):
                    engine.start()
                stream = engine.open_stream(num_codebooks=4)
                reading = asyncio.create_task(stream.read())
                assert (await engine.decode(random_codes(3))).shape == (1, 24)
            with pytest.raises(StreamClosed, match="has stopped"):
                await reading
            with pytest.raises(StreamClosed, match="has stopped"):
                engine.open_stream(num_codebooks=4)

    within(main())
