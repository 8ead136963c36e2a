"""How good a codec is, in numbers: the metrics of `tokenizer.metrics` over a folder, with Opus on the same clips.

    file ─ one channel, the codec's rate, first 8 s ───┬─ codec at each bandwidth ─┬─ five metrics, measured kbps
                                                       └─ opusenc, 6 and 12 kbps ──┘        mean over the clips

Opus is compared in time with the original: its decoder drops the start-up delay that the file's header names, and the
sample or two by which its filters are still off at low rates are taken out here. They are inaudible, and would cost it
one to three dB of SI-SNR at 12 kbps.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from pipelines import storage
from pipelines.progress import Progress
from pipelines.sources import list_source
from tokenizer import AudioError, Codec, load_codec, mix_channels, read_audio, resample, save_codec
from tokenizer.metrics import mel_distance, pesq_wb, si_snr, stoi, visqol

MAX_CLIP_S = 8  # of every file, from its start: what PESQ was made for, and long files get no extra weight
OPUS_KBPS = (6.0, 12.0)
MAX_OPUS_LAG_S = 0.001
SCALE_BITS = 32  # float32, one a segment
METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "si_snr_db": si_snr,
    "mel_distance": mel_distance,
    "stoi": stoi,
    "pesq_wb": pesq_wb,
    "visqol": visqol,
}
_HEADINGS = {"si_snr_db": "SI-SNR dB", "mel_distance": "mel", "stoi": "STOI", "pesq_wb": "PESQ-WB", "visqol": "ViSQOL"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One row of the table: a codec at one bandwidth, averaged over all clips."""

    system: str  # the codec's name, or "opus"
    bandwidth_kbps: float  # what was asked for
    measured_kbps: float  # bits of codes and scales by seconds of clips; no entropy coding, no containers
    num_clips: int
    scores: dict[str, float | None]  # metric -> mean over the clips that it could judge; None if there were none
    failures: dict[str, int]  # metric -> number of clips that it could not judge


@dataclass(frozen=True, slots=True)
class ClipResult:
    """What one clip gave in one system."""

    system: str
    bandwidth_kbps: float
    num_bits: int
    seconds: float
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class _Job:
    """What every worker needs to know; it loads the codec once."""

    codec: str  # a copy of our own: training may replace the original at any time
    bandwidths_kbps: tuple[float, ...]
    opus_kbps: tuple[float, ...]


