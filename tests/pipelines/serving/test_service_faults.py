"""The service when things go wrong around it: too much is asked, many leave at once, its model thread hangs."""

import asyncio
import json
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from pipelines.benchmarking.bench_overload import bench_overload
from pipelines.benchmarking.bench_requests import Utterance
from pipelines.benchmarking.bench_servers import LoadGenerator, ServerProcess, listen_alone, one_core_each
from pipelines.benchmarking.load_connections import HttpConnection, StreamConnection, http_request
from pipelines.decoding.engine_settings import EngineSettings
from pipelines.serving.serve_arguments import ServeArguments
from pipelines.serving.stream_protocol import codes_message
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.engines import HeldCodec
from tests.pipelines.running_service import running_service, wait_until
from tests.pipelines.service_calls import DECODE, app_of, assert_serves_right, error_of, some_codes
from tokenizer import load_codec

JSON = "application/json"
PLACES = 8 + 64  # of whole utterances: at once, and waiting


def address_of(url):
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


@pytest.fixture
def codec():
    return make_codec(tiny_spec("patch"))


@pytest.mark.slow
def test_three_times_too_much_costs_only_those_who_are_too_many():
    """Nine of ten answers that it can give it still gives, as fast as at its peak; the others hear when to come again.

    The benchmark measures it for a minute and on a quiet machine: here is room for what else the machine does.
    """
    spec = load_codec("speech_24khz").spec
    arguments = ServeArguments.from_dict({"threads": 1})
    server_cores, load_cores = one_core_each()
    with LoadGenerator(load_cores) as load, ServerProcess(listen_alone, arguments, cores=server_cores) as server:
        request = Utterance.of(spec, 1.0).decode_request
        measured = bench_overload(load, server, request, places=PLACES, peak_s=6.0, seconds=10.0)
        assert server.metric("quantone_serve_rejected_total") == measured.refused
    assert measured.other_answers == {}
    assert measured.without_retry_after == 0
    assert measured.goodput_ratio > 0.75
    assert measured.latency_ratio < 2.0
    assert measured.refused_p50_s < 0.1
    assert measured.memory_growth < 0.1


def test_many_who_leave_at_once_free_all_their_places(codec):
    """Streams in the middle of their sound and requests in the queue, all gone in one moment, and soon forgotten."""
    app = app_of(codec, engine=EngineSettings(max_streams=40))
    engine = app.state.engines[codec.name]
    request = http_request("POST", DECODE, json.dumps({"codes": some_codes(codec, 20000).tolist()}).encode(), JSON)

    async def crowd(address):
        streams = [await StreamConnection.open(address, {}, lambda *_: None) for _ in range(40)]
        await asyncio.to_thread(wait_until, lambda: engine.health().active_streams == 40)
        callers = [await HttpConnection.open(address) for _ in range(40)]
        asked = [asyncio.create_task(caller.ask(request)) for caller in callers]
        for stream in streams:
            stream.send(codes_message(some_codes(codec, 20000)))
        await asyncio.to_thread(wait_until, lambda: engine.health().queued > 20)
        for connection in (*streams, *callers):
            connection.close()
        await asyncio.gather(*asked, return_exceptions=True)

    with running_service(app) as url:
        asyncio.run(crowd(address_of(url)))
        assert wait_until(lambda: engine._board.empty) < 1.0
        with httpx2.Client(base_url=url, timeout=20) as client:
            assert_serves_right(client, codec)


def test_connections_leave_nothing_behind(codec):
    """Neither file descriptors nor tasks nor parked streams, however they end: answered, refused, cut or vanished."""
    app = app_of(codec, resume_window_s=0.2)

    @app.get("/tasks")
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    good = http_request("POST", DECODE, json.dumps({"codes": some_codes(codec, 9).tolist()}).encode(), JSON)
    long = http_request("POST", DECODE, json.dumps({"codes": some_codes(codec, 9000).tolist()}).encode(), JSON)
    bad = http_request("POST", DECODE, b"{", JSON)

    async def one_round(address):
        for request in (good, bad):
            caller = await HttpConnection.open(address)
            await caller.ask(request)
            caller.close()
        gone = await HttpConnection.open(address)
        asked = asyncio.create_task(gone.ask(long))
        await asyncio.sleep(0)
        gone.close()
        heard = asyncio.Event()
        stream = await StreamConnection.open(address, {}, lambda *_: heard.set())
        await heard.wait()
        stream.send(codes_message(some_codes(codec, 30)))
        stream.close()
        refused = await StreamConnection.open(address, {"codec": "nobody's"}, lambda *_: None)
        await refused.ended
        await asyncio.gather(asked, return_exceptions=True)

    async def rounds(address, count):
        for _ in range(count):
            await one_round(address)

    with running_service(app) as url, httpx2.Client(base_url=url, timeout=20) as client:

        def held():
            tasks = client.get("/tasks").json()  # first: it opens the connection of this client
            return np.array([tasks, len(list(Path("/proc/self/fd").iterdir()))])

        asyncio.run(rounds(address_of(url), 5))
        time.sleep(1.0)
        before = held()
        asyncio.run(rounds(address_of(url), 40))
        wait_until(lambda: not (held() > before).any())
        assert_serves_right(client, codec)


def test_a_model_thread_that_hangs_is_seen_from_outside_and_heals():
    """/healthz and /readyz fail while one step does not end, say so at once, and are well again after it."""
    held = HeldCodec()
    app = app_of(held.codec, engine=EngineSettings(stuck_after_s=0.2))
    with running_service(app) as url, httpx2.Client(base_url=url, timeout=20) as client:
        assert client.get("/healthz").status_code == 200
        with held.held():
            waiting = threading.Thread(target=client.post, args=(DECODE,), kwargs={"json": {"codes": [[1, 2, 3]]}})
            waiting.start()
            wait_until(lambda: client.get("/healthz").status_code == 503)
            began = time.monotonic()
            health = client.get("/healthz").json()
            assert time.monotonic() - began < 0.5
            assert health["status"] == "failing"
            assert "stuck in one step" in health["codecs"][held.codec.name]["reason"]
            assert client.get("/readyz").status_code == 503
        waiting.join(10)
        wait_until(lambda: client.get("/healthz").status_code == 200)
        assert_serves_right(client, held.codec)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_thread_that_is_dead_turns_everybody_away(codec, monkeypatch):
    """Requests get 503 at once and typed, streams their last word, and health says what happened."""
    app = app_of(codec)
    engine = app.state.engines[codec.name]
    with running_service(app) as url, httpx2.Client(base_url=url, timeout=20) as client:
        assert_serves_right(client, codec)

        def die(*_):
            raise SystemExit("out of memory")

        monkeypatch.setattr(engine._thread, "_step", die)
        first = client.post(DECODE, json={"codes": [[1, 2, 3]]})
        assert error_of(first) == (503, "unavailable")
        began = time.monotonic()
        assert error_of(client.post(DECODE, json={"codes": [[1, 2, 3]]})) == (503, "unavailable")
        words = asyncio.run(_first_words(address_of(url)))
        assert time.monotonic() - began < 1.0
        assert words["error"]["type"] == "unavailable"
        health = client.get("/healthz")
        assert health.status_code == 503
        assert "the model thread" in health.json()["codecs"][codec.name]["reason"]


async def _first_words(address):
    words = asyncio.get_running_loop().create_future()
    stream = await StreamConnection.open(address, {}, lambda message, _: words.done() or words.set_result(message))
    try:
        return await asyncio.wait_for(words, 5)
    finally:
        stream.close()
