"""Sample rates and channel counts: any integer rate to any other, in blocks, with exact lengths."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.errors import AudioError
from tokenizer.torchaudio_import import import_torchaudio

RESAMPLER = "sinc_interp_hann(lowpass_filter_width=6, rolloff=0.99)"
"""Name of the resampling filter, recorded in every dataset: codes depend on it."""

_LOWPASS_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # cutoff as a part of the lower Nyquist frequency
_MAX_RESAMPLED = 2**29  # samples: 2 GiB; a tiny file that claims to be at 1 Hz would grow 24,000 times
_BLOCK_SAMPLES = 2**18
_MAX_KERNEL = 2**20  # weights of torchaudio's table; 44101 -> 24000 would need a thousand times as many


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sample rate by band-limited interpolation.

    The filter is that of `torchaudio.functional.resample` with its defaults: a sinc under a Hann window. Lengths
    are computed in integers (torchaudio's float32 lengths are off by some samples after 2**24), and long waveforms
    are cut into blocks, which changes no sample and bounds the memory to about twice input plus output.

    Args:
        waveform: [..., S] float32.
        from_rate: its sample rate in Hz.
        to_rate: the wanted sample rate in Hz.

    Returns:
        [..., ceil(S * to_rate / from_rate)] float32; the same tensor where the rates are equal.

    Raises:
        AudioError: a rate is not a positive integer, or the result would be longer than 2**29 samples.

    Source: Smith, https://ccrma.stanford.edu/~jos/resample/.
    """
    for rate in (from_rate, to_rate):
        if not isinstance(rate, int) or rate < 1:
            raise AudioError(f"a sample rate is a positive integer number of Hz, not {rate!r}")
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    from_step, to_step = from_rate // common, to_rate // common
    num_samples = waveform.shape[-1]
    length = -(-num_samples * to_step // from_step)
    rows = waveform.reshape(math.prod(waveform.shape[:-1]), num_samples).float()  # [R, S]
    if rows.shape[0] * length > _MAX_RESAMPLED:
        raise AudioError(f"{num_samples} samples at {from_rate} Hz would be {length} at {to_rate} Hz: too many")
    resampled = rows.new_empty(rows.shape[0], length)
    if to_step * (2 * _kernel_reach(from_step, to_step) + from_step) <= _MAX_KERNEL:
        _resample_by_table(rows, from_step, to_step, resampled)
    else:
        _resample_directly(rows, from_step, to_step, resampled)
    return resampled.reshape(*waveform.shape[:-1], length)


def mix_channels(waveform: Tensor, channels: int) -> Tensor:
    """Give a waveform the wanted number of channels: [C, S] -> [channels, S].

    Equal counts pass unchanged. Otherwise every output channel is the mean of all input channels, so that no
    speaker is lost, whatever the unknown layout of the input.

    Raises:
        AudioError: `waveform` is not [C, S], or `channels` is not positive.
    """
    if waveform.ndim != 2 or waveform.shape[0] < 1 or channels < 1:
        raise AudioError(f"cannot mix a waveform of shape {list(waveform.shape)} to {channels} channel(s)")
    if waveform.shape[0] == channels:
        return waveform
    return waveform.mean(dim=0, keepdim=True).expand(channels, -1).contiguous()


def _kernel_reach(from_step: int, to_step: int) -> int:
    """Input samples on each side of an output sample that its filter can touch."""
    return math.ceil(_LOWPASS_FILTER_WIDTH * from_step / (min(from_step, to_step) * _ROLLOFF))


@functools.lru_cache(maxsize=32)
def _table_resampler(from_step: int, to_step: int, device: torch.device) -> Any:
    with torch.inference_mode(mode=False):  # a table made in inference mode could never serve a gradient
        resampler = import_torchaudio().transforms.Resample(
            from_step, to_step, lowpass_filter_width=_LOWPASS_FILTER_WIDTH, rolloff=_ROLLOFF
        )
        return resampler.to(device)


def _resample_by_table(rows: Tensor, from_step: int, to_step: int, resampled: Tensor) -> None:
    """Let torchaudio convolve: after `to_step` outputs the filters repeat, shifted by `from_step` inputs.

    Blocks are whole periods, cut with a margin of whole periods on both sides that is dropped afterwards.
    """
    num_samples = rows.shape[1]
    resampler = _table_resampler(from_step, to_step, rows.device)
    margin = -(-_kernel_reach(from_step, to_step) // from_step)  # periods
    block = max(1, _BLOCK_SAMPLES // max(from_step, to_step))  # periods
    for first in range(0, -(-num_samples // from_step), block):
        begin, end = (first - margin) * from_step, (first + block + margin) * from_step
        piece = rows[:, max(begin, 0) : min(end, num_samples)]
        piece = functional.pad(piece, (max(-begin, 0), max(end - num_samples, 0)))
        output = resampled[:, first * to_step : (first + block) * to_step]
        output.copy_(resampler(piece)[:, margin * to_step :][:, : output.shape[1]])


def _resample_directly(rows: Tensor, from_step: int, to_step: int, resampled: Tensor) -> None:
    """Evaluate the windowed sinc for every output sample, without a table.

    Output j lies at input position p = j * from_step / to_step, and
        y[j] = sum_i x[i] * scale * sinc(t) * cos(pi * t / 12)**2,   t = (i - p) * scale,   |t| <= 6,
    where scale = rolloff * min(from, to) / from, as in torchaudio. The floor of p is taken in integers: only the
    remainder, which is in [0, 1), is ever a float.
    """
    num_samples, length = rows.shape[1], resampled.shape[1]
    scale = _ROLLOFF * min(from_step, to_step) / from_step
    reach = _kernel_reach(from_step, to_step)
    taps = torch.arange(-reach, reach + 2, device=rows.device)  # [N]
    block = max(1, _BLOCK_SAMPLES // (len(taps) * len(rows)))
    for first in range(0, length, block):
        outputs = torch.arange(first, min(first + block, length), device=rows.device) * from_step
        whole = torch.div(outputs, to_step, rounding_mode="floor")  # [J]
        fraction = (outputs - whole * to_step).double() / to_step
        t = ((taps.double() - fraction[:, None]) * scale).clamp_(-_LOWPASS_FILTER_WIDTH, _LOWPASS_FILTER_WIDTH)
        weights = torch.sinc(t) * torch.cos(t * (math.pi / 2 / _LOWPASS_FILTER_WIDTH)) ** 2 * scale  # [J, N]
        positions = whole[:, None] + taps  # [J, N]
        weights[(positions < 0) | (positions >= num_samples)] = 0.0
        windows = rows[:, positions.clamp_(0, num_samples - 1)]  # [R, J, N]
        resampled[:, first : first + len(outputs)] = torch.einsum("rjn,jn->rj", windows, weights.float())
