"""The codec: waveform to codes and back, whole files or step by step with the state in the caller's hands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tokenizer.errors import AudioError, CodesError
from tokenizer.patch import PatchDecoder, PatchEncoder
from tokenizer.quantizer import ResidualQuantizer
from tokenizer.resample import resample
from tokenizer.seanet import SeanetDecoder, SeanetEncoder
from tokenizer.spec import CodecSpec, SeanetConfig

STEP_SECONDS = 20  # longer audio goes through the networks in steps of this length: memory stays constant


@dataclass(frozen=True, slots=True)
class Encoded:
    """Codes with what decoding needs beside them."""

    codes: Tensor  # [B, K, T] int64 in [0, V)
    scales: Tensor | None  # loudness per segment; None for codecs that do not normalise
    num_samples: int  # at the codec's rate, before the last frame was filled with silence


@dataclass(frozen=True, slots=True)
class EncodeState:
    """Where a stream being encoded stands. Nothing of it lives on the codec."""

    pending: Tensor  # [B, C, less than a hop] samples that do not fill a frame yet
    network: Any  # nested tuples of tensors, batch dimension first
    num_codebooks: int


def build_networks(spec: CodecSpec) -> tuple[SeanetEncoder | PatchEncoder, SeanetDecoder | PatchDecoder]:
    """Encoder and decoder of the spec's family, freshly initialised."""
    if spec.family == "seanet":
        return SeanetEncoder(spec), SeanetDecoder(spec)
    return PatchEncoder(spec), PatchDecoder(spec)


