"""The command `quantone serve`: what it prints, how it ends, and what it refuses."""

import json
import re
import shlex
import signal
import time

import httpx2
import numpy as np
import pytest
from websockets.sync.client import connect

from pipelines.serving.http_server import bound_socket
from pipelines.serving.serve_arguments import TOKEN_VARIABLE
from tests.pipelines.serve_process import Service, main
from tests.pipelines.service_load import frames, offline, random_codes

CODES = random_codes(0, 60)


def test_the_line_to_try_works_as_it_is_printed(tiny_codec_dir):
    """Address, codecs, limits and a curl line; what that line asks for is a sound, and the metrics count it."""
    with Service(str(tiny_codec_dir), "--port", "0", "--max-streams", "5") as service:
        assert "tiny_patch: 24000 Hz, 3000 frames/s, 4 codebooks of 16" in service.said
        assert "5 streams and 64 requests in the queue" in service.said
        curl = shlex.split(re.search(r"try: (curl .*)", service.said)[1])
        url, header, body = curl[2], curl[curl.index("-H") + 1], curl[curl.index("-d") + 1]
        name, _, value = header.partition(": ")
        answer = httpx2.post(url, headers={name: value}, content=body)
        assert answer.status_code == 200
        assert answer.content[:4] == b"RIFF"
        metrics = httpx2.get(f"{service.url}/metrics").text
        pattern = r'quantone_serve_requests_total\{codec="tiny_patch",route="/v1/audio/decode",status="200"\} 1\.0'
        assert re.search(pattern, metrics)
        code, said = service.end()
        assert (code, said) == (0, "")


def test_sigterm_lets_a_stream_play_to_its_end(tiny_codec_dir):
    """A stream that is half way gets all its sound, others are sent elsewhere meanwhile, and the exit code is 0."""
    with (
        Service(str(tiny_codec_dir), "--port", "0", "--drain", "20") as service,
        connect(f"ws://{service.address}/v1/audio/stream") as stream,
    ):
        stream.send(json.dumps({"num_codebooks": 4, "pcm": "f32le"}))
        assert json.loads(stream.recv())["type"] == "started"
        stream.send(frames(CODES[:, :20]))
        pieces = [stream.recv()]
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        request = {"codes": CODES.tolist()}
        while (late := httpx2.post(f"{service.url}/v1/audio/decode", json=request)).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert late.status_code == 503
        assert "Retry-After" in late.headers
        stream.send(frames(CODES[:, 20:]))
        stream.send(b"")
        while isinstance(piece := stream.recv(), bytes):
            pieces.append(piece)
        assert json.loads(piece)["type"] == "end"
        samples = np.frombuffer(b"".join(pieces), "<f4")
        np.testing.assert_allclose(samples, offline(tiny_codec_dir, CODES), atol=1e-5)
        assert service.process.wait(30) == 0


def test_a_token_guards_the_service_until_ctrl_c_ends_it(tiny_codec_dir):
    """It comes from the environment and is shown nowhere; Ctrl-C gives the exit code and line of other commands."""
    with Service(str(tiny_codec_dir), "--port", "0", environment={TOKEN_VARIABLE: "sesame"}) as service:
        assert "sesame" not in service.said
        assert f'-H "Authorization: Bearer ${TOKEN_VARIABLE}"' in service.said
        assert httpx2.get(f"{service.url}/v1/codecs").status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx2.get(f"{service.url}/v1/codecs", headers=headers).status_code == 200
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
        assert service.end(signal.SIGINT) == (130, "error: interrupted\n")


def test_a_port_in_use_is_one_line(capsys, tiny_codec_dir):
    """Exit code 1, before the codec is loaded."""
    with bound_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_codec_dir), "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot listen on port {port} of 127.0.0.1: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_codec"], "no codec 'no_such_codec'"),
        (["--replicas", "2"], "--replicas goes with --ray"),
        (["--haproxy"], "--haproxy goes with --ray"),
        (["--address", "head:6379"], "--address goes with --ray"),
        (["--ray", "--port", "0"], "--ray needs a port"),
        (["--ray", "--log-requests"], "--log-requests goes without --ray"),
        (["--ray", "--haproxy", "--address", "head:6379"], "--haproxy is for a local Ray"),
        (["--port", "70000"], "65535"),
        (["--device", "tpu", "--port", "0"], "device 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(capsys, arguments, message):
    """Exit code 2, before anything listens or starts."""
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_missing_packages_are_named(capsys, monkeypatch):
    """Serving is an extra: who has not installed it reads what to install."""
    from pipelines.commands import cli_serve

    monkeypatch.setattr(cli_serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "error: serving needs uvicorn: pip install 'quantone[serve]'\n"


def test_who_listens_for_everybody_hears_that_there_is_no_token(capsys):
    """Said once, at the start; not where a token is set, and not on loopback."""
    from pipelines.commands.cli_serve import _announce
    from pipelines.serving.serve_arguments import ServeArguments
    from tests.conftest import tiny_spec

    arguments = ServeArguments()
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)):  # noqa: S104
        _announce(arguments, {"tiny": tiny_spec("patch")}, host, 8000)
        said = capsys.readouterr().out
        assert ("no token" in said) is warned
        assert "http://[::1]:8000" in said if host == "::1" else "http://127.0.0.1:8000" in said
