"""Sample rates and channel counts: any integer rate to any other, whole or as a stream, with exact lengths.

Outputs are computed in blocks of a fixed number, from a window of the input that reaches beyond them on both sides:

    input     0 0 |----------|----------|-----      silence stands before the start and after the end
                [ window 0 -----]
                         [ window 1 -----]
    output        |- block 0 -|- block 1 -|---

A stream waits until a window is full. A whole file is a stream too, so how a stream is cut changes no bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.errors import AudioError
from tokenizer.sinc_filter import sinc_filter

RESAMPLER = "sinc_interp_hann(lowpass_filter_width=6, rolloff=0.99)"
"""Name of the resampling filter, recorded in every dataset: codes depend on it."""

_MAX_RESAMPLED = 2**29  # samples: 2 GiB; a tiny file that claims to be at 1 Hz would grow 24,000 times
_CHUNK_SAMPLES = 2**16


@dataclass(frozen=True, slots=True)
class ResampleState:
    """Where a stream being resampled stands."""

    held: Tensor  # [C, n] input that outputs to come still need
    begin: int  # position of `held` in the input; negative in the silence before the start
    num_out: int  # samples put out


class StreamingResampler:
    """`resample` for streams, in constant memory, with the state in the caller's hands.

    However a stream is cut, its samples are bit for bit those of all its chunks resampled at once.

    Args:
        from_rate: sample rate of the chunks in Hz.
        to_rate: the wanted sample rate in Hz. If both are equal, chunks pass through.

    Raises:
        AudioError: a rate is not a positive integer.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        for rate in (from_rate, to_rate):
            if not isinstance(rate, int) or rate < 1:
                raise AudioError(f"a sample rate is a positive integer number of Hz, not {rate!r}")
        common = math.gcd(from_rate, to_rate)
        self._from_step, self._to_step = from_rate // common, to_rate // common
        self._filter = sinc_filter(self._from_step, self._to_step)

    def initial_state(self, channels: int) -> ResampleState:
        """State of a stream that has not begun."""
        begin = self._filter.window(0, 1)[0] if self._changes else 0
        return ResampleState(torch.zeros(channels, -begin), begin, 0)

    def num_resampled(self, num_samples: int) -> int:
        """Samples that so many become: ceil(num_samples * to_rate / from_rate)."""
        return -(-num_samples * self._to_step // self._from_step)

    def step(self, chunk: Tensor, state: ResampleState) -> tuple[Tensor, ResampleState]:
        """The next samples [C, S] of a stream, S >= 0, to the blocks [C, n] that became known.

        n may be 0: a block is some seconds long.

        Raises:
            AudioError: the chunk is not [C, S], or would become longer than 2**29 samples.
        """
        channels = state.held.shape[0]
        if chunk.ndim != 2 or chunk.shape[0] != channels:
            raise AudioError(f"a chunk of this stream is [{channels}, samples], not {list(chunk.shape)}")
        if not self._changes:
            return chunk, ResampleState(chunk.new_zeros(channels, 0), 0, 0)
        _check_length(channels * self.num_resampled(chunk.shape[-1]))
        chunk = chunk.float()
        held = torch.cat([state.held.to(chunk.device), chunk], dim=-1)
        block = self._filter.block(channels)
        first, outputs = state.num_out, [held[:, :0]]
        while self._filter.window(first, block)[1] <= state.begin + held.shape[-1]:
            outputs.append(self._block(first, block, held, state.begin))
            first += block
        begin = self._filter.window(first, 1)[0]
        return torch.cat(outputs, dim=-1), ResampleState(held[:, begin - state.begin :].clone(), begin, first)

    def finish(self, state: ResampleState) -> Tensor:
        """End a stream: the samples [C, n] that waited for what follows. Silence follows."""
        if not self._changes:
            return state.held
        length = self.num_resampled(state.begin + state.held.shape[-1])
        block = self._filter.block(len(state.held))
        outputs = [
            self._block(first, min(block, length - first), state.held, state.begin)
            for first in range(state.num_out, length, block)
        ]
        return torch.cat([state.held[:, :0], *outputs], dim=-1)

    @property
    def _changes(self) -> bool:
        return self._from_step != self._to_step

    def _block(self, first: int, count: int, held: Tensor, begin: int) -> Tensor:
        """Outputs [C, count] from the one at `first` on, of the input that starts at `begin`."""
        low, high = self._filter.window(first, count)
        piece = held[:, low - begin : high - begin]
        # a copy even where nothing is missing: bits may depend on where in memory a sum starts
        return self._filter.outputs(functional.pad(piece, (0, high - low - piece.shape[-1])), first, count)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sample rate by band-limited interpolation.

    The filter is that of `torchaudio.functional.resample` with its defaults: a sinc under a Hann window. Lengths
    are computed in integers (torchaudio's float32 lengths are off by some samples after 2**24), and the memory is
    bounded to little more than input plus output.

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
    resampler = StreamingResampler(from_rate, to_rate)
    if from_rate == to_rate:
        return waveform
    rows = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1]).float()  # [R, S]
    length = resampler.num_resampled(rows.shape[-1])
    _check_length(len(rows) * length)
    resampled = rows.new_empty(len(rows), length)
    if resampled.numel():
        state = resampler.initial_state(len(rows))
        for chunk in torch.split(rows, _CHUNK_SAMPLES, dim=-1):
            start = state.num_out
            piece, state = resampler.step(chunk, state)
            resampled[:, start : state.num_out] = piece
        resampled[:, state.num_out :] = resampler.finish(state)
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
    total = waveform[0]
    for row in waveform[1:]:  # in this order for every sample: the order of `mean` depends on the length
        total = total + row
    return (total / len(waveform)).expand(channels, -1).contiguous()


def _check_length(num_resampled: int) -> None:
    if num_resampled > _MAX_RESAMPLED:
        raise AudioError(f"resampling would give {num_resampled} samples: too many, at most {_MAX_RESAMPLED}")
