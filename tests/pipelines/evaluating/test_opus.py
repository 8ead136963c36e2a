"""Opus as a yardstick: in time with the original, and measured by what it sends."""

import shutil
import subprocess

import pytest
import torch

from pipelines.evaluating.opus import opus_round_trip, opus_version
from tests.conftest import speech_like
from tokenizer import AudioError
from tokenizer.metrics import si_snr

needs_opus = pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is not installed")


@needs_opus
@pytest.mark.parametrize("num_samples", [1, 480, 24001])
def test_opus_gives_back_as_many_samples(num_samples):
    """Its start-up delay and its padding are taken off again."""
    reference = torch.from_numpy(speech_like(2.0))[:num_samples]
    assert opus_round_trip(reference[None], 24000, 12).waveform.shape == (1, num_samples)


@needs_opus
def test_opus_comes_back_in_time():
    """At a high rate it is nearly the original, which one sample of delay would spoil; rates it lacks are resampled."""
    for sample_rate in (24000, 22050):
        reference = torch.from_numpy(speech_like(2.0, sample_rate))
        decoded = opus_round_trip(reference[None], sample_rate, 64).waveform[0]
        assert si_snr(reference, decoded, sample_rate) > 15


@needs_opus
def test_opus_is_measured_by_its_packets():
    """Six kilobits a second are 750 bytes; the Ogg pages around them, half as much again, are not counted."""
    trip = opus_round_trip(torch.from_numpy(speech_like(5.0))[None], 24000, 6)
    assert trip.num_bits == pytest.approx(30000, rel=0.02)
    assert trip.encode_s > 0
    assert trip.decode_s > 0


@needs_opus
def test_the_version_is_that_of_the_program():
    """What was compared with is written beside the scores."""
    assert opus_version().startswith("opusenc opus-tools")


def test_without_opusenc_there_is_no_version(monkeypatch):
    """The yardstick is left out where it is not installed."""
    monkeypatch.setenv("PATH", "")
    assert opus_version() is None


def test_a_clip_that_opusenc_refuses_fails_alone(monkeypatch):
    """The error carries what the program said."""
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, b"", b"ERROR: bad input\n")
    )
    with pytest.raises(AudioError, match="opusenc failed: ERROR: bad input"):
        opus_round_trip(torch.zeros(1, 100), 24000, 6)
