"""The service under a real Ray Serve on loopback: routing, killed replicas, rolling updates, drains, metrics."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from pipelines.decoding.engine_settings import EngineHealth
from pipelines.serving.http_server import bound_socket
from pipelines.serving.serve_arguments import ServeArguments
from pipelines.serving.service_metrics import METRICS
from tests.pipelines.serve_process import COMMAND, Service
from tests.pipelines.service_load import Callers, frames, offline, random_codes

CODES = random_codes(7, 400)
RECOVERY_S = 5.0


def free_port():
    with bound_socket("127.0.0.1", 0) as free:
        return free.getsockname()[1]


def deploy(served, **changes):
    """Run the application on two replicas, or roll it to other arguments."""
    from ray import serve

    from pipelines.serving.serve_app import APP_NAME, bound

    arguments = ServeArguments.from_dict({"codecs": served.codec, "max_audio_s": 20, "threads": 1, **changes})
    serve.run(bound(arguments, num_replicas=2, num_cpus=0.5), name=APP_NAME, route_prefix="/")


@pytest.fixture(scope="module")
def served(ray_session, tiny_codec_dir):
    """Two replicas behind Ray's proxy, for all tests of this file."""
    from ray import serve

    port = free_port()
    made = SimpleNamespace(url=f"http://127.0.0.1:{port}", address=f"127.0.0.1:{port}", codec=str(tiny_codec_dir))
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    deploy(made)
    yield made
    serve.shutdown()


