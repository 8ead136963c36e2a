"""A codec in training form: its networks with weight norm, and codebooks that are learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizer.codec import Codec
from tokenizer.convolution import apply_weight_norm, fold_weight_norm
from tokenizer.network_config import SeanetConfig
from tokenizer.networks import build_networks
from tokenizer.quantizer_training import QuantizerTraining, TrainableQuantizer
from tokenizer.segments import normalize
from tokenizer.spec import CodecSpec


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a batch became on its way through the codec."""

    decoded: Tensor  # [B, C, S] float32
    codes: Tensor  # [B, K, T] int64, K levels in use
    commitment: Tensor  # scalar


class TrainableCodec(nn.Module):
    """Encoder, quantizer and decoder as they are while they learn.

    Args:
        spec: of the codec.
        settings: how the codebooks are learned.
        start: go on from the weights of this codec, which must have the same spec; None starts afresh.

    Raises:
        ValueError: the networks of this family live elsewhere, or the spec of `start` differs.
    """

    def __init__(self, spec: CodecSpec, settings: QuantizerTraining, start: Codec | None = None) -> None:
        super().__init__()
        if start is not None and start.spec != spec:
            raise ValueError(f"codec {start.name!r} has another spec than the recipe: only the same can be trained on")
        self.spec = spec
        self.encoder, self.decoder, _ = build_networks(spec)
        self.quantizer = TrainableQuantizer(spec, settings)
        if start is not None:
            self.encoder.load_state_dict(start.encoder.state_dict())
            self.decoder.load_state_dict(start.decoder.state_dict())
            self.quantizer.start_from(start.quantizer)
        if not (isinstance(spec.network, SeanetConfig) and spec.network.norm == "time_group_norm"):
            apply_weight_norm(self.encoder)
            apply_weight_norm(self.decoder)

    def forward(
        self, waveform: Tensor, num_codebooks: int | None = None, *, autocast: torch.dtype | None = None
    ) -> Reconstruction:
        """Encode, quantize, decode.

        Args:
            waveform: [B, C, S] float32, S a multiple of hop_length; for codecs with segments each row is one.
            num_codebooks: levels in use; None for all.
            autocast: precision of the networks. The quantizer stays in float32.
        """
        scales = None
        if self.spec.segment is not None and self.spec.segment.normalize:
            waveform, scales = normalize(waveform)
        kind, dtype, reduced = waveform.device.type, autocast or torch.bfloat16, autocast is not None
        with torch.autocast(kind, dtype, enabled=reduced):
            latents = self.encoder(waveform).float()  # [B, D, T]
        quantized = self.quantizer(latents, num_codebooks or self.spec.num_codebooks)
        with torch.autocast(kind, dtype, enabled=reduced):
            decoded = self.decoder(quantized.latents).float()
        if scales is not None:
            decoded = decoded * scales[:, None, None]
        return Reconstruction(decoded, quantized.codes, quantized.commitment)

    def to_codec(self, name: str) -> Codec:
        """The inference form: the same networks with weight norm folded in, and the learned codebooks."""
        codec = Codec(self.spec, name=name)
        for target, learned in ((codec.encoder, self.encoder), (codec.decoder, self.decoder)):
            if any("parametrizations" in key for key in learned.state_dict()):
                apply_weight_norm(target)
            target.load_state_dict(learned.state_dict())
            fold_weight_norm(target)
        self.quantizer.copy_into(codec.quantizer)
        return codec.eval()
