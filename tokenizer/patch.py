"""The patch family: every layer at the frame rate, a linear patch in, an inverse STFT with overlap-add out.

Most of a SEANet's arithmetic happens near the sample rate. Here the waveform is cut into overlapping patches first,
so that every layer sees 75 frames a second instead of thousands of samples: many times faster to train and to run on
a CPU. Relatives: Vocos (arXiv:2306.00814) for the head, ConvNeXt (arXiv:2201.03545) for the blocks.

Both directions are causal: frame t knows samples up to (t + 1) * hop_length, and output hop t needs codes up to t.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tokenizer.network_config import PatchConfig
from tokenizer.spec import CodecSpec
from tokenizer.streaming_layer import StreamingLayer

State = tuple[Tensor, ...]


class ConvNextBlock(nn.Module):
    """Depthwise causal convolution, layer norm and a two-layer perceptron, added to the input with a small gain."""

    def __init__(self, width: int, hidden_width: int, kernel_size: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.empty(kernel_size, width).uniform_(-1, 1) / kernel_size**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.1))

    def initial_state(self, batch_size: int) -> Tensor:
        """Silence before the first frame: [B, kernel_size - 1, width]."""
        return self.taps.new_zeros(batch_size, self.taps.shape[0] - 1, self.taps.shape[1])

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk [B, T, width] and the frames before it; returns the output and the frames the next chunk needs."""
        frames = torch.cat([past, x], dim=1)  # [B, kernel_size - 1 + T, width]
        num_frames = x.shape[1]
        y = self.bias.expand_as(x)
        for tap in range(self.taps.shape[0]):  # frames stay the rows of one matrix: no transposition as in conv1d
            y = torch.addcmul(y, frames[:, tap : tap + num_frames], self.taps[tap])
        y = self.contract(F.gelu(self.expand(self.norm(y))))
        return x + self.gain * y, frames[:, num_frames:]


class BlockStack(nn.ModuleList):
    """ConvNeXt blocks one after the other."""

    def __init__(self, num_blocks: int, config: PatchConfig) -> None:
        super().__init__(
            ConvNextBlock(config.width, config.hidden_width, config.kernel_size) for _ in range(num_blocks)
        )

    def initial_state(self, batch_size: int) -> State:
        """The frames before the first one, block by block."""
        return tuple(cast("ConvNextBlock", block).initial_state(batch_size) for block in self)

    def step(self, x: Tensor, pasts: State) -> tuple[Tensor, State]:
        """One chunk [B, T, width] through all blocks."""
        next_pasts = []
        for block, past in zip(self, pasts, strict=True):
            x, next_past = cast("ConvNextBlock", block).step(x, past)
            next_pasts.append(next_past)
        return x, tuple(next_pasts)


