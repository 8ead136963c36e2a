"""The report: what a token dataset holds and how it sounds, gathered and written as one self-contained page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_head.entropy import order_zero_entropy, perplexity
from pipelines import storage
from pipelines.dataset import open_dataset, open_errors
from pipelines.dataset_info import DatasetInfo, read_dataset_info
from pipelines.polars_namespace import LazyCodes
from pipelines.report_facts import Example, Level, Rendition, Report, Totals
from pipelines.report_page import render_page
from pipelines.spectrogram import codes_png, entry_levels, reference_level, spectrogram_png
from pipelines.stored_codes import StoredUtterance, level_bytes, load_dataset_codec, num_codebooks_at, read_utterances
from tokenizer import Codec, mix_channels, read_audio, resample
from tokenizer.metrics import mel_distance, si_snr

MAX_EXAMPLE_S = 12.0  # of a longer utterance the beginning is shown
MAX_ERRORS_SHOWN = 50
MAX_BANDWIDTHS = 3  # shown when none are asked for


def write_report(
    dataset: str | Path,
    output: str | Path,
    *,
    bandwidths_kbps: Sequence[float] | None = None,
    num_examples: int = 8,
    codec: str | None = None,
) -> Path:
    """Write a page with the dataset's sizes, codebook use, quality and examples to hear; it needs nothing beside it.

    Args:
        dataset: a token dataset, local or s3://.
        output: the HTML file to write; its folder is created.
        bandwidths_kbps: to decode the examples at; None for at most three, up to what is stored.
        num_examples: utterances shown, spread over the dataset.
        codec: where the dataset's codec is now; None for where it was.

    Returns:
        The path of the page.

    Raises:
        ValueError: a bandwidth that is not stored, or a negative number of examples.
        DatasetError: no dataset, another codec, a damaged part.
        CheckpointError: the codec is not there.
    """
    if num_examples < 0:
        raise ValueError(f"num_examples must not be negative, got {num_examples}")
    info = read_dataset_info(dataset)
    loaded = load_dataset_codec(info, codec)
    bandwidths = _bandwidths(info, loaded, bandwidths_kbps)
    rows = open_dataset(dataset)
    errors = open_errors(dataset)
    num_bytes, parts_bytes = level_bytes(dataset)
    totals = _measure_totals(info, rows, errors, sum(num_bytes), parts_bytes)
    report = Report(
        title=Path(str(dataset).rstrip("/")).name,
        info=info,
        frame_rate=loaded.spec.frame_rate,
        totals=totals,
        levels=_measure_levels(rows, totals, num_bytes),
        bandwidths_kbps=bandwidths,
        examples=tuple(_render_examples(dataset, loaded, bandwidths, _choose_examples(rows, num_examples))),
        errors=tuple(errors.head(MAX_ERRORS_SHOWN).collect().to_dicts()),
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    storage.commit(str(output.absolute()), render_page(report).encode())
    return output


def _bandwidths(info: DatasetInfo, codec: Codec, asked: Sequence[float] | None) -> tuple[float, ...]:
    if asked is None:
        listed = [kbps for kbps in codec.spec.bandwidths_kbps if kbps < info.bandwidth_kbps - 1e-9]
        return (*listed[-(MAX_BANDWIDTHS - 1) :], info.bandwidth_kbps)
    for kbps in asked:
        num_codebooks_at(info, codec, kbps)
    return tuple(sorted(set(asked)))


def _measure_totals(
    info: DatasetInfo, rows: pl.LazyFrame, errors: pl.LazyFrame, codes_bytes: int, parts_bytes: int
) -> Totals:
    sums = rows.select(files=pl.len(), frames=pl.col("num_frames").sum(), samples=pl.col("num_samples").sum()).collect()
    files, frames, samples = sums.row(0)
    return Totals(
        num_files=files,
        num_errors=errors.select(pl.len()).collect().item(),
        audio_seconds=samples / info.sample_rate,
        num_frames=frames,
        num_codes=frames * info.num_codebooks,
        parts_bytes=parts_bytes,
        codes_bytes=codes_bytes,
        pcm_bytes=2 * samples * int(info.codec["spec"].get("channels", 1)),
    )


def _measure_levels(rows: pl.LazyFrame, totals: Totals, num_bytes: Sequence[int]) -> tuple[Level, ...]:
    if totals.num_codes == 0:
        return ()
    histogram = np.stack([LazyCodes(rows).histogram(level)["count"].to_numpy() for level in range(len(num_bytes))])
    codes_per_level = totals.num_codes / len(num_bytes)
    measures = zip((histogram > 0).sum(axis=1), perplexity(histogram), order_zero_entropy(histogram), strict=True)
    return tuple(
        Level(
            entries_used=int(used),
            perplexity=float(effective),
            entropy_bits=float(bits),
            bits_at_rest=8 * size / codes_per_level,
        )
        for (used, effective, bits), size in zip(measures, num_bytes, strict=True)
    )


def _choose_examples(rows: pl.LazyFrame, count: int) -> pl.DataFrame:
    """`count` utterances at equal distances in the order of their ids, short ones where there are enough."""
    columns = ["id", "uri", "duration_s", "source_sample_rate", "source_channels"]
    everything = rows.select(columns).collect().sort("id")
    short = everything.filter(pl.col("duration_s") <= MAX_EXAMPLE_S)
    pool = short if short.height >= count else everything
    count = min(count, pool.height)
    return pool[[round((index + 0.5) * pool.height / count - 0.5) for index in range(count)]]


def _render_examples(
    dataset: str | Path, codec: Codec, bandwidths: Sequence[float], chosen: pl.DataFrame
) -> list[Example]:
    num_codebooks = codec.spec.num_codebooks_at(bandwidths[-1])
    rows = {row["id"]: row for row in chosen.to_dicts()}
    colours = _colours(codec)
    examples = []
    for utterance in read_utterances(dataset, num_codebooks, rows):
        row = rows[utterance.id]
        num_samples = min(utterance.num_samples, round(MAX_EXAMPLE_S * codec.spec.sample_rate))
        codes = utterance.codes[:, : codec.spec.num_frames(num_samples)]
        original, problem = _read_original(row["uri"], codec, utterance.num_samples)
        examples.append(
            Example(
                id=utterance.id,
                duration_s=row["duration_s"],
                shown_s=num_samples / codec.spec.sample_rate,
                source_sample_rate=row["source_sample_rate"],
                source_channels=row["source_channels"],
                codes_picture=codes_png(codes, colours),
                num_frames_shown=codes.shape[1],
                renditions=_render(
                    codec, utterance, num_samples, bandwidths, None if original is None else original[:, :num_samples]
                ),
                original_problem=problem,
            )
        )
    return sorted(examples, key=lambda example: example.id)


def _colours(codec: Codec) -> NDArray[np.float32]:
    """A level [K, V] for every entry: by likeness where the codebooks are at hand, by number otherwise."""
    spec = codec.spec
    if spec.family == "transformers":  # its model keeps them to itself
        return np.tile(np.linspace(0, 1, spec.codebook_size, dtype=np.float32), (spec.num_codebooks, 1))
    return entry_levels(codec.quantizer.codebooks.float().numpy())


def _read_original(uri: str, codec: Codec, num_samples: int) -> tuple[Tensor | None, str | None]:
    """The original [C, num_samples] as the codec heard it, or None and the reason; num_samples is the whole of it."""
    try:
        with storage.open_input(uri) as stream:
            waveform, sample_rate = read_audio(stream)
    except Exception as error:  # noqa: BLE001 - a file out of reach (S3 has its own errors) is a line in the report
        return None, f"{uri} cannot be read any more: {getattr(error, 'strerror', None) or error}"
    waveform = resample(mix_channels(waveform, codec.spec.channels), sample_rate, codec.spec.sample_rate)
    if waveform.shape[-1] != num_samples:
        return None, f"{uri} has changed: it is not as long as it was when it was tokenized"
    return waveform, None


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
