"""One Ray and one S3 server for the whole run: starting them costs more than most tests."""

import uuid

import pytest

from pipelines import ray_session as ray_room
from tests.conftest import make_codec, tiny_spec
from tokenizer import save_codec


@pytest.fixture(scope="session")
def segmented_codec_dir(tmp_path_factory):
    """A stereo codec that cuts files into segments and divides each by its loudness, as EnCodec does at 48 kHz."""
    directory = tmp_path_factory.mktemp("segmented") / "tiny"
    save_codec(make_codec(tiny_spec("segmented")), directory)
    return directory


@pytest.fixture(scope="session")
def s3_server():
    """An S3 on this machine, in the environment before Ray starts, so that Ray's workers find it too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_session(s3_server):
    """A local Ray with two cores that all jobs of this process share."""
    with ray_room.ray_session(num_cpus=2):
        yield


@pytest.fixture
def bucket(s3_server):
    """The URI of an empty bucket."""
    import s3fs

    name = f"test-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
