"""A pair of models that go by level: one predicts level 0 frame by frame, the other fills in the finer levels.

Source: VALL-E, arXiv:2301.02111, 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lm_head.code_loss import CodeLoss
from lm_head.fine_lm import FineLM
from lm_head.token_lm import LMConfig, TokenLM


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseFirstConfig:
    """Sizes of both models.

    Attributes:
        coarse: of the `TokenLM`.
        fine: of the `FineLM`; it goes through `context_frames` again for each level of each stretch.
        stretch_frames: that generation fills at a time, and sound waits for; 0.5 s at 75 frames per second.
    """

    coarse: LMConfig = field(default_factory=lambda: LMConfig(num_codebooks=1))
    fine: LMConfig = field(default_factory=lambda: LMConfig(context_frames=75))
    stretch_frames: int = 38
    layout: Literal["coarse_first"] = "coarse_first"

    def __post_init__(self) -> None:
        if self.layout != "coarse_first":
            raise ValueError(f"layout of a CoarseFirstLM is 'coarse_first', not {self.layout!r}")
        if self.fine.num_codebooks < 2:
            raise ValueError("layout 'coarse_first' has at least 2 levels, of which the fine model is given the first")
        if self.coarse.num_codebooks != 1 or self.coarse.layout != "parallel":
            raise ValueError("the coarse model has one level, in layout 'parallel'")
        if (self.coarse.codebook_size, self.coarse.text) != (self.fine.codebook_size, self.fine.text):
            raise ValueError("both models have the same codebook_size, and both take text or none does")
        if self.stretch_frames < 1:
            raise ValueError(f"stretch_frames must be positive, not {self.stretch_frames!r}")

    @property
    def num_codebooks(self) -> int:
        """The most levels that they know."""
        return self.fine.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of each."""
        return self.fine.codebook_size

    @property
    def text(self) -> bool:
        """Whether they take transcripts."""
        return self.fine.text

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CoarseFirstConfig:
        """From JSON. Raises ValueError on an unknown or missing key or a value of another type."""
        kinds = {"layout": str, "stretch_frames": int, "coarse": dict, "fine": dict}
        if {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError("layout 'coarse_first' has a number stretch_frames and the settings coarse and fine")
        coarse, fine = LMConfig.from_dict(values["coarse"]), LMConfig.from_dict(values["fine"])
        return cls(coarse=coarse, fine=fine, stretch_frames=values["stretch_frames"], layout=values["layout"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class CoarseFirstLM(nn.Module):
    """A TokenLM for level 0 and a FineLM for the others: what `generate` takes for layout "coarse_first"."""

    def __init__(self, config: CoarseFirstConfig) -> None:
        super().__init__()
        self.config = config
        self.coarse, self.fine = TokenLM(config.coarse), FineLM(config.fine)

    def loss(
        self,
        codes: Tensor,
        generator: torch.Generator | None = None,
        *,
        text: Sequence[str] | None = None,
        begins: bool = True,
        offset: Tensor | int = 0,
        lengths: Tensor | None = None,
    ) -> CodeLoss:
        """What codes [B, K, T] cost, K at least 2: `TokenLM.loss` of level 0 and `FineLM.loss` of the others.

        They share no weight: each is trained as if it were alone.
        """
        coarse = self.coarse.loss(codes[:, :1], text=text, begins=begins, offset=offset, lengths=lengths)
        fine = self.fine.loss(codes, generator, text=text, lengths=lengths)
        num_codebooks = codes.shape[1]
        mean = (coarse.nats + (num_codebooks - 1) * fine.nats) / num_codebooks
        bits, counts = (torch.cat([one, others[1:]]) for one, others in zip(coarse[1:], fine[1:], strict=True))
        return CodeLoss(mean, bits, counts)


LanguageModel = TokenLM | CoarseFirstLM
LanguageModelConfig = LMConfig | CoarseFirstConfig


def make_language_model(config: LanguageModelConfig) -> LanguageModel:
    """A model with random weights, of the kind that the settings are of."""
    return CoarseFirstLM(config) if isinstance(config, CoarseFirstConfig) else TokenLM(config)


def build_language_model(config: dict[str, Any]) -> LanguageModel:
    """A model with random weights from its JSON settings, of either kind.

    Raises:
        ValueError: settings of no such model.
    """
    kind = CoarseFirstConfig if config.get("layout") == "coarse_first" else LMConfig
    return make_language_model(kind.from_dict(config))
