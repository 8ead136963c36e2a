"""The one pass over token datasets before training: their codes into a flat file, and a few utterances held out."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lm_head.entropy import code_histogram
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.stored_codes import StoredUtterance, read_utterances
from pipelines.inputs.transcripts import TextSource, stored_texts
from pipelines.progress import Progress
from pipelines.training.lm_recipe import HeldOut
from tokenizer import DatasetError

Codes = npt.NDArray[np.uint16]  # [K, T]
FRAMES, BYTES = ".u16", ".txt"  # suffixes of the files of codes and of transcripts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is copied of a dataset."""

    num_codebooks: int
    codebook_size: int
    held_out: HeldOut
    text: TextSource | None  # None: no transcripts, and all utterances


class _Kept(NamedTuple):
    """An utterance that is held out."""

    name: str
    codes: Codes
    text: str


def held_out_place(name: str) -> float:
    """Where an id stands in [0, 1): those below the share are held out."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def copy_tokens(
    datasets: Sequence[str], wanted: Wanted, path: Path, *, shown: bool = True
) -> dict[str, npt.NDArray[Any]]:
    """Write the frames of datasets end to end, and their transcripts likewise.

    Args:
        datasets: directories or s3://.
        wanted: what of them.
        path: of the files, which get suffixes.
        shown: progress on stderr.

    Returns:
        Where utterances and transcripts start, a histogram of the codes, and what is held out.

    Raises:
        DatasetError: a part is damaged, nothing is left to train on, or transcripts are not of these utterances.
    """
    histogram = np.zeros((wanted.num_codebooks, wanted.codebook_size), np.int64)
    starts, text_starts, sample = array("q", [0]), array("q", [0]), _HeldOutSample(wanted.held_out.utterances)
    left_out, name = 0, ""
    said_path = path.with_suffix(BYTES) if wanted.text is not None else Path(os.devnull)
    with path.with_suffix(FRAMES).open("wb") as frames, said_path.open("wb") as said:
        for name, codes, text in _utterances(datasets, wanted, shown):
            place = held_out_place(name)
            if text is None:
                left_out += 1
            elif place < wanted.held_out.share:
                sample.add(place, _Kept(name, codes, text))
            else:
                frames.write(np.ascontiguousarray(codes.T).tobytes())
                histogram += code_histogram(codes, wanted.codebook_size)
                starts.append(starts[-1] + codes.shape[1])
                text_starts.append(text_starts[-1] + said.write(text.encode()))
    if wanted.text is not None:
        wanted.text.require_found(datasets, name)
    if len(starts) == 1:
        raise DatasetError(f"no codes to train on in {', '.join(datasets)}")
    arrays = {"starts": starts, "text_starts": text_starts, "left_out": left_out}
    return {
        **{name: np.array(values, np.int64) for name, values in arrays.items()},
        "histogram": histogram,
        **sample.arrays(wanted.num_codebooks),
    }


class _HeldOutSample:
    """The utterances of lowest place: spread over the whole corpus, and few in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, str, int, _Kept]] = []
        self._arrivals = itertools.count()  # codes have no order: equal ids must not come to compare them

    def add(self, place: float, utterance: _Kept) -> None:
        """Keep it, if it is one of them."""
        heapq.heappush(self._heap, (-place, utterance.name, next(self._arrivals), utterance))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def arrays(self, num_codebooks: int) -> dict[str, npt.NDArray[Any]]:
        """What is kept, lowest place first."""
        kept = [entry[3] for entry in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]
        codes = [np.zeros((num_codebooks, 0), np.uint16), *(utterance.codes for utterance in kept)]
        return {
            "held_out_ids": np.array([utterance.name for utterance in kept], dtype=np.str_),
            "held_out_lengths": np.array([utterance.codes.shape[1] for utterance in kept], np.int64),
            "held_out_codes": np.concatenate(codes, axis=1),
            "held_out_texts": np.array([utterance.text for utterance in kept], dtype=np.str_),
        }


def _utterances(datasets: Sequence[str], wanted: Wanted, shown: bool) -> Iterator[tuple[str, Codes, str | None]]:
    """Id, codes and transcript of all that have frames; "" where no transcript is wanted, None where there is none."""
    with Progress("reading tokens", shown=shown) as progress:
        for dataset in datasets:
            info = read_dataset_info(dataset)
            texts = itertools.repeat(None) if wanted.text is None else stored_texts(dataset)
            for utterance, own in zip(_checked(dataset, wanted), texts, strict=False):
                num_frames = utterance.codes.shape[1]
                progress.advance(files=1, seconds=num_frames * info.hop_length / info.sample_rate)
                if num_frames:
                    text = "" if wanted.text is None else wanted.text.find(utterance.id, own)
                    yield utterance.id, utterance.codes, text


def _checked(dataset: str, wanted: Wanted) -> Iterator[StoredUtterance]:
    for utterance in read_utterances(dataset, wanted.num_codebooks):
        highest = int(utterance.codes.max(initial=0))
        if highest >= wanted.codebook_size:
            raise DatasetError(f"{dataset}: {utterance.id}: code {highest}, allowed is 0 to {wanted.codebook_size - 1}")
        yield utterance
