"""What a token language model saves: bits per code by level, beside raw packing and the codes' own frequencies.

Utterances are cut into blocks that start afresh, as the entropy coder cuts them, so that any block can be read alone.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from lm_head.integer_coder import IntegerCoder
from lm_head.token_lm import TokenLM
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info
from pipelines.datasets.stored_codes import StoredUtterance, read_utterances
from pipelines.evaluating.stream_sizes import StreamSizes, measure_streams
from pipelines.progress import Progress
from tokenizer import CodecSpec, DatasetError

Bits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LMScore:
    """A model at one bandwidth; bits are per code."""

    bandwidth_kbps: float
    bits: tuple[float, ...]  # by level, coarsest first, with as many levels as the bandwidth has
    order_0_bits: tuple[float, ...]  # by level: the entropy of these very codes' frequencies
    raw_bits: float  # log2 V
    streams: StreamSizes | None = None  # of models that can code

    @property
    def saved(self) -> float:
        """Share of the bits of raw packing."""
        return 1 - _mean(self.bits) / self.raw_bits

    @property
    def saved_of_order_0(self) -> float:
        """Share of the bits that an ideal coder with the codes' frequencies would spend."""
        return 1 - _mean(self.bits) / _mean(self.order_0_bits)

    @property
    def integer_excess(self) -> float | None:
        """Share of its bits that the model takes more in integers; None where it was not measured."""
        return None if self.streams is None else _mean(self.streams.integer_bits) / _mean(self.bits) - 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON, what follows from the fields included."""
        plain = dataclasses.asdict(self) | {
            "mean_bits": _mean(self.bits),
            "mean_order_0_bits": _mean(self.order_0_bits),
        }
        plain |= {"saved": self.saved, "saved_of_order_0": self.saved_of_order_0}
        del plain["streams"]
        if self.streams is None:
            return plain
        integers = {"mean_integer_bits": _mean(self.streams.integer_bits), "integer_excess": self.integer_excess}
        return plain | integers | {"streams": self.streams.to_dict()}


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
    coder: IntegerCoder | None = None,
    shown: bool = True,
) -> LMEvaluation:
    """Count the bits that a model's probabilities give to the codes of a dataset, and those of real streams.

    The former are the bits of an ideal coder: files add headers, checksums and the rounding of probabilities.

    Args:
        lm: on the device that computes.
        dataset: local directory or s3://.
        bandwidths_kbps: None for the customary ones that dataset and model have.
        limit: only the first so many utterances.
        coder: of the same model: with it all utterances are compressed too, and their codes held in memory.
        shown: progress on stderr.

    Raises:
        ValueError: a bandwidth that dataset or model lack.
        DatasetError: it is damaged, has no codes, or another codebook size.
        BitstreamError: a stream that gives other codes than it was made of.
    """
    info = read_dataset_info(dataset)
    counts = _level_counts(lm, info, bandwidths_kbps)
    if info.codebook_size != lm.config.codebook_size:
        raise DatasetError(f"{dataset} has codes up to {info.codebook_size}, the model up to {lm.config.codebook_size}")
    codec = CodecIdentity.from_card(info.codec)
    tally = _Tally({count: np.zeros(count) for count in counts.values()}, info.codebook_size)
    kept: list[StoredUtterance] = []
    with Progress("evaluating", limit, shown=shown) as progress:
        for utterance in itertools.islice(read_utterances(dataset, max(tally.bits)), limit):
            tally.add(lm, utterance.codes, codec.frames_per_block)
            progress.advance(files=1, seconds=utterance.codes.shape[1] * info.hop_length / info.sample_rate)
            if coder is not None:
                kept.append(utterance)
    if not tally.num_frames:
        raise DatasetError(f"{dataset} has no codes")
    streams: dict[int, StreamSizes] = {}
    if coder is not None:
        with Progress("compressing", len(kept) * len(tally.bits), shown=shown) as progress:
            streams = {count: measure_streams(coder, kept, count, codec, progress) for count in tally.bits}
    scores = tuple(tally.score(kbps, count, streams.get(count)) for kbps, count in counts.items())
    name = str(info.codec["name"])
    return LMEvaluation(str(dataset), name, tally.num_utterances, tally.num_frames, codec.frames_per_block, scores)


class _Tally:
    """Sums over utterances.

    Args:
        bits: zeros [K] for each number of levels K.
        codebook_size: V.
    """

    def __init__(self, bits: dict[int, npt.NDArray[np.float64]], codebook_size: int) -> None:
        self.bits, self._codebook_size = bits, codebook_size
        self._histogram = np.zeros((max(bits), codebook_size), np.int64)
        self.num_utterances = self.num_frames = 0

    def add(self, lm: TokenLM, codes: npt.NDArray[np.uint16], block_frames: int) -> None:
        """Count an utterance [K, T]."""
        self._histogram += code_histogram(codes, self._codebook_size)
        for count in self.bits:
            for bits in block_bits(lm, codes[:count], block_frames):
                self.bits[count] += bits.sum(axis=1)
        self.num_utterances += 1
        self.num_frames += codes.shape[1]

    def score(self, bandwidth_kbps: float, num_codebooks: int, streams: StreamSizes | None) -> LMScore:
        """What they come to."""
        bits = tuple((self.bits[num_codebooks] / self.num_frames).tolist())
        entropy = tuple(order_zero_entropy(self._histogram)[:num_codebooks].tolist())
        return LMScore(bandwidth_kbps, bits, entropy, math.log2(self._codebook_size), streams)


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
