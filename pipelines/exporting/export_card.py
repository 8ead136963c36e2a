"""tokens.json: what exported ids mean, so that those of a model can be turned back into codes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lm_head.vocabulary import Vocabulary
from pipelines import storage
from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.exporting.export_sequences import SequenceMaker
from tokenizer import CodesError, DatasetError

FORMAT_VERSION = 1
FILE_NAME = "tokens.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCard:
    """The content of tokens.json."""

    sequences: dict[str, Any]  # SequenceMaker.identity: vocabulary, order, text tokenizer, where text came from
    vocabulary_size: int  # all ids are below it
    codec: dict[str, Any]  # name, spec, sha256 of the weights, and where the dataset had it from
    files: dict[str, Any]  # format, dtype, bytes of a shard
    source: dict[str, Any]  # number and hash of the dataset's parts
    totals: dict[str, int] | None = None  # None while the export is not finished
    format: int = FORMAT_VERSION

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the ids."""
        return Vocabulary.from_dict(self.sequences["vocabulary"])

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(int(self.codec["spec"]["sample_rate"]), int(self.codec["spec"]["hop_length"]))

    def to_json(self) -> str:
        """Stable JSON text."""
        plain = {**dataclasses.asdict(self), "frame_rate": float(self.frame_rate)}  # for readers; it is derived
        return json.dumps(plain, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> TokenCard:
        """Parse what `to_json` wrote.

        Raises:
            DatasetError: not that, or of another format version.
        """
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT_VERSION:
                raise DatasetError(f"export format {plain['format']!r}; this version reads {FORMAT_VERSION}")
            plain.pop("frame_rate")
            card = cls(**plain)
            _ = card.vocabulary, card.frame_rate
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{FILE_NAME} is damaged: {type(error).__name__}: {error}") from error
        return card

    def describe_difference(self, asked: TokenCard) -> str | None:
        """Where another export differs from this one, in words; None where the files would be the same."""
        ours, theirs = _flat(dataclasses.asdict(self)), _flat(dataclasses.asdict(asked))
        names = [name for name in {**ours, **theirs} if name.split(".")[0] != "totals" and name != "codec.source"]
        differences = [
            f"{name}: {ours.get(name)} there, {theirs.get(name)} asked for"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]
        return "; ".join(differences) or None


def make_card(maker: SequenceMaker, info: DatasetInfo, dataset: str, files: dict[str, Any]) -> TokenCard:
    """The card of an export that is about to begin."""
    return TokenCard(
        sequences=maker.identity,
        vocabulary_size=maker.size,
        codec=info.codec,
        files=files,
        source=fingerprint(dataset),
    )


def fingerprint(dataset: str | Path) -> dict[str, Any]:
    """What parts a dataset has: their number, and a hash of their names and sizes."""
    directory = storage.join(storage.absolute(dataset), "parts")
    parts = sorted((file.uri.rpartition("/")[2], file.size) for file in storage.list_files(directory))
    return {"parts": len(parts), "sha256": hashlib.sha256(json.dumps(parts).encode()).hexdigest()}


def read_token_card(location: str | Path) -> TokenCard:
    """Read the card of an export.

    Args:
        location: the export's directory, or its tokens.json; local or s3://.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    uri = storage.absolute(location)
    if not uri.endswith(".json"):
        uri = storage.join(uri, FILE_NAME)
    try:
        content = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{location}: no export, there is no {FILE_NAME}") from error
    except OSError as error:
        raise DatasetError(f"{location}: {FILE_NAME} cannot be read: {error}") from error
    try:
        return TokenCard.from_json(content)
    except DatasetError as error:
        raise DatasetError(f"{location}: {error}") from error


def decode_tokens(
    input_ids: Tensor | npt.NDArray[Any] | Sequence[Any], card: TokenCard | str | Path, *, unfinished: bool = False
) -> Tensor:
    """The codes of the one stretch of audio in a sequence of ids, exported or made by a model.

    Args:
        input_ids: [N], or [N, K] in layouts parallel and delay; with the special ids, unless they were exported bare.
        card: of the export, or where it is.
        unfinished: take the whole frames of audio that has no end.

    Returns:
        [K, T] int64, as `Codec.decode` takes them in a batch.

    Raises:
        CodesError: no codes have these ids, or there are several stretches of audio or none: `Vocabulary.find_audio`
            gives them all.
        DatasetError: no card.
    """
    if not isinstance(card, TokenCard):
        card = read_token_card(card)
    ids = np.asarray(input_ids)
    if ids.dtype.kind not in "iu" and ids.size:
        raise CodesError(f"ids are integers, not {ids.dtype}")
    found = card.vocabulary.find_audio(torch.from_numpy(ids.astype(np.int64)), unfinished=unfinished)
    if len(found) != 1:
        raise CodesError(f"{len(found)} stretches of audio in the sequence, where one is wanted")
    return found[0]


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
