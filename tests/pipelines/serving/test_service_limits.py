"""Limits of a real server: too much, too slow and gone away are each noticed, and nobody else pays for them."""

import asyncio
import dataclasses
import gzip
import io
import json
import socket
import threading
import time
from contextlib import closing, contextmanager

import httpx2
import numpy as np
import pytest

from pipelines.decoding.engine_settings import EngineSettings
from pipelines.serving.header_timeout import protocol_with_header_timeout
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import running_service, wait_until
from tests.pipelines.service_calls import (
    DECODE,
    ENCODE,
    HALF_STEP,
    app_of,
    assert_serves_right,
    decoded,
    error_of,
    some_codes,
    sound_of,
    wav_bytes,
)

LIMIT = 2**18


def long_frames():
    """A codec with few frames to much sound."""
    spec = tiny_spec("patch")
    network = dataclasses.replace(spec.network, patch_width=336, overlap=16)
    return dataclasses.replace(spec, hop_length=320, network=network)


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("patch"))


@contextmanager
def serving(codec, engine=None, **settings):
    """A client and the app of a running server."""
    app = app_of(codec, engine=engine, **settings)
    with running_service(app) as url, httpx2.Client(base_url=url, timeout=20) as client:
        yield client, app
        assert_serves_right(client, codec)


def address_of(client):
    """Host and port of the server."""
    url = httpx2.URL(client.base_url)
    return url.host, url.port


def connected(client):
    """A plain connection to the server."""
    return socket.create_connection(address_of(client), timeout=20)


