"""One Ray and one S3 server for the whole run: starting Ray costs more than most tests."""

import os

import pytest
from moto.server import ThreadedMotoServer

from pipelines import ray_session as ray_room


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server on loopback, named in the usual variables, so that everything started after it finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture(scope="session")
def ray_session(s3_server):
    """A local Ray with two cores that all jobs of this process share. Workers inherit the S3 variables."""
    with ray_room.ray_session(num_cpus=2):
        yield
