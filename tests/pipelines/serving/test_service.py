"""The service as a whole: what it says of itself, who may call it, how it starts and ends, and what it counts."""

import gc
import subprocess
import sys
import threading
import time

import pytest
from fastapi.testclient import TestClient

from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.service import create_app
from pipelines.serving.service_settings import ServiceSettings
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.service_calls import (
    DECODE,
    ENCODE,
    app_of,
    assert_serves_right,
    error_of,
    held_engine,
    service_of,
)


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("seanet"))


@pytest.fixture(scope="module")
def client(codec):
    with service_of(codec) as running:
        yield running


def test_codecs_are_listed_with_what_callers_need(codec):
    """Their numbers, what they can do, and the identity that codes belong to."""
    other = make_codec(tiny_spec("segmented"))
    other.name = "other"
    with service_of(codec, other, max_audio_s=2) as client:
        first, second = client.get("/v1/codecs").json()["codecs"]
    assert (first["name"], first["sha256"]) == ("tiny_seanet", codec.sha256)
    assert (first["sample_rate"], first["hop_length"], first["channels"]) == (24000, 8, 1)
    assert (first["frame_rate"], first["num_codebooks"], first["codebook_size"]) == (3000, 4, 16)
    assert (first["bandwidth_kbps"], first["bandwidths_kbps"], first["level_kbps"]) == (48, [24, 48], 12)
    assert (first["streamable"], first["has_scales"], first["max_frames"]) == (True, False, 6000)
    assert (second["streamable"], second["has_scales"], second["channels"]) == (False, True, 2)


def test_health_and_readiness_follow_the_engines(codec):
    """Not ready before the start, while it drains and after the end; alive while it drains."""
    app = app_of(codec)
    cold = TestClient(app)
    assert [cold.get(path).status_code for path in ("/healthz", "/readyz")] == [503, 503]
    assert cold.get("/readyz").json()["status"] == "starting"
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        assert client.get("/healthz").json()["codecs"]["tiny_seanet"]["ok"]
        assert client.portal.call(app.state.drain)
        assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 503]
        assert error_of(client.post(DECODE, json={"codes": [[1]]})) == (503, "draining")
    assert TestClient(app).get("/healthz").status_code == 503
    with TestClient(app) as client:  # started anew
        assert_serves_right(client, codec)