def evaluate_codec(
    codec: str,
    folder: Path,
    *,
    bandwidths_kbps: Sequence[float] | None = None,
    limit: int | None = None,
    output_json: Path | None = None,
    with_opus: bool = True,
    num_workers: int = 2,
    progress: bool = True,
) -> list[Evaluation]:
    """Measure a codec, and Opus beside it, on the audio files of a folder.

    Workers are fresh processes: a script that calls this keeps the call under `if __name__ == "__main__":`. With one
    worker everything runs here.

    Args:
        codec: a name or directory that `load_codec` knows.
        folder: searched to any depth, in the order of paths.
        bandwidths_kbps: None for the codec's customary ones.
        limit: at most so many files, spread evenly over the sorted listing.
        output_json: where the rows go too, with the codec's card.
        with_opus: also run opusenc (Debian's opus-tools) at 6 and 12 kbps; left out where it is not installed.
        num_workers: processes, with one torch thread each.
        progress: show it on stderr.

    Returns:
        One row per bandwidth, low to high, then Opus. Files that cannot be read are counted in the JSON and left out.

    Raises:
        DatasetError: the folder holds no audio files.
        AudioError: none of them can be read.
        CheckpointError: no such codec.
        ValueError: a bandwidth that the codec does not have, or a limit or number of workers below 1.
        ImportError: a metric's package is missing.
    """
    if num_workers < 1 or (limit is not None and limit < 1):
        raise ValueError(f"num_workers and limit must be at least 1, not {num_workers} and {limit}")
    loaded = load_codec(codec)
    bandwidths = tuple(sorted(bandwidths_kbps or loaded.spec.bandwidths_kbps))
    for kbps in bandwidths:
        loaded.spec.num_codebooks_at(kbps)
    opus_version = _opus_version() if with_opus else None
    uris = [file.uri for file in list_source(folder)]
    uris = uris if limit is None else [uris[i * len(uris) // limit] for i in range(min(limit, len(uris)))]
    clips, unreadable = [], {}
    with (
        tempfile.TemporaryDirectory() as copy,
        Progress("evaluate", total_files=len(uris), shown=progress) as shown,
    ):
        if loaded.spec.family != "transformers":  # those are kept in a layout of their own, and never trained here
            save_codec(loaded, copy)
            codec = copy
        job = _Job(codec, bandwidths, OPUS_KBPS if opus_version else ())
        for uri, outcome in zip(uris, _run(job, uris, num_workers), strict=True):
            if isinstance(outcome, str):
                unreadable[uri] = outcome
                shown.advance(files=1, errors=1)
            else:
                clips.append(outcome)
                shown.advance(files=1, seconds=outcome[0].seconds)
    if not clips:
        raise AudioError(f"{folder}: none of {len(uris)} audio files can be read: {next(iter(unreadable.values()))}")
    rows = [_average(column) for column in zip(*clips, strict=True)]
    if output_json is not None:
        facts = {"codec": loaded.card(), "folder": str(folder), "max_clip_s": MAX_CLIP_S, "opus": opus_version}
        report = {**facts, "unreadable": unreadable, "rows": [asdict(row) for row in rows]}
        output_json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return rows


def evaluation_table(rows: Sequence[Evaluation]) -> Table:
    """The rows as a table for the terminal; a score in brackets says how many clips it lacks."""
    table = Table(title=f"mean over {rows[0].num_clips} clips" if rows else None)
    for heading in ("codec", "kbps", "measured", *_HEADINGS.values()):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for row in rows:
        cells = [_cell(row.scores[name], row.failures[name], 3 if name != "si_snr_db" else 2) for name in _HEADINGS]
        table.add_row(row.system, f"{row.bandwidth_kbps:g}", f"{row.measured_kbps:.2f}", *cells)
    return table


def opus_round_trip(clip: Tensor, sample_rate: int, kbps: float) -> tuple[Tensor, int]:
    """Encode with opusenc at a hard constant bit rate, decode again, and shift to where it fits the original best.

    Args:
        clip: [1, S].
        sample_rate: Hz.
        kbps: of the Opus packets.

    Returns:
        [1, S] at the same rate, and the number of bits in the packets.
    """
    wav = io.BytesIO()
    soundfile.write(wav, clip[0].numpy(), sample_rate, format="WAV", subtype="PCM_16")
    command = ["opusenc", "--quiet", "--hard-cbr", "--bitrate", f"{kbps:g}", "-", "-"]
    encoded = subprocess.run(command, input=wav.getvalue(), capture_output=True, check=True).stdout  # noqa: S603
    decoded, decoded_rate = read_audio(io.BytesIO(encoded))
    num_samples, max_lag = clip.shape[-1], round(MAX_OPUS_LAG_S * sample_rate)
    decoded = resample(decoded, decoded_rate, sample_rate)[:, :num_samples]
    room = functional.pad(decoded, (max_lag, max_lag + num_samples - decoded.shape[-1]))
    shifts = [room[:, start : start + num_samples] for start in range(2 * max_lag + 1)]
    return max(shifts, key=lambda shifted: float((shifted * clip).sum())), 8 * opus_packet_bytes(encoded)


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


_worker: tuple[_Job, Codec] | None = None  # this process's codec, set once by _start_worker


def _start_worker(job: _Job) -> None:
    global _worker  # noqa: PLW0603 - a pool's initializer has nowhere else to leave what its tasks share
    torch.set_num_threads(1)
    _worker = job, load_codec(job.codec)


def _run_in_worker(uri: str) -> list[ClipResult] | str:
    if _worker is None:
        raise RuntimeError("the worker was not started with _start_worker")
    return _evaluate_file(uri, *_worker)


def _run(job: _Job, uris: Sequence[str], num_workers: int) -> Iterator[list[ClipResult] | str]:
    if num_workers == 1:
        codec = load_codec(job.codec)
        yield from (_evaluate_file(uri, job, codec) for uri in uris)
        return
    # Forking a process whose torch already has threads can hang in them; a spawned one starts clean.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(job,)) as pool:
        yield from pool.map(_run_in_worker, uris)


def _evaluate_file(uri: str, job: _Job, codec: Codec) -> list[ClipResult] | str:
    """Every system's result on one file, in the order of the rows; or why the file cannot be read."""
    sample_rate = codec.spec.sample_rate
    try:
        with storage.open_input(uri) as stream:
            waveform, source_rate = read_audio(stream)
        clip = resample(mix_channels(waveform, 1)[:, : MAX_CLIP_S * source_rate], source_rate, sample_rate)  # [1, S]
    except (AudioError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    encoded = codec.encode(mix_channels(clip, codec.spec.channels), bandwidth_kbps=max(job.bandwidths_kbps))
    scale_bits = 0 if encoded.scales is None else SCALE_BITS * encoded.scales.numel()
    results = []
    for kbps in job.bandwidths_kbps:
        decoded = codec.decode(encoded, bandwidth_kbps=kbps)[0]  # [C, S]
        num_codes = codec.spec.num_codebooks_at(kbps) * encoded.codes.shape[-1]
        num_bits = num_codes * codec.spec.bits_per_code + scale_bits
        results.append(_judge(codec.name, kbps, num_bits, (clip[0], mix_channels(decoded, 1)[0], sample_rate)))
    for kbps in job.opus_kbps:
        decoded, num_bits = opus_round_trip(clip, sample_rate, kbps)
        results.append(_judge("opus", kbps, num_bits, (clip[0], decoded[0], sample_rate)))
    return results


def _judge(system: str, kbps: float, num_bits: int, compared: tuple[Tensor, Tensor, int]) -> ClipResult:
    scores: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            scores[name] = metric(*compared)
        except ValueError:  # no speech found, too short: this metric says nothing about this clip
            scores[name] = None
    return ClipResult(system, kbps, num_bits, len(compared[0]) / compared[2], scores)


def _average(clips: Sequence[ClipResult]) -> Evaluation:
    scores: dict[str, float | None] = {}
    failures = {}
    for name in METRICS:
        known = [score for clip in clips if (score := clip.scores[name]) is not None]
        scores[name] = sum(known) / len(known) if known else None
        failures[name] = len(clips) - len(known)
    kbps = sum(clip.num_bits for clip in clips) / sum(clip.seconds for clip in clips) / 1000
    return Evaluation(clips[0].system, clips[0].bandwidth_kbps, kbps, len(clips), scores, failures)


def _cell(score: float | None, failures: int, digits: int) -> str:
    text = "-" if score is None else f"{score:.{digits}f}"
    return f"{text} ({failures} missing)" if failures else text


def _opus_version() -> str | None:
    if shutil.which("opusenc") is None:
        return None
    answer: Any = subprocess.run(["opusenc", "--version"], capture_output=True, text=True, check=True)  # noqa: S607
    return str(answer.stdout).splitlines()[0]