class Codec(nn.Module):
    """Networks, codebooks and constants of one trained codec. Build it with `load_codec`.

    Rule for the tail: a last, partial frame is filled with silence, and decoding cuts it off again. Both families are
    causal, so codes depend on nothing that comes after their frame, on no neighbour in the batch, and on no chunking.
    """

    def __init__(self, spec: CodecSpec, *, name: str = "unnamed") -> None:
        super().__init__()
        self.spec, self.name = spec, name
        self.encoder, self.decoder = build_networks(spec)
        self.quantizer = ResidualQuantizer(spec.num_codebooks, spec.codebook_size, spec.latent_dim)
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Identity of spec and weights, however they are stored: equal codecs give equal codes."""
        if self._sha256 is None:
            digest = hashlib.sha256(json.dumps(self.spec.to_dict(), sort_keys=True).encode())
            for key, value in sorted(self.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    def card(self) -> dict[str, Any]:
        """What a dataset keeps about the codec that made it: name, sha256 and spec, as JSON types."""
        return {"name": self.name, "sha256": self.sha256, "spec": self.spec.to_dict()}

    @property
    def num_parameters(self) -> int:
        """Weights of both networks and all codebooks."""
        return sum(p.numel() for p in self.parameters()) + self.quantizer.codebooks.numel()

    @property
    def streamable(self) -> bool:
        """Whether stepwise encoding is possible: reflect padding would need samples from the future."""
        return not (isinstance(self.spec.network, SeanetConfig) and self.spec.network.pad_mode == "reflect")

    @torch.inference_mode()
    def encode(
        self, waveform: Tensor, *, sample_rate: int | None = None, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Waveform to codes.

        Args:
            waveform: [C, S] or [B, C, S] float in [-1, 1].
            sample_rate: Hz of `waveform`; None says that it is the codec's. Another rate is resampled.
            bandwidth_kbps: None for all codebooks.

        Returns:
            Encoded with codes [B, K, T], T = ceil(S / hop_length).

        Raises:
            AudioError: wrong shape or channel count, no samples, samples that are not finite.
            ValueError: a bandwidth that the codec does not have.
        """
        num_codebooks = self.spec.num_codebooks_at(bandwidth_kbps)
        waveform = self._checked(waveform)
        if sample_rate is not None and sample_rate != self.spec.sample_rate:
            waveform = torch.stack([resample(item, sample_rate, self.spec.sample_rate) for item in waveform])
        codes = self._encode_padded(waveform, num_codebooks)
        return Encoded(codes, None, waveform.shape[-1])

    @torch.inference_mode()
    def encode_batch(self, waveforms: Sequence[Tensor], *, bandwidth_kbps: float | None = None) -> list[Tensor]:
        """Waveforms of different lengths in one pass, each with exactly the codes that it gets alone.

        Args:
            waveforms: [C, S_i] each, at the codec's rate.
            bandwidth_kbps: None for all codebooks.

        Returns:
            [K, T_i] int64 each, T_i = ceil(S_i / hop_length).
        """
        num_codebooks = self.spec.num_codebooks_at(bandwidth_kbps)
        items = [self._checked(waveform)[0] for waveform in waveforms]
        if not self.streamable:  # mirrored padding at the end depends on the length: no common batch
            return [self._encode_padded(item.unsqueeze(0), num_codebooks)[0] for item in items]
        if not items:
            return []
        longest = max(item.shape[-1] for item in items)
        batch = torch.stack([F.pad(item, (0, longest - item.shape[-1])) for item in items])
        codes = self._encode_padded(batch, num_codebooks)
        return [row[:, : self.spec.num_frames(item.shape[-1])] for row, item in zip(codes, items, strict=True)]

    @torch.inference_mode()
    def decode(self, encoded: Encoded, *, bandwidth_kbps: float | None = None) -> Tensor:
        """Codes to waveform [B, C, num_samples].

        Args:
            encoded: what `encode` gave, or codes from anywhere with their number of samples.
            bandwidth_kbps: at most that of the codes; None uses all levels they have.

        Raises:
            CodesError: wrong shape, type, range, number of levels or number of samples.
            ValueError: a bandwidth that the codec does not have.
        """
        codes = self.check_codes(encoded.codes)
        if bandwidth_kbps is not None:
            num_codebooks = self.spec.num_codebooks_at(bandwidth_kbps)
            if num_codebooks > codes.shape[1]:
                have = codes.shape[1]
                raise CodesError(f"{bandwidth_kbps:g} kbps needs {num_codebooks} levels, the codes have {have}")
            codes = codes[:, :num_codebooks]
        if self.spec.num_frames(encoded.num_samples) != codes.shape[-1]:
            raise CodesError(
                f"{codes.shape[-1]} frames of {self.spec.hop_length} samples cannot hold {encoded.num_samples} samples"
            )
        if not self.streamable:
            whole: Tensor = self.decoder(self.quantizer.decode(codes))
            return whole[..., : encoded.num_samples]
        state = self.decode_state(codes.shape[0])
        pieces = []
        for chunk in torch.split(codes, self._frames_per_step(), dim=-1):
            piece, state = self._decode_frames(chunk, state)
            pieces.append(piece)
        if not pieces:
            return torch.zeros(codes.shape[0], self.spec.channels, 0, device=self._device)
        return torch.cat(pieces, dim=-1)[..., : encoded.num_samples]

    def encode_state(self, batch_size: int = 1, *, bandwidth_kbps: float | None = None) -> EncodeState:
        """A fresh stream, or `batch_size` streams fed side by side.

        Raises:
            ValueError: the codec pads by reflection, or lacks the bandwidth.
        """
        num_codebooks = self.spec.num_codebooks_at(bandwidth_kbps)
        pending = torch.zeros(batch_size, self.spec.channels, 0, device=self._device)
        return EncodeState(pending, self.encoder.initial_state(batch_size), num_codebooks)

    @torch.inference_mode()
    def encode_step(self, waveform: Tensor, state: EncodeState) -> tuple[Tensor, EncodeState]:
        """The next chunk of a stream, of any length.

        Args:
            waveform: [B, C, S] at the codec's rate.
            state: from `encode_state` or the step before.

        Returns:
            The codes [B, K, T] of the frames that became complete, and the state for the next chunk.
        """
        samples = torch.cat([state.pending, self._checked(waveform, allow_empty=True)], dim=-1)
        whole = samples.shape[-1] // self.spec.hop_length * self.spec.hop_length
        latents, network = self.encoder.step(samples[..., :whole], state.network)
        codes = self.quantizer.encode(latents, state.num_codebooks)
        return codes, EncodeState(samples[..., whole:], network, state.num_codebooks)

    @torch.inference_mode()
    def encode_flush(self, state: EncodeState) -> tuple[Tensor, EncodeState]:
        """End a stream: the partial frame that waits, filled with silence. Returns 0 or 1 frame."""
        missing = -state.pending.shape[-1] % self.spec.hop_length
        return self.encode_step(state.pending.new_zeros(*state.pending.shape[:2], missing), state)

    def decode_state(self, batch_size: int = 1) -> Any:
        """A fresh stream of codes, or `batch_size` of them side by side."""
        return self.decoder.initial_state(batch_size)

    @torch.inference_mode()
    def decode_step(self, codes: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next frames of a stream [B, K, T] to their samples [B, C, T * hop_length]."""
        return self._decode_frames(self.check_codes(codes), state)

    def check_codes(self, codes: Tensor) -> Tensor:
        """Codes on the codec's device as int64 [B, K, T], or an error that says what is wrong with them."""
        spec = self.spec
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= spec.num_codebooks:
            raise CodesError(f"codes must be [B, 1 to {spec.num_codebooks}, T], not {list(codes.shape)}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise CodesError(f"codes must be integers, not {codes.dtype}")
        codes = codes.to(torch.int64)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= spec.codebook_size):
            raise CodesError(
                f"codes range from {int(codes.min())} to {int(codes.max())}, allowed is 0 to {spec.codebook_size - 1}"
            )
        return codes.to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.quantizer.codebooks.device

    def _frames_per_step(self) -> int:
        return max(1, STEP_SECONDS * self.spec.sample_rate // self.spec.hop_length)

    def _checked(self, waveform: Tensor, *, allow_empty: bool = False) -> Tensor:
        """[B, C, S] float32 on the codec's device."""
        if waveform.dim() == 2:
            waveform = waveform.unsqueeze(0)
        if waveform.dim() != 3 or waveform.shape[1] != self.spec.channels:
            raise AudioError(f"waveform must be [{self.spec.channels}, S] or [B, C, S], not {list(waveform.shape)}")
        if not waveform.is_floating_point():
            raise AudioError(f"waveform must be floats in [-1, 1], not {waveform.dtype}")
        if waveform.shape[-1] == 0 and not allow_empty:
            raise AudioError("waveform has no samples")
        if not bool(torch.isfinite(waveform).all()):
            raise AudioError("waveform has samples that are NaN or infinite")
        return waveform.to(self._device, torch.float32)

    def _encode_padded(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        """[B, C, S] to [B, K, ceil(S / hop_length)]."""
        hop = self.spec.hop_length
        if not self.streamable:
            return self.quantizer.encode(self.encoder(waveform), num_codebooks)
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % hop))
        network = self.encoder.initial_state(waveform.shape[0])
        pieces = []
        for chunk in torch.split(waveform, self._frames_per_step() * hop, dim=-1):
            latents, network = self.encoder.step(chunk, network)
            pieces.append(self.quantizer.encode(latents, num_codebooks))
        return torch.cat(pieces, dim=-1)

    def _decode_frames(self, codes: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.decoder.step(self.quantizer.decode(codes), state)