def head_of(path, *lines, kind="application/json"):
    """The headers of a request."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *lines, "", ""]).encode()


def npy(codes):
    """The bytes of a NumPy file."""
    stream = io.BytesIO()
    np.save(stream, codes)
    return stream.getvalue()


def answer_on(connection):
    """Status and JSON of an answer, and seconds until it came."""
    begin, data = time.monotonic(), b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        received = connection.recv(65536)
        if not received:
            break
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), time.monotonic() - begin


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(codec):
    """413, from the header alone."""
    with serving(codec, max_body_bytes=LIMIT) as (client, _), closing(connected(client)) as connection:
        connection.sendall(head_of(DECODE, f"Content-Length: {2**40}"))
        status, error, took_s = answer_on(connection)
        assert (status, error["error"]["type"]) == (413, "too_large")
        assert took_s < 0.2


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large_gets_its_error_while_it_still_comes(codec, chunked):
    """The sender reads it, however the body is framed: the connection is not reset under the answer."""
    with serving(codec, max_body_bytes=LIMIT) as (client, _):
        content = (b" " * 2**16 for _ in range(200)) if chunked else b" " * 2**16 * 200
        answer = client.post(DECODE, content=content, headers={"Content-Type": "application/json"})
        assert error_of(answer) == (413, "too_large")


def test_a_refused_body_does_not_keep_its_connection(codec):
    """A sender without an end is cut off some time after the answer."""
    with serving(codec, max_body_bytes=LIMIT) as (client, _), closing(connected(client)) as connection:
        connection.sendall(head_of(DECODE, "Transfer-Encoding: chunked"))

        def send_on():
            while True:
                connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                time.sleep(0.01)

        begin = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 - a reset or a broken pipe
            send_on()
        assert time.monotonic() - begin < 5


def test_a_body_that_comes_too_slowly_is_given_up(codec):
    """408, also where a byte comes now and then; the time counts from the start of the request."""
    with serving(codec, read_timeout_s=0.5) as (client, _), closing(connected(client)) as connection:
        connection.sendall(head_of(DECODE, "Content-Length: 1000"))
        stop = threading.Event()

        def trickle():
            while not stop.wait(0.1):
                connection.sendall(b" ")

        writer = threading.Thread(target=trickle, daemon=True)
        writer.start()
        status, error, took_s = answer_on(connection)
        stop.set()
        writer.join()  # before the connection that it writes to is closed
        assert (status, error["error"]["type"]) == (408, "request_timeout")
        assert 0.3 < took_s < 1.5


def test_headers_that_never_end_close_the_connection(codec):
    """At the start of a connection and in its second request, while whole requests are answered."""
    protocol = protocol_with_header_timeout(0.3)
    with running_service(app_of(codec), http=protocol) as url, httpx2.Client(base_url=url) as client:
        for whole_requests in (0, 1):
            with closing(connected(client)) as connection:
                for _ in range(whole_requests):
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert b"200 OK" in connection.recv(65536)
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
                begin = time.monotonic()
                assert drained(connection) == b""
                assert 0.2 < time.monotonic() - begin < 2
        assert_serves_right(client, codec)


def drained(connection):
    """What still comes until the connection has ended, in order or by a reset."""
    data = b""
    try:
        while received := connection.recv(65536):
            data += received
    except ConnectionResetError:
        pass
    return data


def test_a_reader_who_does_not_read_is_cut_off():
    """After the write timeout; its place and memory are free again, and the others never waited."""
    codec = make_codec(long_frames())
    codes = np.zeros((1, 30_000), np.uint8)  # more sound than the kernel keeps for a connection
    with serving(codec, write_timeout_s=0.5) as (client, app):
        engine = app.state.engines[codec.name]
        with closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(address_of(client))
            connection.sendall(
                head_of(DECODE, f"Content-Length: {len(npy(codes))}", kind="application/x-npy") + npy(codes)
            )
            wait_until(lambda: not is_idle(engine))
            for seed in range(3):
                assert_serves_right(client, codec, seed)
            wait_until(lambda: answered(client, 499))
            assert is_idle(engine)
            assert len(drained(connection)) < codes.size * 320 * 2


def answered(client, status, path=DECODE):
    """Whether a request is counted with the status."""
    lines = client.get("/metrics").text.splitlines()
    return any("requests_total" in line and path in line and f'status="{status}"' in line for line in lines)


def test_a_caller_who_leaves_frees_the_engine_at_once(codec):
    """Half a second at most, with most of the sound still to be decoded."""
    with serving(codec, max_audio_s=120) as (client, app):
        engine = app.state.engines[codec.name]
        body = {"codes": some_codes(codec, 360_000, levels=1).tolist(), "response_format": "pcm"}
        with client.stream("POST", DECODE, json=body) as answer:
            next(answer.iter_raw())
        begin = time.monotonic()
        wait_until(lambda: is_idle(engine))
        assert time.monotonic() - begin < 0.5


def is_idle(engine):
    """Whether nobody has a place in the engine or waits for one."""
    return engine._board.empty


@pytest.mark.parametrize("path", [DECODE, ENCODE])
def test_a_caller_who_leaves_the_queue_frees_its_place(codec, path):
    """Before anything of its request was computed."""
    kind, body = ("audio/wav", wav_bytes(np.zeros(99), 8000)) if path == ENCODE else ("application/x-npy", npy([[1]]))
    with serving(codec, engine=EngineSettings(max_queued=4)) as (client, app):
        engine, release = app.state.engines[codec.name], threading.Event()
        began = threading.Event()

        def steps():
            began.set()
            yield release.wait(10)

        holder = threading.Thread(target=lambda: asyncio.run(engine.run(steps())))
        holder.start()
        began.wait(5)
        with closing(connected(client)) as connection:
            connection.sendall(head_of(path, f"Content-Length: {len(body)}", kind=kind) + body)
            wait_until(lambda: len(engine._board._scheduler.places()) == 2)
        took_s = wait_until(lambda: len(engine._board._scheduler.places()) == 1)
        release.set()
        holder.join()
        assert took_s < 0.5
        wait_until(lambda: answered(client, 499, path))


def test_a_caller_who_leaves_while_it_sends_is_no_error_of_the_service(codec, caplog):
    """It is counted, and nothing stands in the log."""
    with serving(codec) as (client, _):
        with closing(connected(client)) as connection:
            connection.sendall(head_of(DECODE, "Content-Length: 1000") + b"{")
            time.sleep(0.1)
        wait_until(lambda: answered(client, 499))
    assert not caplog.records


def test_requests_together_hold_no_more_memory_than_allowed(codec):
    """429, for as long as others hold it."""
    with serving(codec, max_body_bytes=LIMIT, max_held_bytes=LIMIT) as (client, app):
        with closing(connected(client)) as connection:
            connection.sendall(head_of(DECODE, f"Content-Length: {LIMIT}") + b" " * (LIMIT - 1000))
            wait_until(lambda: app.state.held.held == LIMIT - 1000)
            assert refused_for_memory(client, codec)
        wait_until(lambda: not refused_for_memory(client, codec))
        assert 'rejected_total{codec="",reason="memory"}' in client.get("/metrics").text


def refused_for_memory(client, codec):
    content = json.dumps({"codes": some_codes(codec).tolist()}).encode().ljust(2000)
    answer = client.post(DECODE, content=content, headers={"Content-Type": "application/json"})
    return answer.status_code == 429 and error_of(answer) == (429, "overloaded")


def test_each_of_many_callers_gets_its_own_sound(codec):
    """With codes, lengths, levels and formats of its own, while others come, leave and err."""
    with serving(codec) as (client, _):
        wrong, workers = [], []

        def call(seed):
            rng = np.random.default_rng(seed)
            with httpx2.Client(base_url=client.base_url, timeout=20) as own:
                for turn in range(6):
                    codes = some_codes(codec, int(rng.integers(1, 300)), 100 * seed + turn, int(rng.integers(1, 5)))
                    body = {"codes": codes.tolist(), "response_format": ["wav", "flac"][turn % 2]}
                    if turn == 3:
                        with own.stream("POST", DECODE, json=body):
                            continue
                    if turn == 4:
                        own.post(DECODE, json={"codes": [[99]]})
                    sound = sound_of(own.post(DECODE, json=body))
                    if sound.shape[0] != codes.shape[1] * 8 or abs(sound - decoded(codec, codes)).max() > HALF_STEP:
                        wrong.append((seed, turn))

        for seed in range(12):
            workers.append(threading.Thread(target=call, args=[seed]))
            workers[-1].start()
        for worker in workers:
            worker.join(60)
        assert not wrong


def test_large_bodies_do_not_hold_up_small_requests(codec):
    """While a body of MiBs is inflated and read, others are answered."""
    codes = np.zeros((4, 300_000), int).tolist()
    body = gzip.compress(json.dumps({"codes": codes, "response_format": "x"}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with serving(codec, max_audio_s=120) as (client, _):
        waits_s, done = [], threading.Event()

        def ask():
            with httpx2.Client(base_url=client.base_url) as other:
                while not done.is_set():
                    begin = time.monotonic()
                    other.get("/healthz")
                    waits_s.append(time.monotonic() - begin)

        asker = threading.Thread(target=ask)
        asker.start()
        for _ in range(3):
            assert error_of(client.post(DECODE, content=body, headers=headers)) == (422, "invalid_argument")
        done.set()
        asker.join()
        assert np.median(waits_s) < 0.05
        assert max(waits_s) < 0.5