class PatchEncoder(StreamingLayer):
    """Waveform to latents: patches of `context_frames` hops, the newest hop last."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        config = _config(spec)
        self.channels, self.hop_length, self.context_frames = spec.channels, spec.hop_length, config.context_frames
        self.patch = nn.Linear(spec.channels * spec.hop_length * config.context_frames, config.patch_width)
        self.mix = nn.Linear(config.patch_width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = BlockStack(config.encoder_blocks, config)
        self.head_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, spec.latent_dim)

    def initial_state(self, batch_size: int) -> State:
        """Silence before the first sample, for the patch and for every block."""
        context = self.patch.weight.new_zeros(batch_size, self.channels, (self.context_frames - 1) * self.hop_length)
        return (context, *self.blocks.initial_state(batch_size))

    def step(self, waveform: Tensor, state: State) -> tuple[Tensor, State]:
        """Whole hops of waveform [B, C, T * hop_length] to latents [B, D, T]."""
        context, *pasts = state
        samples = torch.cat([context, waveform], dim=-1)
        num_frames = waveform.shape[-1] // self.hop_length
        # As hops [B, C, frames, hop] the patches are views that differ by a shift: no gather, no strided copy.
        hops = samples.reshape(*samples.shape[:2], -1, self.hop_length)
        shifted = [hops[:, :, shift : shift + num_frames] for shift in range(self.context_frames)]
        patches = torch.cat(shifted, dim=-1).transpose(1, 2).flatten(2)  # [B, T, C * context_frames * hop]
        x = self.norm(self.mix(F.gelu(self.patch(patches))))  # [B, T, width]
        x, next_pasts = self.blocks.step(x, tuple(pasts))
        latents = self.head(self.head_norm(x))
        # A fixed scale: without it the latents shrink to nothing, since that lowers the commitment loss.
        latents = F.layer_norm(latents.float(), (latents.shape[-1],))
        kept = samples[..., samples.shape[-1] - context.shape[-1] :]
        return latents.transpose(1, 2), (kept, *next_pasts)


class PatchDecoder(StreamingLayer):
    """Latents to waveform: each frame is an inverse Fourier transform of hop_length + overlap samples."""

    window: Tensor

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        config = _config(spec)
        self.channels, self.hop_length, self.overlap = spec.channels, spec.hop_length, config.overlap
        self.frame_length = spec.hop_length + config.overlap
        self.mix = nn.Linear(spec.latent_dim, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = BlockStack(config.decoder_blocks, config)
        self.head_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, spec.channels * 2 * (self.frame_length // 2 + 1))
        self.register_buffer("window", _crossfade_window(spec.hop_length, config.overlap), persistent=False)

    def initial_state(self, batch_size: int) -> State:
        """Silence before the first frame, and no tail to add."""
        tail = self.head.weight.new_zeros(batch_size, self.channels, self.overlap)
        return (tail, *self.blocks.initial_state(batch_size))

    def step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """Latents [B, D, T] to waveform [B, C, T * hop_length]; the overlap of the last frame waits in the state."""
        if latents.shape[-1] == 0:  # the Fourier transform refuses a chunk without frames
            return latents.new_zeros(latents.shape[0], self.channels, 0), state
        tail, *pasts = state
        x = self.norm(self.mix(latents.transpose(1, 2)))  # [B, T, width]
        x, next_pasts = self.blocks.step(x, tuple(pasts))
        spectrum = self.head(self.head_norm(x)).float()
        spectrum = spectrum.reshape(*spectrum.shape[:2], self.channels, -1)  # [B, T, C, 2 * bins]
        log_magnitude, phase = spectrum.transpose(1, 2).chunk(2, dim=-1)  # [B, C, T, bins]
        magnitude = torch.exp(log_magnitude.clamp(max=6.0))  # e^6 is far above full scale: a guard, not a limit
        frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.frame_length) * self.window
        body, overlaps = frames[..., : self.hop_length], frames[..., self.hop_length :]
        tails = torch.cat([tail.unsqueeze(2), overlaps], dim=2)  # [B, C, T + 1, overlap], tail t under frame t
        faded = F.pad(tails[:, :, :-1], (0, self.hop_length - self.overlap))
        return (body + faded).flatten(2), (tails[:, :, -1], *next_pasts)


def _config(spec: CodecSpec) -> PatchConfig:
    if not isinstance(spec.network, PatchConfig):
        raise TypeError(f"a patch codec needs patch settings, not {type(spec.network).__name__}")
    return spec.network


def _crossfade_window(hop_length: int, overlap: int) -> Tensor:
    """Rise over `overlap` samples, hold, fall over the next frame's rise: shifted by hop_length they add up to one.

    The rise is short, and the frame starts with its own hop: a causal encoder knows nothing of hop t before frame t, so
    whatever is new in a hop can only be drawn by its own frame.
    """
    rise = torch.sin(torch.linspace(0, torch.pi / 2, overlap + 2)[1:-1]) ** 2
    return torch.cat([rise, torch.ones(hop_length - overlap), rise.flip(0)])
