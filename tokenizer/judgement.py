"""What a discriminator says about a waveform, and the stack of convolutions in which it comes to that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Judgement(NamedTuple):
    """What one discriminator says about a batch."""

    score: Tensor  # [B, 1, rows, columns] float32, high where it sounds real
    features: list[Tensor]  # output of each layer before the score, after its activation


class Judge(nn.Module, ABC):
    """One discriminator: convolutions with leaky ReLU over a picture of the waveform, and a last one for the score.

    Args:
        layers: the convolutions, in order.
        last: the convolution that gives the score; one output channel.
        slope: of the activation below zero.
    """

    def __init__(self, layers: Sequence[nn.Module], last: nn.Module, slope: float) -> None:
        super().__init__()
        self.convs, self.conv_post, self.slope = nn.ModuleList(layers), last, slope

    @abstractmethod
    def picture(self, waveform: Tensor) -> Tensor:
        """[B, C, S] to what the convolutions look at, [B, planes, rows, columns]."""

    def forward(self, waveform: Tensor) -> Judgement:
        """Judge a batch [B, C, S]."""
        # With the channels innermost the convolutions take half the time on a CPU, and every layer hands the format on.
        x = self.picture(waveform).contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.convs:
            x = functional.leaky_relu_(layer(x), self.slope)  # in place: nothing needs the value before it
            features.append(x)
        return Judgement(self.conv_post(x).float(), features)


def normed(layer: nn.Module) -> nn.Module:
    """The layer with its weight split into direction and length. Source: weight normalization, arXiv:1602.07868."""
    split: nn.Module = parametrizations.weight_norm(layer)
    return split
