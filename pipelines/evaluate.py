"""Quality of a codec on a folder of audio: mean scores at each bandwidth, beside Opus on the same clips."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from pipelines.opus_reference import opus_installed, pass_opus
from pipelines.progress import Progress
from pipelines.sources import AUDIO_EXTENSIONS
from tokenizer import (
    Codec,
    DatasetError,
    Encoded,
    QuantoneError,
    load_codec,
    mix_channels,
    read_audio,
    resample,
    save_codec,
)
from tokenizer.metrics import mel_distance, pesq_wb, si_snr, stoi, visqol

MAX_CLIP_SECONDS = 8  # of each file, its beginning: what PESQ is meant for, and no long file outweighs the others
OPUS_KBPS = (6, 12)

Metric = Callable[[Tensor, Tensor, int], float]
METRICS: dict[str, Metric] = {
    "si_snr": si_snr,
    "mel_distance": mel_distance,
    "stoi": stoi,
    "pesq_wb": pesq_wb,
    "visqol": visqol,
}
_HEADINGS = {"si_snr": "SI-SNR dB", "mel_distance": "mel", "stoi": "STOI", "pesq_wb": "PESQ-WB", "visqol": "ViSQOL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRow:
    """Mean scores of one codec at one bandwidth."""

    system: str  # the codec's name, or "opus"
    bandwidth_kbps: float  # asked for
    kbps: float  # measured: bits of codes, or of Opus packets without their Ogg pages, per second of audio
    num_clips: int
    scores: dict[str, float | None]  # by metric; None where no clip could be rated
    failures: dict[str, int]  # clips that a metric could not rate, and that its mean leaves out


@dataclass(frozen=True, slots=True)
class _Rating:
    """One clip, after one codec at one bandwidth."""

    system: str
    bandwidth_kbps: float
    bits: int
    seconds: float
    scores: dict[str, float]  # of the metrics that could rate it


@dataclass(frozen=True, slots=True)
class _Worker:
    """What each process is started with."""

    codec: Codec
    bandwidths_kbps: tuple[float, ...]
    opus_kbps: tuple[int, ...]


@dataclass(slots=True)
class _Ratings:
    """What the clips of a folder have brought so far."""

    by_system: dict[tuple[str, float], list[_Rating]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # path -> why it could not be read

    def add(self, ratings: Sequence[_Rating]) -> None:
        for rating in ratings:
            self.by_system.setdefault((rating.system, rating.bandwidth_kbps), []).append(rating)


def evaluate_codec(
    codec: str,
    folder: Path,
    *,
    bandwidths_kbps: Sequence[float] | None = None,
    limit: int | None = None,
    output_json: Path | None = None,
    with_opus: bool = True,
    num_workers: int = 2,
) -> list[QualityRow]:
    """Encode and decode the audio files of a folder, and compare what comes back with what went in.

    Files are mixed to mono, cut to their first 8 seconds and brought to the codec's rate. A file that cannot be read
    and a clip that a metric cannot rate (PESQ finds no utterance, say) are counted, and left out of the means.

    Args:
        codec: a bundled name or a codec directory; read once, so it may be replaced meanwhile.
        folder: searched to any depth.
        bandwidths_kbps: None for the codec's customary ones.
        limit: this many files at most, spread evenly over the sorted ones.
        output_json: where to write rows, the codec's card and what was skipped.
        with_opus: add Opus at 6 and 12 kbps (hard CBR), if opusenc and opusdec are installed.
        num_workers: processes, with one torch thread each.

    Returns:
        One row per bandwidth of the codec, then Opus; `quality_table` shows them.

    Raises:
        ValueError: a bandwidth that the codec does not have, or a limit or number of workers below 1.
        DatasetError: no audio files in the folder, or none that can be read.
        CheckpointError: no such codec.
        ImportError: a metric's package is missing.
    """
    if num_workers < 1 or (limit is not None and limit < 1):
        raise ValueError("num_workers and limit must be at least 1")
    loaded = load_codec(codec)
    bandwidths = tuple(bandwidths_kbps) if bandwidths_kbps is not None else loaded.spec.bandwidths_kbps
    for bandwidth in bandwidths:
        loaded.spec.num_codebooks_at(bandwidth)
    opus = OPUS_KBPS if with_opus and opus_installed() else ()
    files = _list_files(folder, limit)
    ratings = _rate_files(files, _Worker(loaded, bandwidths, opus), num_workers)
    if not ratings.by_system:
        raise DatasetError(f"{folder}: no file could be read; the first: {next(iter(ratings.skipped.values()))}")
    systems = [*((loaded.name, kbps) for kbps in bandwidths), *(("opus", float(kbps)) for kbps in opus)]
    rows = [_mean(ratings.by_system[system]) for system in systems]
    if output_json is not None:
        _write_json(output_json, rows, loaded, ratings.skipped)
    return rows


def quality_table(rows: Sequence[QualityRow]) -> Table:
    """Rows as a table for the terminal; "(n)" behind a score says that n clips could not be rated."""
    table = Table(title=f"mean of {rows[0].num_clips} clips" if rows else None)
    table.add_column("codec")
    for heading in ("kbps", *_HEADINGS.values()):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.system, f"{row.kbps:.2f}", *(_cell(row, metric) for metric in _HEADINGS))
    return table


def _cell(row: QualityRow, metric: str) -> str:
    score, failures = row.scores[metric], row.failures[metric]
    shown = "-" if score is None else f"{score:.2f}" if metric in ("si_snr", "pesq_wb", "visqol") else f"{score:.3f}"
    return f"{shown} ({failures})" if failures else shown


def _list_files(folder: Path, limit: int | None) -> list[Path]:
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_EXTENSIONS)
    if not files:
        raise DatasetError(f"{folder}: no audio files; looked for {', '.join(AUDIO_EXTENSIONS)}")
    if limit is None or limit >= len(files):
        return files
    return [files[index * len(files) // limit] for index in range(limit)]


def _rate_files(files: Sequence[Path], worker: _Worker, num_workers: int) -> _Ratings:
    """Rate every file in worker processes, which get the weights as they are now through a folder of their own."""
    ratings = _Ratings()
    with tempfile.TemporaryDirectory() as snapshot, Progress("evaluate", len(files)) as progress:
        save_codec(worker.codec, snapshot)
        with ProcessPoolExecutor(
            min(num_workers, len(files)),
            mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with torch's threads can hang
            initializer=_start_worker,
            initargs=(snapshot, worker.bandwidths_kbps, worker.opus_kbps),
        ) as pool:
            pending = {pool.submit(_rate_file, path): path for path in files}
            try:
                for future in as_completed(pending):
                    result = future.result()
                    if isinstance(result, str):
                        ratings.skipped[str(pending[future])] = result
                        progress.advance(files=1, errors=1)
                    else:
                        ratings.add(result)
                        progress.advance(files=1, seconds=result[0].seconds if result else 0.0)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return ratings


_worker: _Worker | None = None  # of this process; set once, when it starts


def _start_worker(snapshot: str, bandwidths_kbps: tuple[float, ...], opus_kbps: tuple[int, ...]) -> None:
    global _worker  # noqa: PLW0603 - a process pool hands its workers nothing else
    torch.set_num_threads(1)
    _worker = _Worker(load_codec(snapshot), bandwidths_kbps, opus_kbps)


def _rate_file(path: Path) -> list[_Rating] | str:
    """Every rating of one file, or why it could not be read."""
    if _worker is None:
        raise RuntimeError("the worker process was not started by _start_worker")
    try:
        reference = _read_clip(path, _worker.codec.spec.sample_rate)
    except (QuantoneError, OSError) as error:
        return str(error)
    return list(_rate_clip(reference, _worker))


def _read_clip(path: Path, sample_rate: int) -> Tensor:
    """[S] mono at `sample_rate`, the first seconds of the file."""
    waveform, from_rate = read_audio(path)
    beginning = mix_channels(waveform[:, : MAX_CLIP_SECONDS * from_rate], 1)
    return resample(beginning, from_rate, sample_rate)[0]


def _rate_clip(reference: Tensor, worker: _Worker) -> Iterator[_Rating]:
    spec = worker.codec.spec
    seconds = len(reference) / spec.sample_rate
    for kbps, bits, decoded in _pass_codec(reference, worker.codec, worker.bandwidths_kbps):
        yield _Rating(worker.codec.name, kbps, bits, seconds, _score(reference, decoded, spec.sample_rate))
    for opus_kbps in worker.opus_kbps:
        bits, decoded = pass_opus(reference, spec.sample_rate, opus_kbps)
        yield _Rating("opus", float(opus_kbps), bits, seconds, _score(reference, decoded, spec.sample_rate))


def _pass_codec(
    reference: Tensor, codec: Codec, bandwidths_kbps: Sequence[float]
) -> Iterator[tuple[float, int, Tensor]]:
    """(bandwidth, bits of the codes, [S] decoded) for each bandwidth: prefixes of one encoding."""
    if not bandwidths_kbps:
        return
    waveform = mix_channels(reference[None], codec.spec.channels)
    encoded = codec.encode(waveform, bandwidth_kbps=max(bandwidths_kbps))
    for kbps in bandwidths_kbps:
        codes = encoded.codes[:, : codec.spec.num_codebooks_at(kbps)]
        decoded = codec.decode(Encoded(codes, encoded.scales, encoded.num_samples))[0].mean(dim=0)
        yield kbps, codes.numel() * codec.spec.bits_per_code, decoded


def _score(reference: Tensor, degraded: Tensor, sample_rate: int) -> dict[str, float]:
    scores = {}
    for name, metric in METRICS.items():
        try:
            scores[name] = metric(reference, degraded, sample_rate)
        except ValueError:  # this clip cannot be rated; missing scores are counted in the end
            continue
    return scores


def _mean(ratings: Sequence[_Rating]) -> QualityRow:
    scores: dict[str, float | None] = {}
    counts: Counter[str] = Counter()
    for metric in METRICS:
        rated = [rating.scores[metric] for rating in ratings if metric in rating.scores]
        scores[metric] = sum(rated) / len(rated) if rated else None
        counts[metric] = len(ratings) - len(rated)
    bits, seconds = sum(rating.bits for rating in ratings), sum(rating.seconds for rating in ratings)
    return QualityRow(
        system=ratings[0].system,
        bandwidth_kbps=ratings[0].bandwidth_kbps,
        kbps=bits / seconds / 1000,
        num_clips=len(ratings),
        scores=scores,
        failures=dict(counts),
    )


def _write_json(path: Path, rows: Sequence[QualityRow], codec: Codec, skipped: dict[str, str]) -> None:
    report: dict[str, Any] = {
        "codec": codec.card(),
        "max_clip_seconds": MAX_CLIP_SECONDS,
        "rows": [dataclasses.asdict(row) for row in rows],
        "skipped": skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