def test_a_stuck_model_thread_fails_the_health_check(codec):
    """So that an orchestrator replaces the process; it is well again when the step ends."""
    from pipelines.decoding.engine_settings import EngineSettings

    with service_of(codec, engine=EngineSettings(stuck_after_s=0.1)) as client, held_engine(client) as (_, release):
        time.sleep(0.2)
        answer = client.get("/healthz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "failing"
        assert "stuck" in answer.json()["codecs"]["tiny_seanet"]["reason"]
        release.set()
        assert_serves_right(client, codec)
        assert client.get("/healthz").status_code == 200


def test_draining_lets_running_requests_end(codec):
    """Nothing new is taken, what runs gets its answer, and the drain says that all did."""
    app = app_of(codec)
    with TestClient(app) as client, held_engine(client) as (_, release):
        answers = []
        caller = threading.Thread(target=lambda: answers.append(client.post(DECODE, json={"codes": [[1]] * 4})))
        caller.start()
        while client.get("/healthz").json()["codecs"]["tiny_seanet"]["queued"] == 0 and not is_taken(client):
            time.sleep(0.01)
        drained = client.portal.start_task_soon(app.state.drain)
        while client.get("/readyz").status_code == 200:
            time.sleep(0.01)
        assert error_of(client.post(DECODE, json={"codes": [[1]]})) == (503, "draining")
        release.set()
        caller.join(10)
        assert drained.result(10)
        assert answers[0].status_code == 200


def is_taken(client):
    """Whether the engine holds an utterance beside the work that holds it up."""
    return len(client.app.state.engines["tiny_seanet"]._board._scheduler.places()) > 1


def test_a_service_needs_a_codec():
    """An empty one could answer nothing."""
    with pytest.raises(ValueError, match="needs a codec"):
        create_app({})


@pytest.mark.parametrize(
    "shown",
    [None, "Bearer wrong", "Bearer ", "Basic secret", "secret", "Bearer secret2", "bearer \xe9", "Bearer secre"],
)
def test_without_its_token_nobody_gets_anything(codec, shown):
    """401 with a challenge, before the body is read; probes and the page, which asks for the token, are open."""
    headers = {} if shown is None else {"Authorization": shown.encode("latin-1")}
    with service_of(codec, token="secret") as client:  # noqa: S106
        for ask in (
            lambda: client.post(DECODE, content=b"x" * 100, headers=headers),
            lambda: client.post(ENCODE, content=b"x", headers=headers),
            lambda: client.get("/v1/codecs", headers=headers),
            lambda: client.get("/metrics", headers=headers),
            lambda: client.get("/openapi.json", headers=headers),
            lambda: client.get("/nothing", headers=headers),
        ):
            answer = ask()
            assert error_of(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "secret" not in answer.text
        assert [client.get(path, headers=headers).status_code for path in ("/healthz", "/readyz", "/")] == [200] * 3


def test_with_its_token_everything_is_answered(codec):
    """The scheme in any case, as RFC 9110 says."""
    with service_of(codec, token="secret") as client:  # noqa: S106
        for scheme in ("Bearer", "bearer"):
            client.headers["Authorization"] = f"{scheme} secret"
            assert_serves_right(client, codec)


def test_other_origins_are_not_invited(client):
    """No CORS headers without a setting."""
    answer = client.get("/v1/codecs", headers={"Origin": "https://page.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert client.options(DECODE, headers=preflight).status_code == 405


def test_pages_of_named_origins_may_read_answers_and_errors(codec):
    """Also those of the token and the limits, and the headers that say what a sound is."""
    origin = "https://page.example"
    with service_of(codec, cors_origins=(origin,), token="secret", max_body_bytes=10) as client:  # noqa: S106
        preflight = client.options(DECODE, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert preflight.headers["access-control-allow-origin"] == origin
        for headers in ({}, {"Authorization": "Bearer secret"}):
            answer = client.post(DECODE, json={"codes": [[1]]}, headers={"Origin": origin, **headers})
            assert error_of(answer)[0] in (401, 413)
            assert answer.headers["access-control-allow-origin"] == origin
            assert "X-Num-Samples" in answer.headers["access-control-expose-headers"]
        other = client.get("/healthz", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_what_nobody_foresaw_is_told_without_a_trace(codec, monkeypatch):
    """500, typed; why stands in the log. The next request is right."""
    with service_of(codec) as client:
        with monkeypatch.context() as patch:
            patch.setattr(DecodeEngine, "decode_blocks", lambda *_, **__: 1 / 0)
            answer = client.post(DECODE, json={"codes": [[1]]})
        assert error_of(answer) == (500, "internal_error")
        assert "division" not in answer.text
        assert_serves_right(client, codec)


def test_a_failing_step_is_an_error_of_its_own(codec, monkeypatch):
    """503, which is worth another attempt elsewhere."""
    with service_of(codec) as client:
        with monkeypatch.context() as patch:
            patch.setattr(codec, "decode_step", lambda *_: 1 / 0)
            assert error_of(client.post(DECODE, json={"codes": [[1]]})) == (503, "unavailable")
        assert_serves_right(client, codec)


def test_requests_are_counted_by_what_became_of_them(codec):
    """By route, status and codec, with the sound that was made, and the time to the first of it."""
    with service_of(codec) as client:
        for _ in range(3):
            client.post(DECODE, json={"codes": [[1] * 300] * 4})
        client.post(DECODE, json={"codes": [[99]]})
        client.get("/secret/path")
        shown = client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in shown.text.splitlines() if not line.startswith("#"))
    labels = f'codec="tiny_seanet",route="{DECODE}"'
    assert lines[f'quantone_serve_requests_total{{{labels},status="200"}}'] == "3.0"
    assert lines[f'quantone_serve_requests_total{{{labels},status="422"}}'] == "1.0"
    assert float(lines[f"quantone_serve_audio_seconds_total{{{labels}}}"]) == pytest.approx(3 * 300 * 8 / 24000)
    assert lines['quantone_serve_first_audio_seconds_count{codec="tiny_seanet"}'] == "3.0"
    assert "secret" not in shown.text


def test_errors_of_routes_are_typed_too(client):
    """Where nothing is, and where something else is."""
    assert error_of(client.get("/v1/audio/speech")) == (404, "not_found")
    wrong = client.get(DECODE)
    assert error_of(wrong) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "settings",
    [{"max_body_bytes": 0}, {"max_audio_s": -1}, {"read_timeout_s": 0}, {"token": ""}, {"resume_window_s": -1}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings):
    """Before anything starts."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        ServiceSettings(**settings)


def test_importing_pipelines_loads_no_web_framework():
    """Who only reads datasets does without."""
    code = "import pipelines, sys; sys.exit(any(name in sys.modules for name in ('fastapi', 'torch', 'uvicorn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_service_begins_with_is_never_looked_through_again(codec):
    """A full collection over all of torch takes 0.2 s, in which no stream would get on; afterwards all is as before."""
    with service_of(codec) as client:
        assert_serves_right(client, codec)
        assert gc.get_freeze_count() > 0.9 * (gc.get_freeze_count() + len(gc.get_objects()))
    assert gc.get_freeze_count() == 0
