"""The Python of docs/serving.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.serve_process import Service

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
BY_HANDLE, BY_HTTP, BY_WEBSOCKET = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(code, **names):
    exec(compile(code, "docs/serving.md", "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.mark.slow
def test_the_handle_of_an_actor(ray_session, capsys):
    """A whole utterance, and the same codes as a stream, whose pieces make up the same length."""
    names = run(BY_HANDLE)
    assert names["waveform"].shape == (1, 75 * 320)
    lengths = [int(length) for length in re.findall(r"\(1, (\d+)\)", capsys.readouterr().out)]
    assert sum(lengths) == 75 * 320
    import ray

    ray.kill(names["decoder"])


@pytest.mark.slow
def test_the_clients():
    """Over HTTP and over a WebSocket: the same sound, up to the 16 bits of HTTP."""
    codes = np.random.default_rng(0).integers(0, 1024, (8, 75))
    played = []
    with Service("--port", "0") as service:
        address = "http://127.0.0.1:8000"
        assert address in BY_HTTP
        assert address in BY_WEBSOCKET
        names = run(BY_HTTP.replace(address, service.url), codes=codes)
        chunks = np.array_split(codes, 10, axis=1)
        names |= {"chunks_of_the_model": chunks, "play": played.append}
        run(BY_WEBSOCKET.replace(address, service.url), **names)
        service.end()
    np.testing.assert_allclose(np.concatenate(played, axis=1), np.clip(names["waveform"], -1, 1), atol=1e-3)