def open_stream(address, codes, **headers):
    """A stream that has got the first half of its codes and the first of its sound: (socket, pieces)."""
    stream = connect(f"ws://{address}/v1/audio/stream", additional_headers=headers)
    stream.send(json.dumps({"num_codebooks": len(codes), "pcm": "f32le"}))
    assert json.loads(stream.recv(10))["type"] == "started"
    stream.send(frames(codes[:, : codes.shape[1] // 2]))
    return stream, [stream.recv(10)]


def finish_stream(stream, pieces, codes):
    """Send the other half, hear the rest: [S] float32."""
    stream.send(frames(codes[:, codes.shape[1] // 2 :]))
    stream.send(b"")
    while isinstance(piece := stream.recv(10), bytes):
        pieces.append(piece)
    assert json.loads(piece)["type"] == "end"
    return np.frombuffer(b"".join(pieces), "<f4")


def replicas():
    """Names of the replicas that run."""
    import ray

    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    return {name for name in names if name.startswith("SERVE_REPLICA::quantone#")}


def process_of(url, session):
    """What tells the replica that a session is on from the others: when it started."""
    page = httpx2.get(f"{url}/metrics", headers={"x-session-id": session}, timeout=20).text
    return re.search(r"^process_start_time_seconds (\S+)", page, re.MULTILINE)[1]


def test_a_replica_that_is_stuck_is_reported():
    """Ray Serve's question is answered by the engines: the first that is not well fails it, with its reason."""
    from pipelines.serving.serve_app import TokensToSound

    well = EngineHealth(ok=True, reason="", active_streams=0, queued=0, last_step_age_s=0.0)
    stuck = EngineHealth(ok=False, reason="in one step for 31 s", active_streams=2, queued=0, last_step_age_s=31.0)
    replica = TokensToSound.__new__(TokensToSound)
    replica._engines = {"one": SimpleNamespace(health=lambda: well)}
    replica.check_health()
    replica._engines["two"] = SimpleNamespace(health=lambda: stuck)
    with pytest.raises(RuntimeError, match="codec 'two': in one step for 31 s"):
        replica.check_health()


def test_limits_follow_from_the_arguments():
    """The service itself refuses what is too much, before Ray Serve does; a stop waits for the longest stream."""
    from pipelines.serving.serve_app import deployment_limits

    arguments = ServeArguments.from_dict({"codecs": "a,b", "max_streams": 10, "max_queued": 5, "max_audio_s": 100})
    limits = deployment_limits(arguments)
    assert limits["max_ongoing_requests"] > 2 * (10 + 5)
    assert limits["max_queued_requests"] > 0
    assert limits["graceful_shutdown_timeout_s"] > 100
    assert limits["backpressure_config"].status_code == 429


def test_a_wrong_argument_fails_before_a_replica_starts():
    """`serve run` and `serve deploy` show it at once."""
    from pipelines.serving.serve_app import build_app

    with pytest.raises(ValueError, match="no such argument of a service: max_steams"):
        build_app({"max_steams": "3"})


@pytest.mark.slow
def test_requests_and_streams_go_through_serve(served):
    """Whole utterances, server-sent events, sound to codes, and a stream: all as in one process, to 1e-5."""
    expected = offline(served.codec, CODES)
    with httpx2.Client(base_url=served.url, timeout=20) as client:
        assert client.get("/v1/codecs").json()["codecs"][0]["name"] == "tiny_patch"
        assert client.get("/readyz").status_code == 200
        request = {"codes": CODES.tolist(), "response_format": "wav"}
        wav = client.post("/v1/audio/decode", json=request)
        assert (wav.status_code, wav.headers["X-Num-Samples"]) == (200, str(len(expected)))
        events = client.post("/v1/audio/decode", json={**request, "response_format": "pcm", "stream_format": "sse"})
        assert "speech.audio.done" in events.text
        codes = client.post("/v1/audio/encode", content=wav.content, headers={"Content-Type": "audio/wav"}).json()
        assert np.shape(codes["codes"]) == CODES.shape
        wrong = client.post("/v1/audio/decode", json={"codes": [[99]]})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (422, "invalid_codes")
    stream, pieces = open_stream(served.address, CODES)
    with stream:
        np.testing.assert_allclose(finish_stream(stream, pieces, CODES), expected, atol=1e-5)


def faults_around(url, codec, kill):
    """What callers see when a replica is killed under load; none of it before, and none after RECOVERY_S."""
    with Callers(url, codec, count=6) as callers:
        callers.wait_for(30)
        assert callers.faults == []
        killed_at = time.monotonic()
        kill()
        callers.wait_for(200)
        time.sleep(max(0.0, killed_at + RECOVERY_S + 2 - time.monotonic()))
        callers.wait_for(50)
    assert all(fault.at < killed_at + RECOVERY_S for fault in callers.faults)
    return callers.faults


@pytest.mark.slow
def test_a_killed_replica_costs_only_its_own_requests(served):
    """Who asked it at that moment gets an error; everybody else goes on, and within seconds all is as before."""
    import ray

    running = replicas()
    assert len(running) == 2
    victim = ray.get_actor(min(running), namespace="serve")
    assert len(faults_around(served.url, served.codec, lambda: ray.kill(victim))) <= 6  # at most one for each caller
    deadline = time.monotonic() + 30
    while len(replicas()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_rolling_update_loses_nothing(served):
    """Requests under way, requests that come meanwhile, and a stream that is half way: 0 errors."""
    before = replicas()
    stream, pieces = open_stream(served.address, CODES)
    with stream, Callers(served.url, served.codec, count=4) as callers:
        callers.wait_for(20)
        rolled = threading.Thread(target=deploy, args=(served,), kwargs={"max_streams": 9})
        rolled.start()
        time.sleep(2)
        samples = finish_stream(stream, pieces, CODES)
        stream.close()
        rolled.join(60)
        assert not rolled.is_alive()
        callers.wait_for(50)
    assert callers.faults == []
    np.testing.assert_allclose(samples, offline(served.codec, CODES), atol=1e-5)
    assert not before & replicas()


@pytest.mark.slow
def test_rays_endpoint_has_the_metrics_of_every_replica(served):
    """Each under its exported name, with Ray Serve's labels: what a Prometheus that scrapes nodes sees."""
    import ray

    with Callers(served.url, served.codec, count=4) as callers:
        callers.wait_for(40)
    stream, pieces = open_stream(served.address, CODES)
    with stream:
        finish_stream(stream, pieces, CODES)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    expected = {
        f"ray_{name}" for name in METRICS if not name.endswith(("underruns_total", "rejected_total", "expired_total"))
    }
    page, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url, timeout=5) as answer:
            page = answer.read().decode()
        lines = [line for line in page.splitlines() if line.startswith("ray_quantone_serve_active_streams{")]
        shown = {re.search(r'replica="([^"]+)"', line)[1] for line in lines}
        missing = [name for name in expected if f"# TYPE {name} " not in page]
        if not missing and len(shown) >= 2:
            break
        time.sleep(1)
    assert missing == []
    assert len(shown) >= 2
    assert all('application="quantone"' in line and 'codec="tiny_patch"' in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("proxy", [[], ["--haproxy"]], ids=["python", "haproxy"])
def test_sigterm_drains_a_service_on_ray(tiny_codec_dir, proxy):
    """Sessions stay on one replica, streams play to their end, the exit code is 0, and nothing of Ray is left."""
    port = free_port()
    options = ["--ray", "--replicas", "2", "--port", str(port), "--drain", "20", *proxy]
    with Service(str(tiny_codec_dir), *options) as service:
        children = _children(service.process.pid)
        first = _sessions(service.url)
        deadline = time.monotonic() + 30
        while len(set(first)) < 2:  # HAProxy hears of the replicas one by one
            assert time.monotonic() < deadline
            first = _sessions(service.url)
        assert _sessions(service.url) == first
        stream, pieces = open_stream(service.address, CODES, **{"x-session-id": "mine"})
        with stream:
            service.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            samples = finish_stream(stream, pieces, CODES)
        assert service.process.wait(60) == 0
        np.testing.assert_allclose(samples, offline(tiny_codec_dir, CODES), atol=1e-5)
    deadline = time.monotonic() + 20
    while alive := [pid for pid in children if _runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def _sessions(url):
    """The replica of each of many sessions."""
    return [process_of(url, f"session{number}") for number in range(16)]


@pytest.mark.slow
def test_haproxy_does_elsewhere_what_a_killed_replica_had_in_hand(tiny_codec_dir):
    """Fewer errors than callers: requests that nobody had begun to answer are sent to another replica."""
    options = ["--ray", "--replicas", "2", "--port", str(free_port()), "--drain", "5", "--haproxy"]
    with Service(str(tiny_codec_dir), *options) as service:
        while len(set(_sessions(service.url))) < 2:
            time.sleep(0.2)
        victim = next(pid for pid in _children(service.process.pid) if "ServeReplica:quantone" in _name(pid))
        assert len(faults_around(service.url, str(tiny_codec_dir), lambda: os.kill(victim, signal.SIGKILL))) < 6
        assert service.end(timeout_s=60) == (0, "")


@pytest.mark.slow
def test_two_services_behind_haproxy_share_a_machine(tiny_codec_dir):
    """Each has a Ray and an HAProxy of its own, and neither is in the way of the other one."""
    options = ("--ray", "--drain", "5", "--haproxy", "--port")
    with Service(str(tiny_codec_dir), *options, str(free_port())) as one:
        with Service(str(tiny_codec_dir), *options, str(free_port())) as other:
            assert process_of(one.url, "mine") != process_of(other.url, "mine")
            assert other.end(timeout_s=60) == (0, "")
        assert process_of(one.url, "mine")
        assert one.end(timeout_s=60) == (0, "")


@pytest.mark.slow
def test_a_slow_reader_is_cut_behind_haproxy(tiny_codec_dir):
    """Who takes no sound for ten seconds loses the slot, although two proxies' buffers lie in between."""
    port = free_port()
    codes = frames(random_codes(0, 3000))  # a second
    with Service(str(tiny_codec_dir), "--ray", "--port", str(port), "--drain", "5", "--haproxy") as service:
        narrow = socket.create_connection(("127.0.0.1", port))
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        with connect(f"ws://{service.address}/v1/audio/stream", sock=narrow, max_queue=2) as stream:
            stream.send(json.dumps({"num_codebooks": 4, "pcm": "f32le"}))
            stream.recv(10)
            for _ in range(300):
                stream.send(codes)
            deadline = time.monotonic() + 100
            while _active_streams(service.url) > 0:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert service.end(timeout_s=60) == (0, "")


def _active_streams(url):
    page = httpx2.get(f"{url}/metrics", timeout=20).text
    return float(re.search(r"^quantone_serve_active_streams\{[^}]*\} (\S+)", page, re.MULTILINE)[1])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_replicas_that_cannot_start_end_the_command(tiny_codec_dir):
    """Exit code 1 and one line with the reason, out of the replica's traceback."""
    options = [str(tiny_codec_dir), "--ray", "--device", "cuda", "--port", str(free_port())]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=150)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no replica could start: ")
    assert "torch sees no CUDA device here" in done.stderr
    assert done.stderr.count("\n") == 1


def _children(pid):
    """Processes below one, at any depth."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def _name(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
