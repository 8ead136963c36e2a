"""DAC's networks: they look ahead, and stream all the same."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_spec
from tests.tokenizer.streaming import CUTS, noise, seeded, stream
from tokenizer.dac import DacDecoder, DacEncoder, Snake
from tokenizer.network_config import DacConfig


@given(cuts=CUTS, hops=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_encoding_streams(cuts, hops):
    """Any chunks of whole hops give the latents of the whole file, once the stream has ended."""
    encoder, waveform = seeded(DacEncoder, tiny_spec("dac")), noise(2, 1, 8 * hops)
    whole = encoder(waveform)
    assert whole.shape == (2, 8, hops)
    torch.testing.assert_close(stream(encoder, waveform, cuts, 8), whole, atol=1e-5, rtol=0)


@given(cuts=CUTS, frames=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_decoding_streams(cuts, frames):
    """Any chunks of frames give the waveform of the whole file, once the stream has ended."""
    decoder, latents = seeded(DacDecoder, tiny_spec("dac")), noise(2, 8, frames)
    whole = decoder(latents)
    assert whole.shape == (2, 1, 8 * frames)
    torch.testing.assert_close(stream(decoder, latents, cuts), whole, atol=1e-5, rtol=0)


def test_odd_strides_end_early():
    """As in the released code: one sample is trimmed too many at an odd stride, and is 4 samples after the next one."""
    spec = dataclasses.replace(tiny_spec("dac"), hop_length=20, network=DacConfig(encoder_width=2, strides=(4, 5)))
    decoder = seeded(DacDecoder, dataclasses.replace(spec, network=dataclasses.replace(spec.network, decoder_width=8)))
    assert decoder(noise(1, 8, 3)).shape == (1, 1, 60 - 4)


def test_snake_follows_its_formula():
    """x + sin(alpha x)^2 / alpha, an alpha per channel, and an alpha of zero is no division by zero."""
    snake = Snake(3)
    snake.alpha.data = torch.tensor([0.5, 2.0, 0.0])[None, :, None]
    x = noise(2, 3, 10)
    y = snake(x)
    torch.testing.assert_close(y[:, 1], x[:, 1] + torch.sin(2 * x[:, 1]) ** 2 / 2)
    assert y.isfinite().all()


def test_parameters_are_named_as_in_descripts_checkpoints():
    """Positions are theirs, with our wrapper put in: adapters only rename."""
    spec = dataclasses.replace(tiny_spec("dac"), network=DacConfig(encoder_width=2, decoder_width=8, strides=(2, 4)))
    encoder, decoder = set(seeded(DacEncoder, spec).state_dict()), set(seeded(DacDecoder, spec).state_dict())
    assert {"block.0.conv.weight", "block.1.block.0.block.0.alpha", "block.1.block.2.block.3.conv.bias"} <= encoder
    assert {"block.1.block.3.alpha", "block.2.block.4.conv.weight", "block.3.alpha", "block.4.conv.bias"} <= encoder
    assert {"model.0.conv.weight", "model.1.block.0.alpha", "model.1.block.1.convtr.weight"} <= decoder
    assert {"model.2.block.4.block.1.conv.bias", "model.3.alpha", "model.4.conv.weight"} <= decoder


def test_settings_of_another_family_are_refused():
    """A programming mistake: TypeError."""
    with pytest.raises(TypeError, match="dac settings, not PatchConfig"):
        DacEncoder(tiny_spec("patch"))
