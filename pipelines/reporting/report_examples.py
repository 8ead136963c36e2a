"""Examples of a report: which utterances to show, and how each looks and sounds at every bandwidth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.stored_codes import StoredUtterance, read_utterances
from pipelines.inputs.original_audio import OriginalReader
from pipelines.reporting.report_facts import Example, Rendition
from pipelines.spectrogram import codes_png, entry_levels, reference_level, spectrogram_png
from tokenizer import Codec, mix_channels
from tokenizer.metrics import mel_distance, si_snr

MAX_EXAMPLE_S = 12.0  # of a longer utterance the beginning is shown
CHOICE_COLUMNS = (
    *("id", "uri", "input_id", "start_sample", "num_samples", "duration_s"),
    *("source_sample_rate", "source_channels"),
)
_WORST = {"mel_distance": "among the worst by mel distance", "si_snr_db": "among the worst by SI-SNR"}


class ExampleChoice:
    """One row from each of `count` equal stretches of a dataset, near its middle, and a short one where there is one.

    Args:
        count: rows to choose.
        num_rows: that will come.
    """

    def __init__(self, count: int, num_rows: int) -> None:
        self._count, self._num_rows = min(count, num_rows), num_rows
        self._seen = 0
        self._best: pl.DataFrame | None = None

    def add(self, batch: pl.DataFrame) -> None:
        """Look at the next rows, in the order of the dataset."""
        row = pl.int_range(self._seen, self._seen + batch.height)
        self._seen += batch.height
        if self._count == 0:
            return
        stretch = row * self._count // self._num_rows
        middle = (stretch * 2 + 1) * self._num_rows // (2 * self._count)
        found = batch.select([name for name in CHOICE_COLUMNS if name in batch.columns]).with_columns(
            _stretch=stretch, _long=pl.col("duration_s") > MAX_EXAMPLE_S, _far=(row - middle).abs()
        )
        both = found if self._best is None else pl.concat([self._best, found])
        self._best = both.sort("_stretch", "_long", "_far", maintain_order=True).unique(
            "_stretch", keep="first", maintain_order=True
        )

    def rows(self) -> pl.DataFrame:
        """The rows that were chosen, in the order of the dataset."""
        return pl.DataFrame(schema={"id": pl.String}) if self._best is None else self._best.select(pl.exclude("^_.*$"))


def choose_examples(spread: pl.DataFrame, worst: Mapping[str, pl.DataFrame], count: int) -> dict[str, dict[str, Any]]:
    """Rows to show by id, each with a `remark`: up to a half are the worst where quality was measured.

    Args:
        spread: rows from everywhere, `count` of them or all that there are.
        worst: rows by column, the worst first.
        count: to choose.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for column, remark in _WORST.items():
        if column in worst:
            new = [row for row in worst[column].to_dicts() if row["id"] not in chosen]
            chosen |= {row["id"]: {**row, "remark": remark} for row in new[: count // 4]}
    others = [row for row in spread.to_dicts() if row["id"] not in chosen]
    left = max(0, count - len(chosen))
    for index in range(min(left, len(others))):
        row = others[int((index + 0.5) * len(others) / min(left, len(others)))]
        chosen[row["id"]] = {**row, "remark": None}
    return chosen


def render_examples(
    dataset: str | Path, codec: Codec, bandwidths: Sequence[float], rows: Mapping[str, Mapping[str, Any]]
) -> list[Example]:
    """Decode the chosen rows, read their originals again, and draw and score both; those for variety come first."""
    num_codebooks = codec.spec.num_codebooks_at(bandwidths[-1])
    colours = _colours(codec)
    originals = OriginalReader(dataset, rows.values())
    examples = []
    for utterance in read_utterances(dataset, num_codebooks, rows):
        row = rows[utterance.id]
        num_samples = min(utterance.num_samples, round(MAX_EXAMPLE_S * codec.spec.sample_rate))
        codes = utterance.codes[:, : codec.spec.num_frames(num_samples)]
        original, problem = originals.read(row, codec.spec, num_samples)
        examples.append(
            Example(
                id=utterance.id,
                remark=row["remark"],
                duration_s=row["duration_s"],
                shown_s=num_samples / codec.spec.sample_rate,
                source_sample_rate=row["source_sample_rate"],
                source_channels=row["source_channels"],
                codes_picture=codes_png(codes, colours),
                num_frames_shown=codes.shape[1],
                renditions=_render(codec, utterance, num_samples, bandwidths, original),
                original_problem=problem,
            )
        )
    return sorted(examples, key=lambda example: (example.remark is not None, example.remark or "", example.id))


def _colours(codec: Codec) -> NDArray[np.float32]:
    """A level [K, V] for every entry: by likeness where the codebooks are at hand, by number otherwise."""
    spec = codec.spec
    if spec.family == "transformers":  # its model keeps them to itself
        return np.tile(np.linspace(0, 1, spec.codebook_size, dtype=np.float32), (spec.num_codebooks, 1))
    return entry_levels(codec.quantizer.codebooks.float().numpy())


def _render(
    codec: Codec, utterance: StoredUtterance, num_samples: int, bandwidths: Sequence[float], original: Tensor | None
) -> tuple[Rendition, ...]:
    sample_rate = codec.spec.sample_rate
    decoded = {kbps: _decode_beginning(codec, utterance, num_samples, kbps) for kbps in bandwidths}  # [C, S] each
    loudest = original if original is not None else decoded[bandwidths[-1]]
    reference = reference_level(_mono(loudest).numpy(), sample_rate)

    def rendition(waveform: Tensor, kbps: float | None) -> Rendition:
        compared = None if kbps is None or original is None else (_mono(original), _mono(waveform), sample_rate)
        return Rendition(
            bandwidth_kbps=kbps,
            flac=_flac(waveform, sample_rate),
            spectrogram=spectrogram_png(_mono(waveform).numpy(), sample_rate, reference),
            si_snr_db=None if compared is None else float(si_snr(*compared)),
            mel_distance=None if compared is None else float(mel_distance(*compared)),
        )

    first = () if original is None else (rendition(original, None),)
    return (*first, *(rendition(decoded[kbps], kbps) for kbps in bandwidths))


def _decode_beginning(codec: Codec, utterance: StoredUtterance, num_samples: int, kbps: float) -> Tensor:
    """The first samples [C, num_samples] of the whole decoded utterance; the rest is hardly computed.

    Decoding a prefix of the codes would end otherwise, where layers look ahead or segments overlap.
    """
    pieces: list[Tensor] = []
    for piece in codec.decode_blocks(utterance.encoded(), bandwidth_kbps=kbps):
        pieces.append(piece[0])
        if sum(known.shape[-1] for known in pieces) >= num_samples:
            break
    return torch.cat(pieces, dim=-1)[:, :num_samples]


def _mono(waveform: Tensor) -> Tensor:
    """[C, S] to [S]: what is drawn and scored."""
    return mix_channels(waveform, 1)[0]


def _flac(waveform: Tensor, sample_rate: int) -> bytes:
    """[C, S] as a 16-bit FLAC file, which every current browser plays."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clamp(-1, 1).T.numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
