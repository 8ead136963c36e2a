"""The examples of the service run as they stand, and show what they say."""

import re
import wave

import numpy as np
import pytest
import torch

from examples import replace_codec_step, tts_stream
from lm_head import LMCard, LMConfig, TokenLM, save_lm
from pipelines.clients.decode_client import DecodeClient
from pipelines.decoding.decode_engine import DecodeEngine
from pipelines.serving.service import create_app
from tests.conftest import make_codec, tiny_spec
from tests.pipelines.running_service import running_service
from tests.pipelines.wire_streams import some_codes


@pytest.fixture(scope="module")
def codec():
    return make_codec(tiny_spec("seanet"))


@pytest.fixture(scope="module")
def url(codec):
    with running_service(create_app({"tiny": DecodeEngine(codec)}), lifespan="on") as url:
        yield url


def test_a_language_model_is_heard_while_it_speaks(url, codec, speech_folder, tmp_path, capsys):
    """The prompt and what follows it end up in one file, and the first sound came before the last."""
    prompt, output = sorted(speech_folder.rglob("*.wav"))[0], tmp_path / "spoken.wav"
    torch.manual_seed(0)
    lm = TokenLM(
        LMConfig(num_codebooks=3, codebook_size=16, dim=16, num_layers=1, num_heads=2, hidden_dim=16, context_frames=8)
    )
    save_lm(lm, tmp_path / "lm", LMCard(name="tiny", codec=codec.card()))
    tts_stream.main([str(prompt), str(output), "--url", url, "--lm", str(tmp_path / "lm"), "--seconds", "0.1"])
    printed = capsys.readouterr().out
    with wave.open(str(output)) as file:
        assert (file.getframerate(), file.getnchannels()) == (24000, 1)
        prompt_samples = file.getnframes() - 2400
        assert prompt_samples > 0
        assert prompt_samples % 8 == 0
    first_ms = float(re.search(r"first sound after (\d+) ms", printed)[1])
    assert first_ms <= 1000 * float(re.search(r"sound in ([\d.]+) s", printed)[1])


def test_windows_have_seams_and_state_has_none(url, codec, capsys):
    """The usual codec step differs from decoding everything at once; both of ours do not."""
    codes = some_codes(60).astype(np.int64)
    with DecodeClient(url) as client:
        steps = {
            "windows": replace_codec_step.windowed(codec, left_context=2),
            "state": replace_codec_step.stateful(codec),
            "service": replace_codec_step.served(client, 4),
        }
        differences = replace_codec_step.compare(codec, codes, steps, chunk_frames=7)
    assert differences["windows"] > 1e-3
    assert differences["state"] < 1e-5
    assert differences["service"] < 1e-5
    assert "largest difference" in capsys.readouterr().out
