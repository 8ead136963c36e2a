"""Opus as a yardstick: a clip through Debian's opusenc and back, in time with the original.

Its decoder drops the start-up delay that the file's header names, and the sample or two by which its filters are still
off at low rates are taken out here. They are inaudible, and would cost it one to three dB of SI-SNR at 12 kbps.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from dataclasses import dataclass

import soundfile
from torch import Tensor
from torch.nn import functional

from tokenizer import AudioError, read_audio, resample

MAX_LAG_S = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class OpusTrip:
    """What came back, and what it took."""

    waveform: Tensor  # [1, S] at the rate of the original
    num_bits: int  # in the packets
    encode_s: float  # of opusenc, with the start of its process
    decode_s: float  # of libsndfile


def opus_version() -> str | None:
    """The first line of `opusenc --version`, or None where it is not installed (Debian: opus-tools)."""
    if shutil.which("opusenc") is None:
        return None
    answer = subprocess.run(["opusenc", "--version"], capture_output=True, text=True, check=True)  # noqa: S607
    return answer.stdout.splitlines()[0]


def opus_round_trip(clip: Tensor, sample_rate: int, kbps: float) -> OpusTrip:
    """Encode with opusenc at a hard constant bit rate, decode again, and shift to where it fits the original best.

    Args:
        clip: [1, S].
        sample_rate: Hz.
        kbps: of the Opus packets.

    Raises:
        AudioError: opusenc refuses the clip.
    """
    wav = io.BytesIO()
    soundfile.write(wav, clip[0].numpy(), sample_rate, format="WAV", subtype="PCM_16")
    command = ["opusenc", "--quiet", "--hard-cbr", "--bitrate", f"{kbps:g}", "-", "-"]
    started = time.perf_counter()
    done = subprocess.run(command, input=wav.getvalue(), capture_output=True, check=False)  # noqa: S603
    encoded_at = time.perf_counter()
    if done.returncode != 0:
        raise AudioError(f"opusenc failed: {done.stderr.decode(errors='replace').strip()}")
    decoded, decoded_rate = read_audio(io.BytesIO(done.stdout))
    decoded_at = time.perf_counter()
    num_samples, max_lag = clip.shape[-1], round(MAX_LAG_S * sample_rate)
    decoded = resample(decoded, decoded_rate, sample_rate)[:, :num_samples]
    room = functional.pad(decoded, (max_lag, max_lag + num_samples - decoded.shape[-1]))
    shifts = [room[:, start : start + num_samples] for start in range(2 * max_lag + 1)]
    best = max(shifts, key=lambda shifted: float((shifted * clip).sum()))
    return OpusTrip(best, 8 * opus_packet_bytes(done.stdout), encoded_at - started, decoded_at - encoded_at)


def opus_packet_bytes(ogg: bytes) -> int:
    """Bytes of audio packets in an Ogg Opus file: the payload of its pages, without those of the two headers.

    Source: RFC 3533, 6 (pages); RFC 7845, 3 (header pages have the granule position 0).
    """
    total = position = 0
    while position + 27 <= len(ogg):
        num_segments = ogg[position + 26]
        payload = sum(ogg[position + 27 : position + 27 + num_segments])
        if int.from_bytes(ogg[position + 6 : position + 14], "little") != 0:
            total += payload
        position += 27 + num_segments + payload
    return total
