"""Streams over WebSockets: what a client hears is offline decoding, and what it does wrong is said to it."""

import asyncio
import json
import socket
import time

import numpy as np
import pytest

from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings
from pipelines.serving.service_stream import StreamLimits
from pipelines.serving.stream_protocol import MAX_MESSAGE_BYTES
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import wait_until
from tests.pipelines.wire_streams import assert_still_right, heard, offline, opened, some_codes, started, streaming


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


@pytest.fixture(scope="module")
def url(codec):
    """One service for all tests that leave it as it was."""
    with streaming(codec) as (url, _):
        yield url


def test_a_stream_is_offline_decoding(tiny_codec):
    """Codes of any codec that streams, cut anywhere, come out as one whole decode; the end says how much it was."""
    codes = some_codes(60)
    with streaming(tiny_codec) as (url, _):
        for cuts in ([], [1], [7, 8, 30], range(1, 60)):
            sound, end = asyncio.run(heard(url, codes, cuts))
            np.testing.assert_allclose(sound, offline(tiny_codec, codes), atol=1e-5)
            assert end == {"type": "end", "utterance": 0, "num_samples": 480, "num_frames": 60}


def test_the_first_answer_says_what_is_needed_to_play(url, codec):
    """Rate, channels and levels; K is asked for by number or by bandwidth."""

    async def talk(**fields):
        async with started(url, **fields) as (_, answer):
            return answer

    answer = asyncio.run(talk(codec="tiny"))
    assert answer["type"] == "started"
    assert (answer["sample_rate"], answer["channels"], answer["hop_length"], answer["frame_rate"]) == (
        24000,
        1,
        8,
        3000,
    )
    assert (answer["num_codebooks"], answer["codebook_size"], answer["codec"]) == (4, 16, "tiny")
    assert asyncio.run(talk(num_codebooks=3))["num_codebooks"] == 3
    assert asyncio.run(talk(bandwidth_kbps=2 * codec.spec.level_kbps))["num_codebooks"] == 2
    tokens = {asyncio.run(talk())["resume_token"] for _ in range(3)}
    assert len(tokens) == 3


def test_fewer_levels_and_16_bits(url, codec):
    """A stream of two levels sounds like decoding two levels; s16le is the same sound, rounded."""
    codes = some_codes(50, num_codebooks=2)
    sound, _ = asyncio.run(heard(url, codes, [20], num_codebooks=2))
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)

    async def in_16_bits():
        async with started(url, num_codebooks=2, pcm="s16le") as (wire, _):
            await wire.push(codes)
            await wire.finish()
            return b"".join([m async for m in wire.websocket if isinstance(m, bytes) or await wire.websocket.close()])

    rounded = np.frombuffer(asyncio.run(in_16_bits()), "<i2")[None]
    np.testing.assert_allclose(rounded / 32768, np.clip(sound, -1, 32767 / 32768), atol=0.51 / 32768)


def test_utterances_follow_each_other_in_one_stream(url, codec):
    """Each begins anew, is numbered, and may be sent before the one before has been heard. One may be empty."""
    spoken = [some_codes(n, seed=n) for n in (30, 0, 5, 90)]

    async def talk():
        async with started(url) as (wire, _):
            for codes in spoken:
                if codes.shape[1]:
                    await wire.push(codes)
                await wire.finish()
            return [await wire.utterance() for _ in spoken]

    for number, (codes, (sound, end)) in enumerate(zip(spoken, asyncio.run(talk()), strict=True)):
        assert (end["utterance"], end["num_frames"]) == (number, codes.shape[1])
        assert sound.shape[1] == 8 * codes.shape[1]
        if codes.shape[1]:
            np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


def test_a_reset_drops_what_is_pending(url, codec):
    """After its confirmation only what was pushed after it is heard, however much waited before."""
    codes = some_codes(40)

    async def talk():
        async with started(url) as (wire, _):
            for _ in range(20):
                await wire.push(some_codes(3000, seed=1))
            await wire.finish()
            await wire.push(some_codes(3000, seed=2))
            await wire.say(type="reset")
            await wire.push(codes)
            await wire.finish()
            while (await wire.utterance())[1] != {"type": "reset", "utterance": 2}:
                pass
            return await wire.utterance()

    sound, end = asyncio.run(talk())
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)
    assert (end["utterance"], end["num_samples"]) == (2, 320)


