"""What a token language model saves: bits per code by level, beside raw packing and the codes' own frequencies.

Utterances are cut into blocks that start afresh, as the entropy coder cuts them, so that any block can be read alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lm_head.activation_grid import LayerGrid
from lm_head.code_loss import code_nats, to_bits
from lm_head.compression import CodecIdentity
from lm_head.entropy import code_histogram, order_zero_entropy
from lm_head.token_lm import TokenLM
from pipelines.dataset_info import DatasetInfo, read_dataset_info
from pipelines.progress import Progress
from pipelines.stored_codes import read_utterances
from tokenizer import CodecSpec, DatasetError

Bits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LMScore:
    """A model at one bandwidth; bits are per code."""

    bandwidth_kbps: float
    bits: tuple[float, ...]  # by level, coarsest first, with as many levels as the bandwidth has
    order_0_bits: tuple[float, ...]  # by level: the entropy of these very codes' frequencies
    raw_bits: float  # log2 V

    @property
    def saved(self) -> float:
        """Share of the bits of raw packing."""
        return 1 - _mean(self.bits) / self.raw_bits

    @property
    def saved_of_order_0(self) -> float:
        """Share of the bits that an ideal coder with the codes' frequencies would spend."""
        return 1 - _mean(self.bits) / _mean(self.order_0_bits)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, what follows from the fields included."""
        means = {"mean_bits": _mean(self.bits), "mean_order_0_bits": _mean(self.order_0_bits)}
        return dataclasses.asdict(self) | means | {"saved": self.saved, "saved_of_order_0": self.saved_of_order_0}


@dataclass(frozen=True, slots=True)
class LMEvaluation:
    """A model over a token dataset."""

    dataset: str
    codec: str
    num_utterances: int
    num_frames: int
    block_frames: int
    scores: tuple[LMScore, ...]  # lowest bandwidth first

    def describe(self) -> str:
        """One line for people: of what the figures are."""
        return (
            f"bits per code of {self.num_utterances} utterances, {self.num_frames} frames in blocks of up to "
            f"{self.block_frames}; order 0: what the frequencies of these very codes would give"
        )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        plain = dataclasses.asdict(self) | {"scores": [score.to_dict() for score in self.scores]}
        path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def evaluate_lm(
    lm: TokenLM,
    dataset: str | Path,
    *,
    bandwidths_kbps: Sequence[float] | None = None,
    limit: int | None = None,
    shown: bool = True,
) -> LMEvaluation:
    """Count the bits that a model's probabilities give to the codes of a dataset.

    These are the bits of an ideal coder: files add headers, checksums and the rounding of probabilities.

    Args:
        lm: on the device that computes.
        dataset: local directory or s3://.
        bandwidths_kbps: None for the customary ones that dataset and model have.
        limit: only the first so many utterances.
        shown: progress on stderr.

    Raises:
        ValueError: a bandwidth that dataset or model lack.
        DatasetError: it is damaged, has no codes, or another codebook size.
    """
    info = read_dataset_info(dataset)
    counts = _level_counts(lm, info, bandwidths_kbps)
    if info.codebook_size != lm.config.codebook_size:
        raise DatasetError(f"{dataset} has codes up to {info.codebook_size}, the model up to {lm.config.codebook_size}")
    block_frames = CodecIdentity.from_card(info.codec).frames_per_block
    totals = {count: np.zeros(count) for count in counts.values()}
    histogram = np.zeros((max(totals), info.codebook_size), np.int64)
    num_utterances = num_frames = 0
    with Progress("evaluating", limit, shown=shown) as progress:
        for utterance in read_utterances(dataset, max(totals)):
            if num_utterances == limit:
                break
            histogram += code_histogram(utterance.codes, info.codebook_size)
            for count in totals:
                for bits in block_bits(lm, utterance.codes[:count], block_frames):
                    totals[count] += bits.sum(axis=1)
            num_utterances += 1
            num_frames += utterance.codes.shape[1]
            progress.advance(files=1, seconds=utterance.codes.shape[1] * info.hop_length / info.sample_rate)
    if not num_frames:
        raise DatasetError(f"{dataset} has no codes")
    entropy = order_zero_entropy(histogram)
    scores = [
        LMScore(
            kbps,
            tuple((totals[count] / num_frames).tolist()),
            tuple(entropy[:count].tolist()),
            math.log2(info.codebook_size),
        )
        for kbps, count in counts.items()
    ]
    name = str(info.codec["name"])
    return LMEvaluation(str(dataset), name, num_utterances, num_frames, block_frames, tuple(scores))


@torch.no_grad()
def block_bits(
    lm: TokenLM, codes: npt.NDArray[np.integer], block_frames: int, grids: Sequence[LayerGrid] | None = None
) -> Iterator[Bits]:
    """What each code of an utterance costs, block by block.

    Args:
        lm: a model.
        codes: [K, T].
        block_frames: at which the model starts afresh.
        grids: that the model computes on; None for none.

    Yields:
        [K, up to block_frames] bits.

    Raises:
        CodesError: the model does not know such codes.
    """
    device = lm.head_bias.device
    for start in range(0, codes.shape[1], block_frames):
        block = torch.from_numpy(codes[None, :, start : start + block_frames].astype(np.int64)).to(device)
        bits: Bits = to_bits(code_nats(lm(block, grids=grids).transpose(1, 2), block))[0].cpu().numpy()
        yield bits


def _level_counts(lm: TokenLM, info: DatasetInfo, bandwidths_kbps: Sequence[float] | None) -> dict[float, int]:
    """Number of levels of each bandwidth, lowest first."""
    spec, most = CodecSpec.from_dict(info.codec["spec"]), min(info.num_codebooks, lm.config.num_codebooks)
    wanted = spec.bandwidths_kbps if bandwidths_kbps is None else bandwidths_kbps
    counts = {kbps: spec.num_codebooks_at(kbps) for kbps in sorted(wanted)}
    if bandwidths_kbps is None:
        counts = {kbps: count for kbps, count in counts.items() if count <= most} or {most * spec.level_kbps: most}
    for kbps, count in counts.items():
        if count > most:
            raise ValueError(f"bandwidth {kbps:g} kbps: dataset and model have {most * spec.level_kbps:g} kbps")
    return counts


def _mean(bits: Sequence[float]) -> float:
    return sum(bits) / len(bits)
