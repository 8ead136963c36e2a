"""Codes of token datasets as training wants them: one flat file of frames, of which crops are read by a memory map.

Parquet gives whole parts, and a step wants a few hundred frames from anywhere. So the wanted levels are read once,
a few dozen utterances at a time, and written two bytes a code: 2.4 kB per second of 12 kbps speech. What training
needs in memory is the number of utterances, not their length.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_head.entropy import code_histogram
from pipelines import storage
from pipelines.clip_store import one_at_a_time
from pipelines.dataset import list_parts
from pipelines.dataset_info import DatasetInfo, read_dataset_info
from pipelines.lm_recipe import HeldOut
from pipelines.progress import Progress
from pipelines.stored_codes import StoredUtterance, read_utterances
from tokenizer import DatasetError

Codes = npt.NDArray[np.uint16]  # [K, T]


@dataclass(frozen=True)
class TokenStore:
    """All utterances that are trained on, end to end, and a few of those that are not."""

    path: Path
    starts: npt.NDArray[np.int64]  # frame at which each utterance begins; the last is the end
    histogram: npt.NDArray[np.int64]  # [K, V] counts of the codes that are trained on
    held_out: dict[str, Codes]  # by id

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each utterance."""
        return np.diff(self.starts)

    def read(self, utterance: int, start: int, num_frames: int) -> Codes:
        """Codes [K, num_frames] of an utterance, by its number, from `start` on.

        Where it ends the next one follows, and the first one follows the last.
        """
        first = int(self.starts[utterance]) + start
        crop: Codes = self._frames[np.arange(first, first + num_frames) % self.starts[-1]].T
        return crop

    @functools.cached_property
    def _frames(self) -> npt.NDArray[np.uint16]:
        return np.memmap(self.path, np.uint16, "r").reshape(-1, len(self.histogram))


def open_token_store(
    datasets: Sequence[str], num_codebooks: int, held_out: HeldOut, folder: Path, *, shown: bool = True
) -> TokenStore:
    """Copy the codes of datasets into `folder`, or reuse what an earlier call with the same datasets left there.

    Processes that open the same store at the same time make it once.

    Args:
        datasets: each with so many levels or more.
        num_codebooks: K, levels to read; the columns of others are not touched.
        held_out: which utterances stay out of the file.
        folder: on a local disk, or one that all nodes see.
        shown: progress on stderr.

    Raises:
        DatasetError: as `read_dataset_infos`, a part is damaged, or nothing is left to train on.
    """
    infos = read_dataset_infos(datasets)
    key = _key(datasets, infos, num_codebooks, held_out)
    frames, index = folder / f"codes-{key}.u16", folder / f"codes-{key}.npz"
    with one_at_a_time(folder):
        if not index.exists():  # written last: it stands for a complete file of frames
            written = _copy_all(datasets, infos, num_codebooks, held_out, frames, shown)
            temporary = index.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.savez(file, **written)  # type: ignore[arg-type]  # it takes one of the names for its own
            temporary.replace(index)
    with np.load(index) as saved:
        ends = np.cumsum(saved["held_out_lengths"])[:-1]
        some = np.split(saved["held_out_codes"], ends, axis=1) if len(saved["held_out_ids"]) else []
        ids = [str(name) for name in saved["held_out_ids"]]
        return TokenStore(frames, saved["starts"], saved["histogram"], dict(zip(ids, some, strict=True)))


def read_dataset_infos(datasets: Sequence[str]) -> list[DatasetInfo]:
    """What each of the datasets says about itself.

    Raises:
        DatasetError: one is none, or they were made with different codecs.
    """
    infos = [read_dataset_info(dataset) for dataset in datasets]
    for dataset, info in zip(datasets, infos, strict=True):
        if info.codec["sha256"] != infos[0].codec["sha256"]:
            raise DatasetError(
                f"{dataset} was made with codec {info.codec['name']!r}, sha256 {info.codec['sha256'][:12]}, "
                f"{datasets[0]} with {infos[0].codec['name']!r}, sha256 {infos[0].codec['sha256'][:12]}: "
                "the same codes mean other things"
            )
    return infos


def held_out_place(name: str) -> float:
    """Where an id stands in [0, 1): those below the share are held out."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class _HeldOutSample:
    """The utterances of lowest place: spread over the whole corpus, and few in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, str, int, Codes]] = []
        self._arrivals = itertools.count()  # codes have no order: equal ids must not come to compare them

    def add(self, place: float, name: str, codes: Codes) -> None:
        """Keep it, if it is one of them."""
        heapq.heappush(self._heap, (-place, name, next(self._arrivals), codes))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def arrays(self, num_codebooks: int) -> dict[str, npt.NDArray[Any]]:
        """What is kept, lowest place first."""
        kept = sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))
        codes = [np.zeros((num_codebooks, 0), np.uint16), *(entry[3] for entry in kept)]
        return {
            "held_out_ids": np.array([entry[1] for entry in kept], dtype=np.str_),
            "held_out_lengths": np.array([entry[3].shape[1] for entry in kept], np.int64),
            "held_out_codes": np.concatenate(codes, axis=1),
        }


def _copy_all(
    datasets: Sequence[str],
    infos: Sequence[DatasetInfo],
    num_codebooks: int,
    held_out: HeldOut,
    path: Path,
    shown: bool,
) -> dict[str, npt.NDArray[Any]]:
    size = infos[0].codebook_size
    histogram = np.zeros((num_codebooks, size), np.int64)
    starts, sample = array("q", [0]), _HeldOutSample(held_out.utterances)
    with path.open("wb") as sink, Progress("reading tokens", shown=shown) as progress:
        for dataset, info in zip(datasets, infos, strict=True):
            for utterance in _checked(dataset, num_codebooks, size):
                place, num_frames = held_out_place(utterance.id), utterance.codes.shape[1]
                if num_frames and place < held_out.share:
                    sample.add(place, utterance.id, utterance.codes)
                elif num_frames:
                    sink.write(np.ascontiguousarray(utterance.codes.T).tobytes())
                    histogram += code_histogram(utterance.codes, size)
                    starts.append(starts[-1] + num_frames)
                progress.advance(files=1, seconds=num_frames * info.hop_length / info.sample_rate)
    if len(starts) == 1:
        raise DatasetError(f"no codes to train on in {', '.join(datasets)}")
    return {"starts": np.array(starts, np.int64), "histogram": histogram, **sample.arrays(num_codebooks)}


def _checked(dataset: str, num_codebooks: int, codebook_size: int) -> Iterator[StoredUtterance]:
    for utterance in read_utterances(dataset, num_codebooks):
        highest = int(utterance.codes.max(initial=0))
        if highest >= codebook_size:
            raise DatasetError(f"{dataset}: {utterance.id}: code {highest}, allowed is 0 to {codebook_size - 1}")
        yield utterance


def _key(datasets: Sequence[str], infos: Sequence[DatasetInfo], num_codebooks: int, held_out: HeldOut) -> str:
    """A name for what is made of these datasets as they are now."""
    content = [
        [storage.absolute(dataset), info.to_json(), list_parts(dataset)]
        for dataset, info in zip(datasets, infos, strict=True)
    ]
    listing = json.dumps([content, num_codebooks, held_out.share, held_out.utterances])
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:16]
