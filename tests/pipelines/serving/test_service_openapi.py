"""The OpenAPI document tells the truth: whatever it allows, and whatever it does not, is answered as it says."""

import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.python import asgi

from tests.conftest import make_codec, tiny_spec
from tests.pipelines.service_calls import DECODE, app_of, decoded, some_codes, sound_of

OPERATIONS = [
    ("POST", "/v1/audio/decode"),
    ("POST", "/v1/audio/encode"),
    ("GET", "/v1/codecs"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


def only_deadlines_fail(_, response, case):
    """No 5xx, but for a deadline that the request itself set."""
    deadlines = [place["deadline_s"] for place in (case.query, case.body) if "deadline_s" in as_map(place)]
    assert response.status_code < 500 or (response.status_code == 504 and deadlines)


def as_map(value):
    return value if isinstance(value, dict) else {}


CHECKS = [
    only_deadlines_fail,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("seanet"))


@pytest.fixture(scope="module")
def app(codec):
    return app_of(codec, max_audio_s=0.5)


@pytest.fixture(scope="module")
def client(app):
    with asgi.get_client(app) as running:
        yield running


@pytest.fixture(scope="module")
def document(app, client):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@schemathesis.serializer("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
def as_msgpack(_, value):
    """Generated values as a body; integers beyond 64 bits, which msgpack cannot hold, go as their digits."""
    return msgpack.packb(value, default=str)


@pytest.mark.timeout(900)  # generating bodies that do not fit takes most of it
@pytest.mark.parametrize(
    ("mode", "max_examples"),
    [
        (GenerationMode.POSITIVE, 15),
        (GenerationMode.NEGATIVE, 15),
        pytest.param(GenerationMode.POSITIVE, 100, marks=pytest.mark.slow),
        pytest.param(GenerationMode.NEGATIVE, 100, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_request_is_answered_as_the_document_says(document, client, codec, method, path, mode, max_examples):
    """No 5xx, no undocumented status, type or shape; the next good request is still right."""

    @given(document[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=max_examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case):
        case.call_and_validate(checks=CHECKS, session=client)

    if mode is GenerationMode.POSITIVE or method == "POST":  # nothing is wrong with a plain GET
        check()
    codes = some_codes(codec, 4)
    answer = client.post(f"http://testserver{DECODE}", json={"codes": codes.tolist()})
    assert abs(sound_of(answer) - decoded(codec, codes)).max() < 1e-4


def test_all_operations_of_the_document_are_tried(document):
    """And each has an example, a summary and typed errors."""
    found = {
        (method.upper(), path): what
        for path, item in document.raw_schema["paths"].items()
        for method, what in item.items()
    }
    assert set(found) == set(OPERATIONS)
    for (method, path), what in found.items():
        assert what["summary"]
        if method == "POST":
            assert {"400", "401", "404", "413", "415", "422", "429", "503", "504"} <= set(what["responses"])
            error = what["responses"]["422"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorAnswer"}, path


def test_the_examples_of_the_document_are_answered(document, client):
    """As they stand there: for codecs of that name, or where one codec is served."""
    content = document.raw_schema["paths"][DECODE]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        body = {key: value for key, value in example["value"].items() if key not in ("codec", "num_samples")}
        assert client.post(f"http://testserver{DECODE}", json=body).status_code == 200
