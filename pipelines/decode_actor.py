"""DecodeActor: a Ray actor that holds one codec and turns codes back into waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from tokenizer import Codec, CodesError, Encoded, QuantoneError, load_codec


class CodecDecoder:
    """What a DecodeActor is inside: a codec on its device, a check at the door, plain calls."""

    def __init__(self, codec: Codec | str, *, sha256: str | None = None, device: str = "cpu") -> None:
        """Take the codec, or load it.

        Args:
            codec: the codec (a reference of one in Ray's object store reaches machines that lack its files), or a name
                or directory that `load_codec` finds on the actor's machine.
            sha256: the identity that this codec must have, None to take any.
            device: where to decode, as torch names it.

        Raises:
            CheckpointError: no such codec.
            QuantoneError: the codec found on this machine has another identity.
        """
        self.codec = (load_codec(codec) if isinstance(codec, str) else codec).to(device)
        if sha256 is not None and self.codec.sha256 != sha256:
            name = codec if isinstance(codec, str) else codec.name
            raise QuantoneError(f"codec {name!r} on this machine has sha256 {self.codec.sha256}, expected {sha256}")

    def ready(self) -> bool:
        """True, once the codec is loaded: what a caller waits for before it counts time."""
        return True

    @torch.inference_mode()
    def decode(
        self, codes: NDArray[np.integer], num_samples: int, scales: NDArray[np.floating] | None = None
    ) -> NDArray[np.float32]:
        """Decode one utterance.

        Args:
            codes: [K, T] any integer type, K from 1 to the codec's number of codebooks.
            num_samples: length of the result in samples; T frames must be just enough for it.
            scales: [N] of any float type, one per segment; None for codecs without.

        Returns:
            [C, S] float32 at the codec's sample rate, S = num_samples.

        Raises:
            CodesError: the codes or scales do not fit the codec, or each other.
        """
        if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
            what = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, np.ndarray) else type(codes).__name__
            raise CodesError(f"codes must be an array of integers [K, T], not {what}")
        if num_samples < 1:
            raise CodesError(f"num_samples must be at least 1, not {num_samples}")
        # [1, K, T] and [1, N]: the codec checks levels, frames and range, and how many scales it needs.
        batch = torch.from_numpy(codes.astype(np.int64))[None]
        loudness = None if scales is None else _checked_scales(scales)
        waveform = self.codec.decode(Encoded(codes=batch, scales=loudness, num_samples=int(num_samples)))
        return np.asarray(waveform[0].float().cpu().numpy())

    def decode_batch(
        self,
        codes: Sequence[NDArray[np.integer]],
        num_samples: Sequence[int],
        scales: Sequence[NDArray[np.floating] | None] | None = None,
    ) -> list[NDArray[np.float32] | CodesError]:
        """Decode several utterances of any lengths, each exactly as alone; bad codes give their error in place.

        Args:
            codes: one [K, T_i] per utterance.
            num_samples: one length per utterance.
            scales: one [N_i] per utterance; None for codecs without.
        """
        results: list[NDArray[np.float32] | CodesError] = []
        for one, length, loudness in zip(codes, num_samples, scales or [None] * len(codes), strict=True):
            try:
                results.append(self.decode(one, length, loudness))
            except CodesError as error:
                results.append(error)
        return results


def _checked_scales(scales: NDArray[np.floating]) -> torch.Tensor:
    if not isinstance(scales, np.ndarray) or scales.ndim != 1 or scales.dtype.kind != "f":
        what = f"{scales.dtype} {list(scales.shape)}" if isinstance(scales, np.ndarray) else type(scales).__name__
        raise CodesError(f"scales must be an array of floats [N], not {what}")
    return torch.from_numpy(scales.astype(np.float64)).float()[None]


DecodeActor = ray.remote(CodecDecoder)
