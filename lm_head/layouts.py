"""Layouts: named, reversible orders in which a language model sees the codes of a clip as tokens.

`parallel` keeps frames whole. `delay` moves level k by k frames, so that a step knows the coarser levels of its frame
(MusicGen, arXiv:2306.05284, 2.2). `flatten` is one sequence, frame by frame; `coarse_first` is one sequence, level by
level (in the spirit of VALL-E, arXiv:2301.02111). In one sequence every level has codes of its own: k * V is added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.errors import CodesError


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """How codes of K levels with V entries each become tokens, and back."""

    name: ClassVar[str]

    num_codebooks: int
    codebook_size: int

    def __post_init__(self) -> None:
        if self.num_codebooks < 1 or self.codebook_size < 1:
            raise ValueError(f"no layout for {self.num_codebooks} levels of {self.codebook_size} entries")

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Number of token values, special ones included: tokens are in [0, vocabulary_size)."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Token values that are no code, by name."""
        return {}

    def tokens(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] as tokens: [B, K, steps], or [B, K * T] in one sequence.

        Raises:
            CodesError: not int64, another K, or outside [0, V).
        """
        if codes.ndim != 3 or codes.shape[1] != self.num_codebooks:
            raise CodesError(f"codes must be [B, {self.num_codebooks}, T], not {list(codes.shape)}")
        self._check(codes, "codes")
        return self._arrange(codes)

    def codes(self, tokens: Tensor) -> Tensor:
        """The codes [B, K, T] that `tokens` were made of: the exact inverse.

        Raises:
            CodesError: no codes have these tokens.
        """
        codes = self._restore(tokens)
        self._check(codes, f"tokens are no codes in layout {self.name!r}: what they hold")
        return codes

    @abstractmethod
    def whole_frames(self, tokens: Tensor) -> Tensor:
        """The tokens of the frames that are all there, where tokens break off anywhere: what `codes` then takes.

        Raises:
            CodesError: in this layout no frame is whole before the end.
        """

    @abstractmethod
    def _arrange(self, codes: Tensor) -> Tensor: ...

    @abstractmethod
    def _restore(self, tokens: Tensor) -> Tensor:
        """The inverse of `_arrange` where there is one; codes outside [0, V), or CodesError, otherwise."""

    def _check(self, codes: Tensor, subject: str) -> None:
        if codes.dtype != torch.int64:
            raise CodesError(f"{subject} must be int64, not {codes.dtype}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise CodesError(
                f"{subject} ranges from {int(codes.min())} to {int(codes.max())}, "
                f"allowed is 0 to {self.codebook_size - 1}"
            )

    def _refuse(self, tokens: Tensor, wanted: str) -> None:
        raise CodesError(f"tokens in layout {self.name!r} are {wanted}, not {list(tokens.shape)}")


class Parallel(Layout):
    """A step is a frame: tokens are codes."""

    name = "parallel"

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.codebook_size

    def _arrange(self, codes: Tensor) -> Tensor:
        return codes

    def _restore(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 3 or tokens.shape[1] != self.num_codebooks:
            self._refuse(tokens, f"[B, {self.num_codebooks}, T]")
        return tokens

    def whole_frames(self, tokens: Tensor) -> Tensor:
        """All of them."""
        return tokens


class Delay(Layout):
    """Step s holds level k of frame s - k, and the special token V where that frame is not there."""

    name = "delay"

    @property
    def vocabulary_size(self) -> int:
        """V codes, and nothing."""
        return self.codebook_size + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        """What stands where no code is."""
        return {"nothing": self.codebook_size}

    def _arrange(self, codes: Tensor) -> Tensor:
        return delayed(codes, self.codebook_size)

    def _restore(self, tokens: Tensor) -> Tensor:
        levels = self.num_codebooks
        if tokens.ndim != 3 or tokens.shape[1] != levels or tokens.shape[2] < levels - 1:
            self._refuse(tokens, f"[B, {levels}, T + {levels - 1}]")
        codes = aligned(tokens)
        if not torch.equal(delayed(codes, self.codebook_size), tokens):
            raise CodesError(f"tokens in layout 'delay' must be {self.codebook_size} where there is no frame")
        return codes

    def whole_frames(self, tokens: Tensor) -> Tensor:
        """Those of which the last level has come."""
        levels = self.num_codebooks
        if tokens.ndim != 3 or tokens.shape[1] != levels:
            self._refuse(tokens, f"[B, {levels}, steps]")
        started = functional.pad(tokens, (0, max(0, levels - 1 - tokens.shape[2])), value=self.codebook_size)
        return delayed(aligned(started), self.codebook_size)


class _Sequence(Layout):
    """All codes in one sequence, k * V added to those of level k."""

    @property
    def vocabulary_size(self) -> int:
        """V for each level."""
        return self.num_codebooks * self.codebook_size

    def _offsets(self, like: Tensor) -> Tensor:
        return torch.arange(self.num_codebooks, device=like.device)[:, None] * self.codebook_size  # [K, 1]

    def _num_frames(self, tokens: Tensor) -> int:
        if tokens.ndim != 2 or tokens.shape[1] % self.num_codebooks:
            self._refuse(tokens, f"[B, {self.num_codebooks} * T]")
        return tokens.shape[1] // self.num_codebooks


class Flatten(_Sequence):
    """Frame by frame, and in a frame level by level."""

    name = "flatten"

    def _arrange(self, codes: Tensor) -> Tensor:
        return (codes + self._offsets(codes)).transpose(1, 2).flatten(1)

    def _restore(self, tokens: Tensor) -> Tensor:
        frames = tokens.reshape(len(tokens), self._num_frames(tokens), self.num_codebooks)
        return frames.transpose(1, 2) - self._offsets(tokens)

    def whole_frames(self, tokens: Tensor) -> Tensor:
        """Up to the last multiple of K."""
        return tokens[:, : tokens.shape[1] // self.num_codebooks * self.num_codebooks]


class CoarseFirst(_Sequence):
    """Level by level, the coarsest first: all frames of one, then all of the next."""

    name = "coarse_first"

    def _arrange(self, codes: Tensor) -> Tensor:
        return (codes + self._offsets(codes)).flatten(1)

    def _restore(self, tokens: Tensor) -> Tensor:
        frames = self._num_frames(tokens)
        return tokens.reshape(len(tokens), self.num_codebooks, frames) - self._offsets(tokens)

    def whole_frames(self, tokens: Tensor) -> Tensor:
        """None: the finest level comes last."""
        raise CodesError(f"tokens in layout 'coarse_first' break off after {tokens.shape[-1]}: no frame is whole yet")


LAYOUTS: dict[str, type[Layout]] = {kind.name: kind for kind in (Parallel, Delay, Flatten, CoarseFirst)}


def make_layout(name: str, *, num_codebooks: int, codebook_size: int) -> Layout:
    """A layout by its name: parallel, delay, flatten or coarse_first.

    Raises:
        ValueError: no such layout, or no levels or entries.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is not one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name](num_codebooks, codebook_size)


def delayed(values: Tensor, nothing: int) -> Tensor:
    """Level k moved by k steps: [B, K, T] to [B, K, T + K - 1], with `nothing` where no frame is."""
    levels = values.shape[1]
    moved = [functional.pad(values[:, k], (k, levels - 1 - k), value=nothing) for k in range(levels)]
    return torch.stack(moved, dim=1)


def aligned(values: Tensor) -> Tensor:
    """The inverse of `delayed`: level k moved back by k steps, [B, K, S, ...] to [B, K, S - K + 1, ...]."""
    levels = values.shape[1]
    num_frames = values.shape[2] - levels + 1
    return torch.stack([values[:, k, k : k + num_frames] for k in range(levels)], dim=1)
