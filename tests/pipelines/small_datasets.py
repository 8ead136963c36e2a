"""Token datasets for tests, written part by part without a job and without Ray."""

import dataclasses
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from pipelines import storage
from pipelines.datasets.commit_record import record_name, record_of
from pipelines.datasets.dataset_info import DatasetInfo, write_dataset_info
from pipelines.datasets.listing import SourceFile, listing_of
from pipelines.datasets.parts import ErrorRow, PartFormat, TokenRow, encode_errors, encode_part, part_name
from pipelines.datasets.plan import Plan
from tests.conftest import speech_like
from tests.pipelines.token_rows import token_row
from tokenizer import RESAMPLER, CodecSpec, load_codec, mix_channels


def write_audio_folder(folder, ids, sample_rate=24000):
    """Speech-like files of slightly different lengths; returns the waveform [S] of each id."""
    waveforms = {}
    for number, name in enumerate(ids):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        waveforms[name] = speech_like(0.2 + 0.03 * number, sample_rate, seed=number)
        soundfile.write(path, waveforms[name], sample_rate, format="WAV" if path.suffix == ".wav" else "FLAC")
    return waveforms


def info_of(codec, codec_dir, num_codebooks):
    """What dataset.json says of a dataset of this codec."""
    return DatasetInfo(
        codec={**codec.card(), "source": str(codec_dir)},
        bandwidth_kbps=codec.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
    )


def format_of(info):
    """What parts of such a dataset have in common."""
    return PartFormat(spec=CodecSpec.from_dict(info.codec["spec"]), num_codebooks=info.num_codebooks, card=info.codec)


def write_dataset(root, codec_dir, waveforms, *, audio_folder=None, errors=(), num_codebooks=None, rows_per_part=4):
    """A dataset of format 1 with these waveforms (id -> [S] at the codec's rate); returns its codes [K, T] by id.

    Args:
        root: where to write it.
        codec_dir: of the codec.
        waveforms: by id.
        audio_folder: where the originals are said to be; nowhere by default.
        errors: (id, class name, message) of inputs that failed.
        num_codebooks: levels to store, None for all.
        rows_per_part: rows in each part.
    """
    codec = load_codec(codec_dir)
    levels = num_codebooks or codec.spec.num_codebooks
    folder = Path(audio_folder) if audio_folder is not None else Path("/nowhere")
    rows = [_row(codec, levels, name, str(folder / name), samples) for name, samples in waveforms.items()]
    failed = [ErrorRow(name, str(folder / name), kind, text) for name, kind, text in errors]
    units = [rows[start : start + rows_per_part] for start in range(0, len(rows), rows_per_part)]
    write_units(root, info_of(codec, codec_dir, levels), units, failed)
    return {row.id: row.codes for row in rows}


def write_units(root, info, units, errors=()):
    """A whole dataset, plan and commit records included, of these units of rows; the errors are of the first unit."""
    root = str(root)
    failed = [list(errors) if number == 0 else [] for number in range(len(units))]
    plan = _plan_of(units, failed)
    write_dataset_info(root, dataclasses.replace(info, plan_sha256=plan.sha256))
    storage.commit(storage.join(root, "plan.parquet"), plan.to_parquet())
    for number, rows in enumerate(units):
        write_unit(root, info, number, rows, failed[number])


def write_unit(root, info, number, rows, errors=()):
    """The files of one unit."""
    part = encode_part(rows, format_of(info))
    failures = encode_errors(errors) if errors else None
    record = record_of(part, len(rows), failures, len(errors), sum(row.num_samples for row in rows) / info.sample_rate)
    root, name = str(root), part_name(number)
    if failures is not None:
        storage.commit(storage.join(root, "errors", name), failures)
    record_uri = storage.join(root, "records", record_name(number, record.part.sha256))
    storage.commit(record_uri, record.to_json().encode())
    storage.commit(storage.join(root, "parts", name), part)


def _plan_of(units, errors):
    inputs = [
        (number, row.input_id if isinstance(row, TokenRow) else row.id, row.uri)
        for number, (rows, failed) in enumerate(zip(units, errors, strict=True))
        for row in (*rows, *failed)
    ]
    inputs = list(dict.fromkeys(inputs))
    listing = listing_of([SourceFile(name, uri) for _, name, uri in inputs])
    table = listing.add_column(0, pa.field("unit", pa.int32()), pa.array([unit for unit, *_ in inputs], pa.int32()))
    content = io.BytesIO()
    pq.write_table(table, content, write_page_checksum=True)
    return Plan.from_parquet(content.getvalue())


def _row(codec, levels, name, uri, samples):
    encoded = codec.encode(mix_channels(torch.from_numpy(samples)[None], codec.spec.channels))
    return token_row(
        name,
        encoded.codes[0, :levels].numpy(),
        uri=uri,
        num_samples=len(samples),
        source_sample_rate=codec.spec.sample_rate,
        scales=None if encoded.scales is None else encoded.scales[0].numpy(),
    )
