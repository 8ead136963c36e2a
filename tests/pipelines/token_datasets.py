"""Token datasets of codes that tests choose, rather than of codes that a codec made of sound."""

import numpy as np

from pipelines import storage
from pipelines.dataset_info import write_dataset_info
from pipelines.parts import TokenRow, encode_part, part_name
from tests.pipelines.small_datasets import info_of
from tokenizer import load_codec


def write_codes(root, codec_dir, utterances, *, rows_per_part=4):
    """A dataset of format 1 with these codes (id -> [K, T]), as if the codec had made them; returns its directory."""
    codec = load_codec(codec_dir)
    levels = len(next(iter(utterances.values())))
    info = info_of(codec, codec_dir, levels)
    write_dataset_info(str(root), info)
    rows = [_row(codec.spec, name, codes) for name, codes in utterances.items()]
    for unit, start in enumerate(range(0, len(rows), rows_per_part)):
        part = encode_part(rows[start : start + rows_per_part], codec.spec, levels, info.codec)
        storage.commit(storage.join(str(root), "parts", part_name(unit)), part)
    return str(root)


def _row(spec, name, codes):
    return TokenRow(
        id=name,
        uri=f"/nowhere/{name}",
        num_samples=codes.shape[1] * spec.hop_length,
        source_sample_rate=spec.sample_rate,
        source_channels=1,
        peak=0.5,
        rms_dbfs=-20.0,
        codes=codes.astype(np.uint16),
    )


def counting_codes(num_utterances, num_frames, num_codebooks=4, codebook_size=16):
    """Codes that look even and are not: from a random start each frame follows from the one before.

    Level k goes through a full cycle c -> 5 c + 2 k + 1, so that frequencies alone say nothing.
    """
    rng = np.random.default_rng(0)
    step = 2 * np.arange(num_codebooks) + 1
    utterances = {}
    for number in range(num_utterances):
        frames = [rng.integers(0, codebook_size, num_codebooks)]
        for _ in range(num_frames - 1):
            frames.append((5 * frames[-1] + step) % codebook_size)
        utterances[f"u{number:03d}"] = np.stack(frames, axis=1)
    return utterances
