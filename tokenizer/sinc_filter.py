"""The filter of sample rate conversion: a sinc under a Hann window, by torchaudio's table or evaluated directly."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.torchaudio_import import import_torchaudio

_LOWPASS_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # cutoff as a part of the lower Nyquist frequency
_BLOCK_SAMPLES = 2**16  # a few seconds: a stream waits for a block
_TABLE_OUTPUTS = 24  # at least, where a period is shorter
_MAX_KERNEL = 2**20  # weights of torchaudio's table; 44101 -> 24000 would need a thousand times as many


def sinc_filter(from_step: int, to_step: int) -> TableFilter | DirectFilter:
    """The filter from one rate to another, in lowest terms: by table, where that is not too large."""
    # input samples on each side of an output sample that its filter can touch
    reach = math.ceil(_LOWPASS_FILTER_WIDTH * from_step / (min(from_step, to_step) * _ROLLOFF))
    small = to_step * (2 * reach + from_step) <= _MAX_KERNEL
    return (TableFilter if small else DirectFilter)(from_step, to_step, reach)


class TableFilter:
    """torchaudio's filters: after `to_step` outputs they repeat, shifted by `from_step` inputs.

    Several short periods are computed at once, as one matrix product: for 16 to 24 kHz 30 inputs give 24 outputs, in
    half the time of a convolution with three filters. Blocks and windows are whole periods.
    """

    def __init__(self, from_step: int, to_step: int, reach: int) -> None:
        self.from_step, self.to_step = from_step, to_step
        self.margin = -(-reach // from_step)  # periods

    def block(self, rows: int) -> int:  # noqa: ARG002 - as in DirectFilter
        """Outputs to compute at once."""
        return max(1, _BLOCK_SAMPLES // max(self.from_step, self.to_step)) * self.to_step

    def window(self, first: int, count: int) -> tuple[int, int]:
        """From and up to where the input is needed for some outputs; `first` starts a period."""
        periods = first // self.to_step - self.margin, -(-(first + count) // self.to_step) + self.margin
        return periods[0] * self.from_step, periods[1] * self.from_step

    def outputs(self, piece: Tensor, first: int, count: int) -> Tensor:  # noqa: ARG002 - as in DirectFilter
        """A window of the input [R, n] to its outputs [R, count]."""
        table, reach = _table(self.from_step, self.to_step, piece.device)  # [N, J]
        num_taps, num_outputs = table.shape
        shift = num_outputs // self.to_step * self.from_step
        heard = piece[:, self.margin * self.from_step - reach :]
        missing = (-(-count // num_outputs) - 1) * shift + num_taps - heard.shape[-1]
        windows = functional.pad(heard, (0, max(0, missing))).unfold(-1, num_taps, shift)  # [R, M, N]
        return (windows @ table).flatten(1)[:, :count]


class DirectFilter:
    """The windowed sinc, evaluated for every output sample, without a table.

    Output j lies at input position p = j * from_step / to_step, and
        y[j] = sum_i x[i] * scale * sinc(t) * cos(pi * t / 12)**2,   t = (i - p) * scale,   |t| <= 6,
    where scale = rolloff * min(from, to) / from, as in torchaudio. The floor of p is taken in integers: only the
    remainder, which is in [0, 1), is ever a float.
    """

    def __init__(self, from_step: int, to_step: int, reach: int) -> None:
        self.from_step, self.to_step, self.reach = from_step, to_step, reach

    def block(self, rows: int) -> int:
        """Outputs to compute at once."""
        return max(1, _BLOCK_SAMPLES // ((2 * self.reach + 2) * rows))

    def window(self, first: int, count: int) -> tuple[int, int]:
        """From and up to where the input is needed for some outputs."""
        last = first + count - 1
        return (
            first * self.from_step // self.to_step - self.reach,
            last * self.from_step // self.to_step + self.reach + 2,
        )

    def outputs(self, piece: Tensor, first: int, count: int) -> Tensor:
        """A window of the input [R, n] to its outputs [R, count]."""
        scale = _ROLLOFF * min(self.from_step, self.to_step) / self.from_step
        taps = torch.arange(2 * self.reach + 2, device=piece.device)  # [N]
        positions = torch.arange(first, first + count, device=piece.device) * self.from_step
        whole = torch.div(positions, self.to_step, rounding_mode="floor")  # [J]
        fraction = (positions - whole * self.to_step).double() / self.to_step
        t = (taps - self.reach).double() - fraction[:, None]  # [J, N]
        t = (t * scale).clamp_(-_LOWPASS_FILTER_WIDTH, _LOWPASS_FILTER_WIDTH)
        weights = torch.sinc(t) * torch.cos(t * (math.pi / 2 / _LOWPASS_FILTER_WIDTH)) ** 2 * scale
        windows = piece[:, (whole - whole[0])[:, None] + taps]  # [R, J, N]
        return torch.einsum("rjn,jn->rj", windows, weights.float())


@functools.lru_cache(maxsize=32)
def _table(from_step: int, to_step: int, device: torch.device) -> tuple[Tensor, int]:
    """Weights [N, J] of N consecutive inputs in J consecutive outputs, and how many inputs lie before the first one."""
    with torch.inference_mode(mode=False):  # a table made in inference mode could never serve a gradient
        resampler: Any = import_torchaudio().transforms.Resample(
            from_step, to_step, lowpass_filter_width=_LOWPASS_FILTER_WIDTH, rolloff=_ROLLOFF
        )
        period = resampler.kernel[:, 0].T  # [n, to_step]
        periods = max(1, _TABLE_OUTPUTS // to_step)
        table = period.new_zeros(len(period) + (periods - 1) * from_step, periods, to_step)
        for index in range(periods):
            table[index * from_step : index * from_step + len(period), index] = period
        return table.flatten(1).to(device), int(resampler.width)
