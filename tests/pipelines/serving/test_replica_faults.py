"""Replicas that are killed, as clients see it: who uses DecodeClient notices nothing."""

import threading
import time

import httpx2
import numpy as np
import pytest

from pipelines import DecodeClient
from pipelines.serving.http_server import bound_socket
from pipelines.serving.serve_arguments import ServeArguments
from tests.pipelines.service_load import offline, random_codes
from tokenizer import QuantoneError

CODES = random_codes(7, 600)


@pytest.fixture(scope="module")
def url(ray_session, tiny_codec_dir):
    """Two replicas behind Ray's proxy."""
    from ray import serve

    from pipelines.serving.serve_app import bound

    with bound_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    arguments = ServeArguments.from_dict({"codecs": str(tiny_codec_dir), "max_audio_s": 20, "threads": 1})
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(bound(arguments, num_replicas=2, num_cpus=0.5), name="faults", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def kill_one():
    """A replica, without a word."""
    import ray

    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    ray.kill(ray.get_actor(min(n for n in names if n.startswith("SERVE_REPLICA::faults#")), namespace="serve"))


class Decoding:
    """Threads that decode again and again with a client of their own, and check what they get."""

    def __init__(self, url, directory, count):
        self.good, self.faults, self._going = 0, [], True
        self._expected = offline(directory, CODES)
        self._threads = [threading.Thread(target=self._decode, args=(url,)) for _ in range(count)]

    def _decode(self, url):
        with DecodeClient(url, retries=8) as client:
            while self._going:
                try:
                    sound = client.decode(CODES)[0]
                except (QuantoneError, httpx2.HTTPError) as error:
                    self.faults.append(repr(error))
                    return
                if sound.shape != self._expected.shape or np.abs(sound - self._expected.clip(-1, 1)).max() > 1e-3:
                    self.faults.append(f"not its own sound: {sound.shape}")
                self.good += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._going = False
        for thread in self._threads:
            thread.join()

    def wait_for(self, count):
        wanted, deadline = self.good + count, time.monotonic() + 60
        while self.good < wanted and not self.faults:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
def test_a_client_that_retries_notices_nothing_of_a_killed_replica(url, tiny_codec_dir):
    """Requests under way are asked again elsewhere; every answer is right, and soon as many come as before."""
    with Decoding(url, tiny_codec_dir, 4) as decoding:
        decoding.wait_for(20)
        kill_one()
        decoding.wait_for(100)
    assert decoding.faults == []


@pytest.mark.slow
def test_a_stream_of_a_killed_replica_is_whole(url, tiny_codec_dir):
    """Its client begins the utterance anew on another replica, and no sample is missing or heard twice."""
    expected = offline(tiny_codec_dir, CODES)
    with DecodeClient(url, retries=8) as client:
        for _ in range(2):  # whichever of the two it is on
            with client.stream(num_codebooks=len(CODES), pcm="f32le") as stream:
                stream.push(CODES[:, :300])
                heard = [next(iter(stream))]
                kill_one()
                stream.push(CODES[:, 300:])
                stream.finish()
                heard += list(stream)
            np.testing.assert_allclose(np.concatenate(heard, axis=1)[0], expected, atol=1e-5)
