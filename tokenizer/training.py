"""One training step of a codec: networks and quantizer in training form, and the objective over them.

Plain torch: data, logging and checkpoints around it live in `pipelines`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from tokenizer.codec import Codec
from tokenizer.convolution import apply_weight_norm, fold_weight_norm
from tokenizer.losses import MelLoss, time_loss
from tokenizer.networks import build_networks
from tokenizer.spec import CodecSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weights of the losses, and the scales of the mel loss."""

    time_weight: float = 10.0  # high: without an adversary the phase is learned from this term alone
    mel_weight: float = 1.0
    commitment_weight: float = 0.25
    mel_windows: tuple[int, ...] = (128, 512, 2048)
    mel_bins: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerTraining:
    """How the codebooks are learned. Source: SoundStream, 3.3, and EnCodec, 3.2."""

    decay: float = 0.99
    kmeans_iterations: int = 10
    dead_code_threshold: float = 2.0
    dropout_multiple: int = 2  # levels in use are drawn from the multiples of this, once per batch


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one batch gave."""

    loss: Tensor  # scalar, to be differentiated
    parts: dict[str, float]  # each loss before its weight
    codes: Tensor  # [B, K, T] int64, -1 at levels that were dropped


class TrainableCodec(nn.Module):
    """A codec in training form: `ResidualVQ` learns the codebooks, the networks learn around it."""

    def __init__(self, spec: CodecSpec, quantizer: QuantizerTraining, objective: Objective) -> None:
        super().__init__()
        if spec.family not in ("seanet", "patch"):
            raise ValueError(f"codecs of family {spec.family!r} cannot be trained here, only seanet and patch")
        self.spec, self.objective = spec, objective
        self.encoder, self.decoder, _ = build_networks(spec)
        apply_weight_norm(self.encoder)
        apply_weight_norm(self.decoder)
        self.quantizer = ResidualVQ(
            dim=spec.latent_dim,
            codebook_size=spec.codebook_size,
            num_quantizers=spec.num_codebooks,
            decay=quantizer.decay,
            kmeans_init=True,
            kmeans_iters=quantizer.kmeans_iterations,
            threshold_ema_dead_code=quantizer.dead_code_threshold,
            commitment_weight=1.0,
            quantize_dropout=spec.num_codebooks > quantizer.dropout_multiple,
            quantize_dropout_cutoff_index=quantizer.dropout_multiple - 1,
            quantize_dropout_multiple_of=quantizer.dropout_multiple,
            rotation_trick=False,
        )
        self.mel_loss = MelLoss(spec.sample_rate, objective.mel_windows, objective.mel_bins)

    def forward(self, waveform: Tensor, *, autocast: torch.dtype | None = None) -> StepResult:
        """The objective on one batch.

        Args:
            waveform: [B, C, S] float32, S a multiple of hop_length.
            autocast: precision of the networks; the quantizer and the losses stay float32.

        Raises:
            FloatingPointError: a loss is not finite; the message names it.
        """
        device = waveform.device.type
        with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            latents = self.encoder(waveform).float()  # [B, D, T]
        quantized, codes, commitments = self.quantizer(latents.transpose(1, 2))
        with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            decoded = self.decoder(quantized.transpose(1, 2)).float()
        weights = self.objective
        parts = {
            "time": time_loss(waveform, decoded),
            "mel": self.mel_loss(waveform, decoded),
            "commitment": commitments.mean(),
        }
        for name, value in parts.items():
            if not math.isfinite(value.item()):
                raise FloatingPointError(f"the {name} loss is {value.item()}")
        loss = (
            weights.time_weight * parts["time"]
            + weights.mel_weight * parts["mel"]
            + weights.commitment_weight * parts["commitment"]
        )
        return StepResult(loss, {name: value.item() for name, value in parts.items()}, codes.transpose(1, 2))

    def to_codec(self, name: str) -> Codec:
        """The inference form: same networks, the learned codebooks as one plain table."""
        codec = Codec(self.spec, name=name)
        for target, learned in ((codec.encoder, self.encoder), (codec.decoder, self.decoder)):
            apply_weight_norm(target)
            target.load_state_dict(learned.state_dict())
            fold_weight_norm(target)
        tables = [layer._codebook.embed[0] for layer in self.quantizer.layers]  # noqa: SLF001
        codec.quantizer.set_codebooks(torch.stack(tables))
        return codec.eval()