def test_each_of_many_clients_hears_its_own_codes(url, codec):
    """Twenty at once, with their own levels, cuts and pauses."""

    async def client(seed):
        rng = np.random.default_rng(seed)
        levels = int(rng.integers(1, 5))
        async with started(url, num_codebooks=levels) as (wire, _):
            for number in range(3):
                codes = some_codes(int(rng.integers(1, 120)), seed=seed * 10 + number, num_codebooks=levels)
                for piece in np.array_split(codes, int(rng.integers(1, 6)), axis=1):
                    if piece.shape[1]:
                        await wire.push(piece)
                    await asyncio.sleep(float(rng.uniform(0, 0.01)))
                await wire.finish()
                sound, end = await wire.utterance()
                assert end["utterance"] == number
                np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)

    async def everybody():
        await asyncio.gather(*(client(seed) for seed in range(20)))

    asyncio.run(everybody())


BAD_MESSAGES = {
    "odd number of bytes": (b"\x00" * 9, "invalid_codes", 1007),
    "part of a frame": (b"\x00\x00" * 6, "invalid_codes", 1007),
    "code V": (b"\x10\x00" * 4, "invalid_codes", 1007),
    "code 65535": (b"\xff\xff" * 4, "invalid_codes", 1007),
    "too many codes": (b"\x00" * (MAX_MESSAGE_BYTES + 8), "too_large", 1009),
    "codes as text": ("[[1, 2, 3, 4]]", "invalid_message", 1007),
    "no JSON": ("0 0 0 0", "invalid_message", 1007),
    "an unknown word": ('{"type": "stop"}', "wrong_message_type", 1003),
    "a second start": ('{"type": "start"}', "wrong_message_type", 1003),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_bad_message_ends_its_stream_alone(url, codec, case):
    """It is told why by a typed error; its neighbour hears nothing of it."""
    message, kind, code = BAD_MESSAGES[case]

    async def talk():
        async with started(url) as (neighbour, _), started(url) as (wire, _):
            await neighbour.push(some_codes(20))
            await wire.push(some_codes(10))
            await wire.websocket.send(message)
            said = await wire.last_words()
            await neighbour.finish()
            return said, (await neighbour.utterance())[0]

    (error, closed), sound = asyncio.run(talk())
    assert (error["type"], closed) == (kind, code)
    np.testing.assert_allclose(sound, offline(codec, some_codes(20)), atol=1e-5)


@pytest.mark.parametrize("manner", ["cut", "closed"])
@pytest.mark.parametrize("busy", [False, True], ids=["resting", "busy"])
def test_a_client_that_leaves_frees_its_slot_within_half_a_second(codec, manner, busy):
    """Whether it says goodbye or vanishes, and however much it had still asked for."""

    async def talk(url, engine):
        async with started(url) as (wire, _):
            for _ in range(40 if busy else 0):
                await wire.push(some_codes(6000))
            assert engine.health().active_streams == 1
            if manner == "cut":
                wire.cut()
            else:
                await wire.websocket.close()
            return await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 0)

    with streaming(codec) as (url, engine):
        assert asyncio.run(talk(url, engine)) < 0.5


def test_a_reader_that_does_not_read_is_cut(codec):
    """After the write timeout its slot is free and its connection dropped; a neighbour goes on all the while."""

    async def talk(url, engine):
        loop = asyncio.get_running_loop()
        host, port = url.removeprefix("http://").split(":")
        stuck = socket.create_connection((host, int(port)))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(
            b"GET /v1/audio/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        stuck.settimeout(5)
        assert b"101" in stuck.recv(1024)
        stuck.sendall(_frame(1, b'{"pcm": "f32le"}'))
        codes = _frame(2, bytes(8 * 6000))
        sending = loop.run_in_executor(None, _send_until_cut, stuck, codes)
        await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 1)
        waited = await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 0, 60)
        sound, _ = await heard(url, some_codes(20))
        dropped = await sending
        stuck.close()
        return waited, sound, dropped

    settings = ServiceSettings(write_timeout_s=0.5)
    with streaming(codec, settings, send_buffer=8192) as (url, engine):
        waited, sound, dropped = asyncio.run(talk(url, engine))
    assert dropped
    assert waited > 0.4
    np.testing.assert_allclose(sound, offline(codec, some_codes(20)), atol=1e-5)


