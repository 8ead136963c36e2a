"""Reconstruction quality of what a corpus job encodes: it is decoded at once and compared with what went in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer import Codec, Encoded, mix_channels
from tokenizer.metrics import MEL_RATE, MEL_WINDOW, mel_distance, si_snr
from tokenizer.networks import is_causal

_NO_POWER = 1e-12  # mean square of -120 dBFS: silence


@dataclass(frozen=True, slots=True)
class Quality:
    """How close a decoded waveform is to the one that was encoded; None where that cannot be said."""

    si_snr_db: float | None  # -100 to 100, higher is nearer
    mel_distance: float | None  # from 0, lower is nearer; a factor of ten in every band is 1.0


_UNKNOWN = Quality(None, None)


def measure_quality(codec: Codec, waveforms: Sequence[Tensor], encoded: Sequence[Encoded]) -> list[Quality]:
    """Decode what was encoded and compare it with what went in, channels mixed.

    The numbers are those of `tokenizer.metrics`, which are never NaN or infinite. Silence has neither: there is nothing
    to be near to. Less than a window of the mel spectrogram, 43 ms, has no mel distance. What decodes to values that
    are not finite, as reduced precision may, has neither. Sound that decodes to silence has the worst SI-SNR, -100 dB.

    Args:
        codec: on any device.
        waveforms: [C, S] each, at the codec's rate, as they were encoded.
        encoded: of each waveform, with one row; all with equally many levels.

    Returns:
        One for each waveform, in order.

    Raises:
        CodesError: codes that are not of this codec.
    """
    decoded = _decode(codec, encoded)
    return [
        _compare(mix_channels(waveform.cpu(), 1)[0], mix_channels(decoded[index], 1)[0], codec.spec.sample_rate)
        for index, waveform in enumerate(waveforms)
    ]


def _decode(codec: Codec, encoded: Sequence[Encoded]) -> dict[int, Tensor]:
    """Waveforms [C, S] on the CPU by position, each exactly what decoding it alone gives.

    Items share a pass where none can hear the padding after it, as in `Codec.encode_batch`.
    """
    together = codec.streamable and is_causal(codec.spec)
    shared = [index for index, item in enumerate(encoded) if together and item.codes.shape[-1] >= codec.start_frames]
    decoded: dict[int, Tensor] = {}
    if shared:
        longest = max((encoded[index] for index in shared), key=lambda item: item.num_samples)
        num_frames = longest.codes.shape[-1]
        rows = [
            functional.pad(codes, (0, num_frames - codes.shape[-1])) for codes in (encoded[i].codes for i in shared)
        ]
        batch = codec.decode(Encoded(torch.cat(rows), None, longest.num_samples)).cpu()
        decoded = {index: row[:, : encoded[index].num_samples] for index, row in zip(shared, batch, strict=True)}
    for index in set(range(len(encoded))) - decoded.keys():
        decoded[index] = codec.decode(encoded[index])[0].cpu()
    return decoded


def _compare(reference: Tensor, decoded: Tensor, sample_rate: int) -> Quality:
    if float(reference.double().var(correction=0)) <= _NO_POWER or not bool(decoded.isfinite().all()):
        return _UNKNOWN
    long_enough = len(reference) * MEL_RATE >= MEL_WINDOW * sample_rate
    return Quality(
        si_snr_db=si_snr(reference, decoded, sample_rate),
        mel_distance=mel_distance(reference, decoded, sample_rate) if long_enough else None,
    )
