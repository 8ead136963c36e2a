"""What a codec is: its networks and codebooks, what computes them, and by what it is known."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any, Self

import torch
from torch import nn

from tokenizer.engine import PRECISIONS, CudaEngine, Engine, Precision, build_engine
from tokenizer.networks import Networks, build_networks, is_streamable, lookahead
from tokenizer.seanet import SeanetEncoder
from tokenizer.spec import CodecSpec


class CodecNetworks(nn.Module):
    """Encoder, decoder and quantizer of one codec, and all that can be said of them before anything is coded."""

    def __init__(self, spec: CodecSpec, *, name: str = "unnamed") -> None:
        super().__init__()
        self.spec, self.name = spec, name
        if spec.family != "transformers":  # those bring their networks along
            self.encoder, self.decoder, self.quantizer = build_networks(spec)
        self._sha256: str | None = None
        self._precision: Precision = "plain"
        self._engine: Engine | CudaEngine | None = None
        self._engine_device: torch.device | None = None

    def with_precision(self, precision: Precision) -> Self:
        """The same codec, computed another way; it shares its weights with this one, which must not change any more.

        Args:
            precision: "plain" for the torch modules; "exact" for compiled kernels in float32: the same codes, but for
                near-ties; "fast" in bfloat16, where the processor multiplies those faster, and on a CUDA device: most
                of the same codes. On a device the other two are torch in float32.

        Returns:
            A codec that computes so where it can, and in torch where not: see `computed_by`.

        Raises:
            ValueError: no such precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        twin = copy.copy(self)
        twin._precision, twin._engine = precision, None  # noqa: SLF001 - of the same class
        return twin

    @property
    def precision(self) -> Precision:
        """How codes and waveforms are computed."""
        return self._precision

    @property
    def computed_by(self) -> str:
        """What the networks run on: "torch", or the instruction set or device and the numbers of the engine."""
        engine = self._engine_in_use()
        return "torch" if engine is None else engine.name

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine: it is made again where the codec arrives, for the processor there."""
        return {**self.__dict__, "_engine": None}

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
        return sum(tensor.numel() for tensor in self.state_dict().values())

    @property
    def streamable(self) -> bool:
        """Whether chunks can be encoded and decoded one by one, with the state in the caller's hands."""
        return self.spec.segment is None and is_streamable(self.spec)

    @property
    def algorithmic_latency_s(self) -> float:
        """Seconds from the start of a frame until all of it can be decoded: 0.0133 for EnCodec at 24 kHz.

        It leaves out the start of a stream, where codecs with mirrored padding hold back their first `start_frames`
        frames. The length of a segment for codecs that have segments; infinite for those that take whole files.
        """
        spec = self.spec
        if spec.segment is not None:
            return spec.segment.length / spec.sample_rate
        return (spec.hop_length + lookahead(spec)) / spec.sample_rate if self.streamable else float("inf")

    @property
    def start_frames(self) -> int:
        """Frames that a stream holds back at its start, until every layer can mirror it; 0 without mirrors."""
        return self.encoder.start_frames if isinstance(self.encoder, SeanetEncoder) else 0

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _networks(self) -> Networks:
        engine = self._engine_in_use()
        return Networks(self.encoder, self.decoder, self.quantizer) if engine is None else engine.networks

    def _engine_in_use(self) -> Engine | CudaEngine | None:
        if self._precision == "plain" or self.spec.family == "transformers":
            return None
        if self._engine is None or self._engine_device != self._device:
            networks = Networks(self.encoder, self.decoder, self.quantizer)
            self._engine, self._engine_device = build_engine(networks, self.spec, self._precision), self._device
        return self._engine

    def _streams(self) -> Networks:
        if not self.streamable:
            what = "codes a file in segments" if self.spec.segment is not None else "takes whole files"
            raise ValueError(f"codec {self.name!r} {what}: it has no streams, use encode and decode")
        return self._networks
