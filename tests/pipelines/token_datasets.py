"""Token datasets of codes that tests choose, rather than of codes that a codec made of sound."""

import numpy as np

from tests.pipelines.small_datasets import info_of, write_units
from tests.pipelines.token_rows import token_row
from tokenizer import load_codec


def write_codes(root, codec_dir, utterances, *, rows_per_part=4):
    """A dataset of format 1 with these codes (id -> [K, T]), as if the codec had made them; returns its directory."""
    codec = load_codec(codec_dir)
    levels = len(next(iter(utterances.values())))
    info = info_of(codec, codec_dir, levels)
    hop = codec.spec.hop_length
    rows = [token_row(name, codes, num_samples=codes.shape[1] * hop) for name, codes in utterances.items()]
    write_units(root, info, [rows[start : start + rows_per_part] for start in range(0, len(rows), rows_per_part)])
    return str(root)


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
