"""A token dataset of any size to scan: real codes of the bundled speech, in rows that begin at random places of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines import storage
from pipelines.bundled_speech import bundled_speech
from pipelines.datasets.audio_facts import AudioFacts
from pipelines.datasets.commit_record import record_name, record_of
from pipelines.datasets.dataset_info import DatasetInfo, write_dataset_info
from pipelines.datasets.parts import PartFormat, TokenRow, encode_part, part_name
from tokenizer import RESAMPLER, Codec, load_codec

ROWS_PER_PART = 500
ROW_SECONDS = 10.0
_SPEECH_SECONDS = 60.0


def write_scan_dataset(folder: Path, num_codes: int, codec: str = "speech_24khz") -> int:
    """Write parts until there are so many codes; all parts but the last have the same content.

    Args:
        folder: of the dataset; it is made.
        num_codes: at least so many, in whole rows.
        codec: anything for `load_codec`.

    Returns:
        How many codes there are.
    """
    model = load_codec(codec)
    levels = model.spec.num_codebooks
    frames = max(1, round(ROW_SECONDS * float(model.spec.frame_rate)))
    num_rows = -(-num_codes // (levels * frames))
    root = str(folder)
    info = DatasetInfo(
        codec={**model.card(), "source": codec},
        bandwidth_kbps=model.spec.bandwidth_kbps,
        num_codebooks=levels,
        resampler=RESAMPLER,
        plan_sha256="",
    )
    write_dataset_info(root, info)
    form = PartFormat(spec=model.spec, num_codebooks=levels, card=info.codec)
    rows = _rows(model, min(num_rows, ROWS_PER_PART), frames)
    whole, rest = divmod(num_rows, len(rows))
    sizes = [len(rows)] * whole + [rest] * bool(rest)
    contents = {size: encode_part(rows[:size], form) for size in set(sizes)}
    for number, size in enumerate(sizes):
        content = contents[size]
        record = record_of(content, size, None, 0, size * ROW_SECONDS)
        name = record_name(number, record.part.sha256)
        storage.commit(storage.join(root, "records", name), record.to_json().encode())
        storage.commit(storage.join(root, "parts", part_name(number)), content)
    return num_rows * levels * frames


def _rows(codec: Codec, count: int, frames: int) -> list[TokenRow]:
    speech = bundled_speech(codec.spec, _SPEECH_SECONDS, 1)
    codes = codec.with_precision("fast").encode(speech).codes[0].numpy().astype(np.uint16)  # [K, T]
    starts = np.random.default_rng(0).integers(0, codes.shape[1] - frames, count)
    return [
        TokenRow(
            id=f"{number:06d}",
            uri=f"bundled/{number:06d}",
            input_id=f"{number:06d}",
            start_sample=0,
            num_samples=frames * codec.spec.hop_length,
            source_sample_rate=codec.spec.sample_rate,
            source_channels=codec.spec.channels,
            facts=AudioFacts(0.5, -20.0, 0.0, 0.8, f"{number:016x}"),
            codes=codes[:, start : start + frames],
        )
        for number, start in enumerate(starts)
    ]
