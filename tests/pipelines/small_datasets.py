"""Token datasets for tests, written part by part without a job and without Ray."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from pipelines import storage
from pipelines.dataset_info import DatasetInfo, write_dataset_info
from pipelines.parts import ErrorRow, TokenRow, encode_errors, encode_part, part_name
from tests.conftest import speech_like
from tokenizer import RESAMPLER, load_codec, mix_channels


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
    info = info_of(codec, codec_dir, levels)
    root = str(root)
    write_dataset_info(root, info)
    folder = Path(audio_folder) if audio_folder is not None else Path("/nowhere")
    rows = [_row(codec, levels, name, str(folder / name), samples) for name, samples in waveforms.items()]
    for unit, start in enumerate(range(0, len(rows), rows_per_part)):
        part = encode_part(rows[start : start + rows_per_part], codec.spec, levels, info.codec)
        storage.commit(storage.join(root, "parts", part_name(unit)), part)
    if errors:
        content = encode_errors([ErrorRow(name, str(folder / name), kind, text) for name, kind, text in errors])
        storage.commit(storage.join(root, "errors", part_name(0)), content)
    return {row.id: row.codes for row in rows}


def _row(codec, levels, name, uri, samples):
    encoded = codec.encode(mix_channels(torch.from_numpy(samples)[None], codec.spec.channels))
    return TokenRow(
        id=name,
        uri=uri,
        num_samples=len(samples),
        source_sample_rate=codec.spec.sample_rate,
        source_channels=1,
        peak=float(np.abs(samples).max()),
        rms_dbfs=-20.0,
        codes=encoded.codes[0, :levels].numpy().astype(np.uint16),
        scales=None if encoded.scales is None else encoded.scales[0].numpy(),
    )
