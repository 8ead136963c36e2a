"""Vocabularies: codes as ids of a language model that may know text too, and sequences of both that can be undone.

Tokens of a layout begin at `offset`. Special ids lie anywhere else, and so does text, usually below the offset.

Sequences are time first: ids [N], or [N, K] in layouts that keep levels apart (`parallel`, `delay`). There, a step
that is no audio has its id at level 0 and padding at the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_head.layouts import Layout, make_layout
from tokenizer.errors import CodesError

ORDERS = ("audio", "audio_text", "text_audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids that are neither text nor a code."""

    begin_of_audio: int
    end_of_audio: int
    begin_of_text: int
    end_of_text: int
    padding: int

    @classmethod
    def placed(cls, first: int, named: Mapping[str, int] | None = None) -> SpecialTokens:
        """Ids as `named` says, and for the other names the next free ones from `first` on.

        Raises:
            ValueError: a name that there is not.
        """
        named = dict(named or {})
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(named) - set(names))
        if unknown:
            raise ValueError(f"special token {unknown[0]!r} is not one of {', '.join(names)}")
        free = (number for number in itertools.count(first) if number not in set(named.values()))
        return cls(**{name: named[name] if name in named else next(free) for name in names})

    def to_dict(self) -> dict[str, int]:
        """Ids by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which ids mean what.

    Args:
        layout: of the codes.
        offset: id of the layout's token 0.
        special_tokens: None for bare audio: sequences then are the codes of one clip and nothing else.

    Raises:
        ValueError: ids below 0, or with two meanings.
    """

    layout: Layout
    offset: int = 0
    special_tokens: SpecialTokens | None = None

    def __post_init__(self) -> None:
        special = self._special_ids
        if self.offset < 0 or any(number < 0 for number in special):
            raise ValueError(f"ids begin at 0: offset {self.offset}, special tokens {special}")
        if len(set(special)) < len(special):
            raise ValueError(f"special tokens have ids of their own, not {special}")
        taken = [number for number in special if number in self.audio_ids]
        if taken:
            raise ValueError(
                f"special token {taken[0]} is one of the audio ids, {self.audio_ids.start} to {self.audio_ids[-1]}"
            )

    @property
    def audio_ids(self) -> range:
        """Ids of the layout's tokens."""
        return range(self.offset, self.offset + self.layout.vocabulary_size)

    @property
    def size(self) -> int:
        """Audio and special ids are below it."""
        return max(self.audio_ids.stop, *(number + 1 for number in self._special_ids), 0)

    def audio(self, codes: Tensor) -> Tensor:
        """Codes [K, T] as ids, without special ones: [N], or [N, K].

        Raises:
            CodesError: as `Layout.tokens`.
        """
        return self.layout.tokens(codes[None])[0].transpose(0, -1) + self.offset

    def codes(self, ids: Tensor) -> Tensor:
        """The codes [K, T] of ids that are audio alone: the exact inverse of `audio`.

        Raises:
            CodesError: no codes have these ids.
        """
        return self.layout.codes(self._tokens(ids))[0]

    def sequence(self, codes: Tensor, text: Tensor | None = None, order: str = "audio") -> Tensor:
        """Ids of a clip, and of its text before or after it, each between its special ids: [N], or [N, K].

        Args:
            codes: [K, T].
            text: [n] int64 ids, none of them an audio or special one.
            order: audio, audio_text or text_audio.

        Raises:
            CodesError: as `audio`; or text has an id that means something else.
            ValueError: an order and a vocabulary that do not go together, or text where none is wanted.
        """
        if order not in ORDERS:
            raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
        if (text is None) != (order == "audio"):
            raise ValueError(f"order {order!r} {'takes no' if order == 'audio' else 'needs'} text")
        audio, special = self.audio(codes), self.special_tokens
        if special is None:
            if text is not None:
                raise ValueError(f"order {order!r} needs special tokens: without them nothing tells text from audio")
            return audio
        parts = [self.steps([special.begin_of_audio]), audio, self.steps([special.end_of_audio])]
        if text is None:
            return torch.cat(parts)
        self._check_text(text)
        said = [self.steps([special.begin_of_text]), self.steps(text.tolist()), self.steps([special.end_of_text])]
        return torch.cat([*parts, *said] if order == "audio_text" else [*said, *parts])

    def steps(self, ids: list[int]) -> Tensor:
        """Ids that are no audio as steps of a sequence: [n], or [n, K] with padding below level 0."""
        row = torch.tensor(ids, dtype=torch.int64)
        if not self.keeps_levels_apart or self.special_tokens is None:
            return row
        wide = torch.full((len(ids), self.layout.num_codebooks), self.special_tokens.padding)
        wide[:, 0] = row
        return wide

    @property
    def keeps_levels_apart(self) -> bool:
        """Whether sequences are [N, K] and not [N]."""
        return self.layout.name in ("parallel", "delay")

    def find_audio(self, sequence: Tensor, *, unfinished: bool = False) -> list[Tensor]:
        """The codes [K, T] of every stretch of audio in a sequence, in order.

        Args:
            sequence: [N] or [N, K] int64; all of it is audio in a vocabulary without special tokens.
            unfinished: take the whole frames of audio that has no end, as of a model that was stopped.

        Raises:
            CodesError: a stretch has no beginning or no end, or is no codes.
        """
        if self.special_tokens is None:
            return [self.codes(self._whole(sequence) if unfinished else sequence)]
        begin, end = self.special_tokens.begin_of_audio, self.special_tokens.end_of_audio
        found = []
        for start, stop in self._stretches(sequence, begin, end, "audio"):
            if stop is None and not unfinished:
                raise CodesError(f"audio that begins at {start} has no end_of_audio ({end})")
            ids = sequence[start + 1 : stop]
            found.append(self.codes(self._whole(ids) if stop is None else ids))
        return found

    def find_text(self, sequence: Tensor) -> list[Tensor]:
        """The ids [n] of every stretch of text in a sequence, in order.

        Raises:
            CodesError: a stretch has no beginning or no end, or has ids that are no text.
        """
        if self.special_tokens is None:
            return []
        begin, end = self.special_tokens.begin_of_text, self.special_tokens.end_of_text
        found = []
        for start, stop in self._stretches(sequence, begin, end, "text"):
            if stop is None:
                raise CodesError(f"text that begins at {start} has no end_of_text ({end})")
            text = self._level_0(sequence)[start + 1 : stop]
            self._check_text(text)
            found.append(text)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `from_dict` takes."""
        return {
            "layout": self.layout.name,
            "num_codebooks": self.layout.num_codebooks,
            "codebook_size": self.layout.codebook_size,
            "offset": self.offset,
            "special_tokens": None if self.special_tokens is None else self.special_tokens.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` described.

        Raises:
            ValueError: it is none.
        """
        try:
            sizes = {name: plain[name] for name in ("num_codebooks", "codebook_size")}
            special = plain["special_tokens"]
            special = None if special is None else SpecialTokens(**special)
            return cls(make_layout(plain["layout"], **sizes), plain["offset"], special)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no vocabulary: {type(error).__name__}: {error}") from error

    @property
    def _special_ids(self) -> tuple[int, ...]:
        return () if self.special_tokens is None else tuple(self.special_tokens.to_dict().values())

    def _tokens(self, ids: Tensor) -> Tensor:
        dimensions = 2 if self.keeps_levels_apart else 1
        if ids.ndim != dimensions:
            wanted = f"[N, {self.layout.num_codebooks}]" if dimensions == 2 else "[N]"
            raise CodesError(f"ids in layout {self.layout.name!r} are {wanted}, not {list(ids.shape)}")
        return ids.transpose(0, -1)[None] - self.offset

    def _whole(self, ids: Tensor) -> Tensor:
        return self.layout.whole_frames(self._tokens(ids))[0].transpose(0, -1) + self.offset

    def _level_0(self, sequence: Tensor) -> Tensor:
        self._tokens(sequence)
        return sequence[:, 0] if self.keeps_levels_apart else sequence

    def _stretches(self, sequence: Tensor, begin: int, end: int, kind: str) -> list[tuple[int, int | None]]:
        """Where stretches begin and end; None for an end that is not there."""
        row = self._level_0(sequence)
        found: list[tuple[int, int | None]] = []
        start: int | None = None
        for place in torch.nonzero((row == begin) | (row == end)).flatten().tolist():
            begins = int(row[place]) == begin
            if begins == (start is not None):
                before = "not ended" if begins else "not begun"
                raise CodesError(f"{kind} {'begins' if begins else 'ends'} at {place}, where {kind} has {before}")
            if start is not None:
                found.append((start, place))
            start = place if begins else None
        return found if start is None else [*found, (start, None)]

    def _check_text(self, text: Tensor) -> None:
        if text.ndim != 1 or text.dtype != torch.int64:
            raise CodesError(f"text ids are [n] int64, not {list(text.shape)} {text.dtype}")
        in_audio = (text >= self.audio_ids.start) & (text < self.audio_ids.stop)
        wrong = text[in_audio | (text < 0) | torch.isin(text, torch.tensor(self._special_ids))]
        if len(wrong):
            raise CodesError(f"id {int(wrong[0])} is no text in this vocabulary: it is audio, special or negative")
