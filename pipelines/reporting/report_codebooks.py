"""How codebooks are used, over the dataset and from part to part, counted for a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lm_head.entropy import code_histogram, order_zero_entropy, perplexity
from pipelines.datasets.part_file import PartFile, part_files
from pipelines.datasets.parts import level_column
from pipelines.reporting.report_facts import CodebookFacts, Level, PartUse

MAX_PARTS = 48  # an hour each by default: enough for frequencies of 1024 entries to settle
ROWS_PER_READ = 256

Counts = npt.NDArray[np.int64]


def measure_codebooks(
    dataset: str | Path, codebook_size: int, level_bytes: Sequence[int], num_codes: int
) -> CodebookFacts:
    """Count the codes of all parts, or of `MAX_PARTS` at equal distances where there are more.

    Args:
        dataset: with columns of levels.
        codebook_size: V.
        level_bytes: of each level in the whole dataset.
        num_codes: of all levels in the whole dataset.

    Raises:
        DatasetError: a part is damaged.
        CodesError: a code that its codebook does not have.
    """
    files = part_files(dataset)
    if num_codes == 0:
        return CodebookFacts(levels=(), parts=(), num_parts=len(files))
    chosen = [files[index] for index in _equal_distances(len(files), MAX_PARTS)]
    num_levels = len(level_bytes)
    counts = {Path(file.uri).stem: _count_codes(file, num_levels, codebook_size) for file in chosen}
    whole = np.sum([*counts.values()], axis=0)
    measures = zip((whole > 0).sum(axis=1), perplexity(whole), order_zero_entropy(whole), strict=True)
    levels = [
        Level(
            entries_used=int(used),
            perplexity=float(effective),
            entropy_bits=float(bits),
            bits_at_rest=8 * size * num_levels / num_codes,
        )
        for (used, effective, bits), size in zip(measures, level_bytes, strict=True)
    ]
    parts = [_part_use(name, count[0], whole[0]) for name, count in counts.items() if count.any()]
    return CodebookFacts(levels=tuple(levels), parts=tuple(parts), num_parts=len(files))


def divergence_bits(group: Counts, whole: Counts) -> float:
    """Jensen-Shannon divergence of two histograms [V] in bits: 0 for the same frequencies, 1 for no entry in common."""
    p, q = group / group.sum(), whole / whole.sum()
    return float(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(share: npt.NDArray[np.float64]) -> float:
    """Bits of frequencies [V] that add up to one."""
    known = share[share > 0]
    return float(-(known * np.log2(known)).sum())


def _part_use(name: str, count: Counts, whole: Counts) -> PartUse:
    """Of level 0.

    Chance: a sample of n codes diverges from its source by (V - 1) / (8 n ln 2) bits, to first order, for independent
    codes; neighbouring ones are alike, so it is more.
    """
    chance = (np.count_nonzero(whole) - 1) / (8 * math.log(2) * int(count.sum()))
    return PartUse(
        name=name,
        perplexity=float(perplexity(count[None])[0]),
        divergence_bits=max(0.0, divergence_bits(count, whole)),
        chance_bits=min(1.0, chance),
    )


def _count_codes(file: PartFile, num_levels: int, codebook_size: int) -> Counts:
    """Histograms [K, V] of one part."""
    names = [level_column(level) for level in range(num_levels)]
    counts = np.zeros((num_levels, codebook_size), np.int64)
    for batch in file.open().batches(names, ROWS_PER_READ):
        for level, name in enumerate(names):
            codes = batch.column(name).flatten().to_numpy(zero_copy_only=False)
            counts[level] += code_histogram(codes[None], codebook_size)[0]
    return counts


def _equal_distances(total: int, most: int) -> list[int]:
    """At most `most` of so many positions, evenly spread."""
    count = min(total, most)
    return [int((index + 0.5) * total / count) for index in range(count)]
