"""What a codec accepts: waveforms and codes are checked here, once, and trusted afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizer.errors import AudioError, CodesError
from tokenizer.spec import CodecSpec


def checked_waveform(
    waveform: Tensor, spec: CodecSpec, device: torch.device, *, channels: int | None = None, allow_empty: bool = False
) -> Tensor:
    """A waveform as [B, C, S] float32 on the device.

    Args:
        waveform: [C, S] or [B, C, S].
        spec: the codec's.
        device: where the codec is.
        channels: C; None takes any number that is not larger than S.
        allow_empty: whether S may be 0.

    Raises:
        AudioError: wrong shape, channel count or type, no samples, or samples that are NaN or infinite.
    """
    if waveform.dim() == 2:
        waveform = waveform.unsqueeze(0)
    shape = list(waveform.shape)
    if waveform.dim() != 3:
        raise AudioError(f"waveform must be [{spec.channels}, S] or [B, {spec.channels}, S], not {shape}")
    if channels is not None and shape[1] != channels:
        raise AudioError(
            f"waveform must be [{channels}, S] or [B, {channels}, S], not {shape}: "
            "pass sample_rate, and other channel counts and rates are converted"
        )
    if channels is None and not 1 <= shape[1] <= max(2, shape[2]):  # [S, C] would be mixed to one sample
        raise AudioError(f"waveform must be [channels, samples], not {shape}: is it transposed?")
    if not waveform.is_floating_point():
        raise AudioError(f"waveform must be floats in [-1, 1], not {waveform.dtype}")
    if shape[-1] == 0 and not allow_empty:
        raise AudioError("waveform has no samples")
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError("waveform has samples that are NaN or infinite")
    return waveform.to(device, torch.float32)


def checked_block(
    block: Tensor, spec: CodecSpec, device: torch.device, *, channels: int | None, allow_empty: bool = False
) -> Tensor:
    """One waveform as [C, S] float32 on the device: see `checked_waveform`.

    Raises:
        AudioError: also for batches.
    """
    if block.dim() != 2:
        raise AudioError(f"waveform must be [channels, samples], not {list(block.shape)}")
    return checked_waveform(block, spec, device, channels=channels, allow_empty=allow_empty)[0]


def checked_codes(codes: Tensor, spec: CodecSpec, device: torch.device) -> Tensor:
    """Codes as [B, K, T] int64 on the device.

    Raises:
        CodesError: wrong shape, type, number of levels or range.
    """
    if codes.dim() != 3 or not 1 <= codes.shape[1] <= spec.num_codebooks:
        raise CodesError(f"codes must be [B, 1 to {spec.num_codebooks}, T], not {list(codes.shape)}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise CodesError(f"codes must be integers, not {codes.dtype}")
    codes = codes.to(torch.int64)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= spec.codebook_size):
        raise CodesError(
            f"codes range from {int(codes.min())} to {int(codes.max())}, allowed is 0 to {spec.codebook_size - 1}"
        )
    return codes.to(device)


def checked_scales(scales: Tensor | None, codes: Tensor, spec: CodecSpec, num_samples: int) -> Tensor | None:
    """Loudness of every segment as [B, N] float32 beside its codes, or None for codecs that do not normalise.

    Raises:
        CodesError: scales are missing or too many, of the wrong shape, or not positive numbers.
    """
    if scales is None or not spec.has_scales:
        if spec.has_scales != (scales is not None):
            raise CodesError(f"this codec {'needs' if spec.has_scales else 'has no'} scales beside its codes")
        return None
    shape = [codes.shape[0], spec.num_segments(num_samples)]
    if list(scales.shape) != shape:
        raise CodesError(f"scales must be {shape} for {num_samples} samples, not {list(scales.shape)}")
    if not bool(torch.isfinite(scales).all()) or not bool((scales > 0).all()):
        raise CodesError("scales must be positive and finite")
    return scales.to(codes.device, torch.float32)