def _frame(opcode, payload):
    """A masked WebSocket frame, with a mask of zeros (RFC 6455, 5.2)."""
    length = len(payload)
    head = bytes([0x80 | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += bytes([0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


def _send_until_cut(stuck, message):
    """True where the server dropped the connection."""
    stuck.settimeout(10)
    try:
        for _ in range(1000):
            stuck.sendall(message)
    except OSError as error:
        return not isinstance(error, TimeoutError)
    return False


def test_a_client_that_says_nothing_is_asked_to_leave(codec):
    """At first within the read timeout; later, between utterances, only after a much longer time."""

    async def talk(url):
        async with opened(url) as silent:
            first = await silent.last_words()
        async with started(url) as (wire, _):
            await wire.push(some_codes(10))
            await wire.finish()
            await wire.utterance()
            return first, await wire.last_words()

    limits = StreamLimits(idle_timeout_s=0.4)
    with streaming(codec, ServiceSettings(read_timeout_s=0.2), limits=limits) as (url, engine):
        first, later = asyncio.run(talk(url))
        assert engine.health().active_streams == 0
    assert first[0]["type"] == later[0]["type"] == "idle"
    assert first[1] == later[1] == 1008


def test_pauses_do_not_end_a_stream(codec):
    """A model that thinks longer than the read timeout between two sentences goes on in the same stream."""
    codes = some_codes(20)

    async def talk(url):
        async with started(url) as (wire, _):
            await wire.push(codes[:, :10])
            await asyncio.sleep(0.5)
            await wire.push(codes[:, 10:])
            await wire.finish()
            return await wire.utterance()

    with streaming(codec, ServiceSettings(read_timeout_s=0.1, write_timeout_s=0.1)) as (url, _):
        sound, _ = asyncio.run(talk(url))
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)


def test_a_service_that_drains_lets_a_stream_finish_its_utterance(codec):
    """Then it says so and closes; a client connects again, and another replica answers."""
    codes = some_codes(30)

    async def talk(url, engine):
        async with started(url) as (wire, _):
            await wire.push(codes[:, :10])
            drained = asyncio.create_task(engine.drain(5))
            await asyncio.sleep(0.6)
            await wire.push(codes[:, 10:])
            await wire.finish()
            return await wire.utterance(), await wire.last_words(), await drained

    with streaming(codec) as (url, engine):
        (sound, end), (error, code), drained = asyncio.run(talk(url, engine))
    np.testing.assert_allclose(sound, offline(codec, codes), atol=1e-5)
    assert end["type"] == "end"
    assert (error["type"], code, drained) == ("draining", 1012, True)


class SlowSecondStep:
    """A codec whose second step takes its time."""

    def __init__(self, codec):
        self.step, self.steps = codec.decode_step, 0

    def __call__(self, codes, state):
        self.steps += 1
        if self.steps == 2:
            time.sleep(0.3)
        return self.step(codes, state)


def test_a_listener_who_runs_dry_is_counted(codec, monkeypatch):
    """First packets, underruns, ended and refused streams stand in the metrics."""
    metrics = ServiceMetrics()

    async def talk(url):
        async with started(url) as (wire, _):
            await wire.push(some_codes(100))
            await wire.hear()
            await wire.push(some_codes(100))
            await wire.finish()
            await wire.utterance()
        async with opened(url) as wire:
            await wire.say(codec="other")
            await wire.last_words()

    with streaming(codec, metrics=metrics) as (url, _):
        with monkeypatch.context() as slow:
            slow.setattr(codec, "decode_step", SlowSecondStep(codec))
            asyncio.run(talk(url))
        wait_until(lambda: b'status="1000"' in metrics.render())
    figures = dict(line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    assert float(figures['quantone_serve_first_audio_seconds_count{codec="tiny"}']) == 1
    assert float(figures['quantone_serve_underruns_total{codec="tiny"}']) >= 1
    route = 'codec="tiny",route="/v1/audio/stream"'
    assert float(figures[f'quantone_serve_requests_total{{{route},status="1000"}}']) == 1
    assert float(figures[f"quantone_serve_audio_seconds_total{{{route}}}"]) == pytest.approx(1600 / 24000)
    assert float(figures['quantone_serve_rejected_total{codec="",reason="unknown_codec"}']) == 1


def test_a_failure_inside_says_nothing_of_the_inside(codec, monkeypatch):
    """A step that raises ends the stream with a typed error without a trace; the next stream is right again."""

    async def talk(url):
        async with started(url) as (wire, _):
            await wire.push(some_codes(10))
            return await wire.last_words()

    with streaming(codec) as (url, _):
        with monkeypatch.context() as broken:
            broken.setattr(codec, "decode_step", _broken)
            error, code = asyncio.run(talk(url))
        assert (error["type"], code) == ("internal_error", 1011)
        assert "secret" not in json.dumps(error)
        assert_still_right(url, codec)


def _broken(*_):
    raise RuntimeError("a secret of the inside")
