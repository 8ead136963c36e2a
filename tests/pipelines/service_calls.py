"""Requests to the service and what their answers must be, for tests of its rooms."""

import contextlib
import io
import threading

import numpy as np
import soundfile
import torch
from fastapi.testclient import TestClient

from pipelines.decoding.decode_engine import DecodeEngine, EngineSettings
from pipelines.serving.service import create_app
from pipelines.serving.service_metrics import ServiceMetrics
from pipelines.serving.service_settings import ServiceSettings
from tokenizer import Encoded

DECODE, ENCODE = "/v1/audio/decode", "/v1/audio/encode"
HALF_STEP = 0.51 / 32768  # of int16, and some rounding of floats


def app_of(*codecs, engine=None, **settings):
    """The application, with an engine for each codec, by their names."""
    metrics = ServiceMetrics()
    engines = {
        codec.name: DecodeEngine(codec, engine or EngineSettings(), metrics.observer(codec.name)) for codec in codecs
    }
    return create_app(engines, ServiceSettings(**settings), metrics)


@contextlib.contextmanager
def service_of(*codecs, engine=None, **settings):
    """A client of a running application."""
    with TestClient(app_of(*codecs, engine=engine, **settings), raise_server_exceptions=False) as client:
        yield client


def some_codes(codec, frames=50, seed=0, levels=None):
    """[K, T] random codes that the codec could have made."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, codec.spec.codebook_size, (levels or codec.spec.num_codebooks, frames))


def decoded(codec, codes, num_samples=None):
    """[S, C] what the codec makes of codes [K, T], within [-1, 1]."""
    num_samples = codes.shape[1] * codec.spec.hop_length if num_samples is None else num_samples
    waveform = codec.decode(Encoded(torch.from_numpy(np.asarray(codes, np.int64))[None], None, num_samples))
    return waveform[0].clamp(-1, 1).T.numpy()


def sound_of(answer):
    """[S, C] of an answer that is a file."""
    assert answer.status_code == 200, answer.text
    return soundfile.read(io.BytesIO(answer.content), always_2d=True, dtype="float32")[0]


def error_of(answer):
    """Status and type of an answer that is an error, after checking that it is one."""
    error = answer.json()["error"]
    assert set(error) == {"type", "message"}
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return answer.status_code, error["type"]


def assert_serves_right(client, codec, seed=0):
    """The next good request gets its own sound."""
    codes = some_codes(codec, seed=seed)
    sound = sound_of(client.post(DECODE, json={"codec": codec.name, "codes": codes.tolist()}))
    np.testing.assert_allclose(sound, decoded(codec, codes), atol=HALF_STEP)


def wav_bytes(samples, sample_rate, *, subtype="PCM_16", file_format="WAV"):
    """A file with samples [S] or [S, C]."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate, format=file_format, subtype=subtype)
    return stream.getvalue()


@contextlib.contextmanager
def held_engine(client, name="tiny_seanet"):
    """The engine of a service whose model thread is at one piece of work until the event `release` is set."""
    engine, release, began = client.app.state.engines[name], threading.Event(), threading.Event()

    def steps():
        began.set()
        yield release.wait(10)

    work = client.portal.start_task_soon(engine.run, steps())
    assert began.wait(5)
    try:
        yield engine, release
    finally:
        release.set()
        assert work.result(5) == [True]
