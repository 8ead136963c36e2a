"""Opus as the codec to beat: a waveform through opusenc and opusdec, the programs of opus-tools."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer import read_audio, write_audio

MAX_LAG_S = 0.001  # Opus's filters shift by some samples, which would cost it up to 2 dB of SI-SNR for nothing audible


def opus_installed() -> bool:
    """Whether both programs are there."""
    return shutil.which("opusenc") is not None and shutil.which("opusdec") is not None


def pass_opus(reference: Tensor, sample_rate: int, kbps: int) -> tuple[int, Tensor]:
    """Encode and decode with Opus at a hard constant bitrate.

    Args:
        reference: [S] float in [-1, 1].
        sample_rate: Hz.
        kbps: bitrate of the packets.

    Returns:
        Bits of the packets, without their Ogg pages, and [S] decoded, in time with the reference.

    Raises:
        OSError: opusenc or opusdec is not installed.
        subprocess.CalledProcessError: one of them failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, coded, decoded = (str(Path(scratch) / name) for name in ("source.wav", "coded.opus", "decoded.wav"))
        write_audio(source, reference[None], sample_rate)
        encode = ["opusenc", "--quiet", "--hard-cbr", "--bitrate", str(kbps), source, coded]
        decode = ["opusdec", "--quiet", "--float", "--rate", str(sample_rate), coded, decoded]
        for command in (encode, decode):
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - fixed programs, own paths
        bits = 8 * _ogg_payload(Path(coded).read_bytes())
        waveform = read_audio(decoded)[0][0]
    return bits, _align(waveform, reference, round(MAX_LAG_S * sample_rate))


def _ogg_payload(content: bytes) -> int:
    """Bytes of packets in an Ogg Opus file, without pages and without the two headers. Source: RFC 3533, RFC 7845."""
    position, headers_left, payload = 0, 2, 0
    while position < len(content):
        num_segments = content[position + 26]
        segments = content[position + 27 : position + 27 + num_segments]
        if headers_left:  # a header packet ends its page; a segment shorter than 255 ends a packet
            headers_left -= sum(size < 255 for size in segments)
        else:
            payload += sum(segments)
        position += 27 + num_segments + sum(segments)
    return payload


def _align(degraded: Tensor, reference: Tensor, max_lag: int) -> Tensor:
    """`degraded` shifted by at most `max_lag` samples to where it correlates best, as long as `reference`."""
    length = len(reference)
    room = functional.pad(degraded[:length], (max_lag, max_lag + max(0, length - len(degraded))))
    lags = [room[start : start + length] for start in range(2 * max_lag + 1)]
    return max(lags, key=lambda shifted: float(torch.dot(shifted, reference)))
