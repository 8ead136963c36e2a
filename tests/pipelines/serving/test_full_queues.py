"""While the queues are full, a request is refused before anything of it is read, and the connection lives on."""

import http.client
import json
from contextlib import contextmanager

import pytest

from pipelines.decoding.decode_engine import EngineSettings
from pipelines.decoding.stream_scheduler import UTTERANCES_AT_ONCE
from pipelines.serving.full_queues import MOST_BYTES
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import running_service, wait_until
from tests.pipelines.service_calls import (
    DECODE,
    ENCODE,
    app_of,
    assert_serves_right,
    error_of,
    held_engine,
    service_of,
    some_codes,
)

NO_JSON = b"{" * 100
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def codec():
    return make_codec(tiny_spec("seanet"))


@contextmanager
def full_service(*codecs):
    """A service of which the first codec's queue is full, until its block ends."""
    with (
        service_of(*codecs, engine=EngineSettings(max_queued=1)) as client,
        held_engine(client) as (engine, release),
    ):
        codes = some_codes(codecs[0])
        others = [client.portal.start_task_soon(engine.decode, codes) for _ in range(UTTERANCES_AT_ONCE + 1)]
        wait_until(lambda: engine.full)
        yield client
        release.set()
        for other in others:
            other.result(10)
        assert not engine.full
        assert_serves_right(client, codecs[0])


@pytest.mark.parametrize("path", [DECODE, ENCODE])
def test_what_is_refused_is_not_read(codec, path):
    """A body that would be an error of its own never is one; the refusal says when to come again, and is counted."""
    with full_service(codec) as client:
        answer = client.post(path, content=NO_JSON, headers=JSON)
        assert error_of(answer) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        figures = client.get("/metrics").text
    assert f'quantone_serve_rejected_total{{codec="{codec.name}",reason="queue"}} 1.0' in figures


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{" * (MOST_BYTES + 1), JSON),
        (NO_JSON, JSON | {"Origin": "http://elsewhere"}),
        (iter([NO_JSON]), JSON),
    ],
    ids=["long", "of a page", "of no declared length"],
)
def test_what_may_not_stay_unread_goes_inside(codec, content, headers):
    """There it is read, within the limits, and answered with all the headers that it needs."""
    with full_service(codec) as client:
        assert error_of(client.post(DECODE, content=content, headers=headers))[0] == 400


def test_a_codec_with_room_keeps_the_door_open(codec):
    """Whom a request is for stands in its body: as long as one codec has room, it is read."""
    other = make_codec(tiny_spec("patch"))
    with full_service(codec, other) as client:
        assert_serves_right(client, other)


def test_the_connection_lives_on(codec):
    """What was not read is never taken for the next request."""
    codes = json.dumps({"codes": some_codes(codec).tolist()})
    app = app_of(codec, engine=EngineSettings(max_queued=1))
    with running_service(app) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        engine = app.state.engines[codec.name]
        for is_full, status in [(True, 429), (True, 429), (False, 200), (True, 429), (False, 200)]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(engine), "full", is_full)
                connection.request("POST", DECODE, codes, JSON)
                answer = connection.getresponse()
                answer.read()
            assert answer.status == status
            assert not answer.will_close
        connection.close()
