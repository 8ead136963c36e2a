"""What a row of a token dataset becomes for a language model: settings, and the sequence of ids of each row."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm_head.layouts import LAYOUTS, make_layout
from lm_head.vocabulary import ORDERS, SpecialTokens, Vocabulary
from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.exporting.export_rows import Row
from pipelines.exporting.export_text import TextTokenizer
from pipelines.inputs.transcripts import TEXT_COLUMN, TextSource, TranscriptFile
from tokenizer import CodecSpec, CodesError, DatasetError

WITHOUT_TEXT = ("error", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSettings:
    """What is wanted of each row.

    Args:
        layout: parallel, delay, flatten or coarse_first.
        bandwidth_kbps: levels to take, by their bandwidth; None for all that are stored.
        num_codebooks: levels to take, by their number.
        order: audio, audio_text or text_audio.
        offset: id of the first audio token; None begins behind the text vocabulary, or at 0 without text.
        special_tokens: ids by name; those not named lie behind all others.
        bare: no special tokens; audio alone.
        text_tokenizer: tokenizer.json, for orders with text.
        text_column: of the dataset.
        transcripts: a .jsonl file of texts, which go before the column's.
        without_text: what a row without text is, an error or skipped.

    Raises:
        ValueError: one that there is not, or some that do not go together.
    """

    layout: str = "flatten"
    bandwidth_kbps: float | None = None
    num_codebooks: int | None = None
    order: str = "audio"
    offset: int | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    bare: bool = False
    text_tokenizer: str | None = None
    text_column: str = TEXT_COLUMN
    transcripts: str | Path | None = None
    without_text: str = "error"

    def __post_init__(self) -> None:
        choices = {"layout": tuple(LAYOUTS), "order": ORDERS, "without_text": WITHOUT_TEXT}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.bandwidth_kbps is not None and self.num_codebooks is not None:
            raise ValueError("name a bandwidth or a number of codebooks, not both")
        if self.with_text and self.text_tokenizer is None:
            raise ValueError(f"order {self.order!r} needs a text tokenizer: a Hugging Face tokenizer.json")
        if not self.with_text and (self.text_tokenizer is not None or self.transcripts is not None):
            raise ValueError("a text tokenizer and transcripts are for the orders audio_text and text_audio")
        if self.bare and (self.with_text or self.special_tokens):
            raise ValueError("bare audio has no special tokens, and without them nothing tells text from audio")

    @property
    def with_text(self) -> bool:
        """Whether sequences have text."""
        return self.order != "audio"


class Skipped(enum.Enum):
    """Why a row gives no sequence."""

    EMPTY = "without frames"
    WITHOUT_TEXT = "without text"


class SequenceMaker:
    """Turns rows of one dataset into sequences of ids.

    Args:
        settings: what is wanted.
        info: of the dataset.

    Attributes:
        vocabulary: of the ids.
        text_tokenizer: None where sequences have no text.

    Raises:
        ValueError: the dataset has fewer levels, or an id has two meanings.
        DatasetError: a file of text cannot be read, or the codec is unknown.
        ImportError: text without the package `tokenizers`.
    """

    def __init__(self, settings: SequenceSettings, info: DatasetInfo) -> None:
        self.settings = settings
        self.num_codebooks = _num_codebooks(settings, info)
        self.text_tokenizer = None if settings.text_tokenizer is None else TextTokenizer(settings.text_tokenizer)
        self.vocabulary = _vocabulary(settings, self.num_codebooks, info.codebook_size, self.text_size)
        file = None if settings.transcripts is None else TranscriptFile(settings.transcripts)
        self._texts = TextSource(file)

    @property
    def text_size(self) -> int:
        """Text ids are below it."""
        return 0 if self.text_tokenizer is None else self.text_tokenizer.size

    @property
    def size(self) -> int:
        """All ids are below it."""
        return max(self.vocabulary.size, self.text_size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of ids at rest: uint16 up to 65,500 of them, where Megatron draws the line too, else int32."""
        return np.dtype("<u2" if self.size < 65500 else "<i4")

    @property
    def text_column(self) -> str | None:
        """The column to read; None where sequences have no text."""
        return self.settings.text_column if self.settings.with_text else None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about ids, in plain values."""
        return {
            "vocabulary": self.vocabulary.to_dict(),
            "order": self.settings.order,
            "text_tokenizer": self.text_tokenizer and {"sha256": self.text_tokenizer.sha256, "size": self.text_size},
            "text": self.text_column
            and {
                "column": self.text_column,
                "transcripts": self._texts.identity,
                "without_text": self.settings.without_text,
            },
        }

    def make(self, row: Row) -> Tensor | Skipped:
        """The ids of a row, int64 [N] or [N, K].

        Raises:
            DatasetError: it has no text and may not be skipped, or ids or codes are out of range.
        """
        if not row.codes.shape[1]:
            return Skipped.EMPTY
        text: Tensor | None = None
        if self.text_tokenizer is not None:
            said = self._texts.find(row.id, row.text)
            if said is None and self.settings.without_text == "error":
                raise DatasetError(
                    f"{row.id}: no text, neither in column {self.text_column!r} nor in a file of transcripts; "
                    "such rows can be skipped (--without-text skip)"
                )
            if said is None:
                return Skipped.WITHOUT_TEXT
            text = torch.tensor(self.text_tokenizer.encode(said), dtype=torch.int64)
        codes = torch.from_numpy(row.codes.astype(np.int64))
        try:
            return self.vocabulary.sequence(codes, text, self.settings.order)
        except CodesError as error:
            raise DatasetError(f"{row.id}: {error}") from error

    def require_text(self, dataset: str, example: str) -> None:
        """Raise DatasetError if rows need text and none was found; `example` is the id of a row."""
        if self.settings.with_text:
            self._texts.require_found([dataset], example)


def _num_codebooks(settings: SequenceSettings, info: DatasetInfo) -> int:
    wanted = settings.num_codebooks
    if settings.bandwidth_kbps is not None:
        try:
            spec = CodecSpec.from_dict(info.codec["spec"])
        except ValueError as error:
            raise DatasetError(f"its codec is not one that this version knows: {error}") from error
        wanted = spec.num_codebooks_at(settings.bandwidth_kbps)
    if wanted is None:
        return info.num_codebooks
    if not 1 <= wanted <= info.num_codebooks:
        raise ValueError(
            f"{wanted} codebooks: the dataset stores {info.num_codebooks}, which are {info.bandwidth_kbps:g} kbps"
        )
    return wanted


def _vocabulary(settings: SequenceSettings, num_codebooks: int, codebook_size: int, text_size: int) -> Vocabulary:
    layout = make_layout(settings.layout, num_codebooks=num_codebooks, codebook_size=codebook_size)
    offset = text_size if settings.offset is None else settings.offset
    if offset < text_size:
        raise ValueError(f"offset {offset} is inside the text vocabulary, whose ids are 0 to {text_size - 1}")
    if settings.bare:
        return Vocabulary(layout, offset)
    return Vocabulary(layout, offset, SpecialTokens.placed(offset + layout.vocabulary_size, settings.special_tokens))
