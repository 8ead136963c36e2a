"""Codes of token datasets as training wants them: one flat file of frames, of which crops are read by a memory map.

Beside it, where a model reads, another file with the bytes of all transcripts.

Parquet gives whole parts, and a step wants a few hundred frames from anywhere. So the wanted levels are read once,
a few dozen utterances at a time, and written two bytes a code: 2.4 kB per second of 12 kbps speech. What training
needs in memory is the number of utterances, not their length.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines import storage
from pipelines.datasets.dataset import list_parts
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info
from pipelines.inputs.transcripts import TextSource
from pipelines.training.clip_store import one_at_a_time
from pipelines.training.lm_recipe import HeldOut
from pipelines.training.token_copy import BYTES, FRAMES, Codes, Wanted, copy_tokens
from tokenizer import DatasetError


@dataclass(frozen=True)
class StoredText:
    """What is said in the utterances of a store: all of them have a transcript."""

    path: Path
    starts: npt.NDArray[np.int64]  # byte at which each transcript begins; the last is the end
    held_out: dict[str, str]  # by id
    left_out: int  # utterances of the datasets that have no transcript and so are not in the store

    def read(self, utterance: int) -> str:
        """The transcript of an utterance, by its number."""
        return bytes(self._bytes[self.starts[utterance] : self.starts[utterance + 1]]).decode()

    @functools.cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return np.memmap(self.path, np.uint8, "r")


@dataclass(frozen=True)
class TokenStore:
    """All utterances that are trained on, end to end, and a few of those that are not."""

    path: Path
    starts: npt.NDArray[np.int64]  # frame at which each utterance begins; the last is the end
    histogram: npt.NDArray[np.int64]  # [K, V] counts of the codes that are trained on
    held_out: dict[str, Codes]  # by id
    text: StoredText | None = None

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
    datasets: Sequence[str],
    num_codebooks: int,
    held_out: HeldOut,
    folder: Path,
    *,
    text: TextSource | None = None,
    shown: bool = True,
) -> TokenStore:
    """Copy the codes of datasets into `folder`, or reuse what an earlier call with the same datasets left there.

    Processes that open the same store at the same time make it once.

    Args:
        datasets: each with so many levels or more.
        num_codebooks: K, levels to read; the columns of others are not touched.
        held_out: which utterances stay out of the file.
        folder: on a local disk, or one that all nodes see.
        text: utterances without a transcript are left out; None takes all, and reads none.
        shown: progress on stderr.

    Raises:
        DatasetError: as `read_dataset_infos`, a part is damaged, nothing is left to train on, or transcripts are not of
            these utterances.
    """
    infos = read_dataset_infos(datasets)
    key = _key(datasets, infos, num_codebooks, held_out, text)
    index = folder / f"codes-{key}.npz"
    with one_at_a_time(folder):
        if not index.exists():  # written last: it stands for complete files of frames and bytes
            wanted = Wanted(num_codebooks, infos[0].codebook_size, held_out, text)
            arrays = copy_tokens(datasets, wanted, index.with_suffix(""), shown=shown)
            temporary = index.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # it takes one of the names for its own
            temporary.replace(index)
    with np.load(index) as saved:
        ends = np.cumsum(saved["held_out_lengths"])[:-1]
        some = np.split(saved["held_out_codes"], ends, axis=1) if len(saved["held_out_ids"]) else []
        ids = [str(name) for name in saved["held_out_ids"]]
        stored = None
        if text is not None:
            said = dict(zip(ids, map(str, saved["held_out_texts"]), strict=True))
            stored = StoredText(index.with_suffix(BYTES), saved["text_starts"], said, int(saved["left_out"]))
        codes = dict(zip(ids, some, strict=True))
        return TokenStore(index.with_suffix(FRAMES), saved["starts"], saved["histogram"], codes, stored)


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


def _key(
    datasets: Sequence[str],
    infos: Sequence[DatasetInfo],
    num_codebooks: int,
    held_out: HeldOut,
    text: TextSource | None,
) -> str:
    """A name for what is made of these datasets as they are now."""
    content = [
        [storage.absolute(dataset), info.to_json(), list_parts(dataset)]
        for dataset, info in zip(datasets, infos, strict=True)
    ]
    settings = [content, num_codebooks, held_out.share, held_out.utterances]
    listing = json.dumps(settings if text is None else [*settings, text.identity])
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:16]
