"""The encoder of a corpus job: a codec on its device that turns what readers hand over into rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from lm_head.compression import CodecIdentity, compress_many
from pipelines.corpus.bundle_reader import ReadAudio, error_class
from pipelines.corpus.carried_lm import CarriedLM
from pipelines.corpus.device_feed import on_device
from pipelines.corpus.kept_heap import keep_heap
from pipelines.corpus.stage_seconds import StageSeconds
from pipelines.datasets.audio_facts import AudioFacts, measure_audio
from pipelines.datasets.parts import ErrorRow, TokenRow
from pipelines.datasets.plan import compose_batches
from pipelines.datasets.reconstruction_quality import Quality, measure_quality
from tokenizer import Codec, CodecSpec, Encoded, QuantoneError
from tokenizer.engine import Precision
from tokenizer.networks import is_causal

BatchPulse = Callable[[int, float], None]  # called with the batch's number and its seconds of audio


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """What an encoder makes of audio, the same for all of a job."""

    num_codebooks: int
    batch_seconds: float  # of audio with padding in one pass of the codec
    quality: bool = False  # decode what was encoded, and measure how close it is
    precision: Precision = "exact"  # as in Codec.with_precision


@dataclass(frozen=True, slots=True)
class BundleCount:
    """What the conductor needs to know of a bundle while its rows stay where they are."""

    num_ok: int  # rows
    errors: Counter[str]  # by class
    audio_seconds: float
    stages: StageSeconds = field(default_factory=StageSeconds)  # that it took


@dataclass(frozen=True, slots=True)
class EncodedBundle:
    """Rows of one bundle, and the padding that its batches had."""

    rows: list[TokenRow | ErrorRow] = field(default_factory=list)
    padded_seconds: float = 0.0


def batches_of(items: Sequence[ReadAudio | ErrorRow], spec: CodecSpec, batch_seconds: float) -> list[list[ReadAudio]]:
    """What goes through the codec together; from lengths and ids alone, so a resumed job composes the same batches."""
    audio = sorted((item for item in items if isinstance(item, ReadAudio)), key=lambda item: item.id)
    max_samples = max(1, round(batch_seconds * spec.sample_rate))
    batches = compose_batches([item.waveform.shape[-1] for item in audio], max_samples)
    return [[audio[position] for position in batch] for batch in batches]


class Encoder:
    """A codec on its device; with a language model, each row gets a .qtn stream."""

    def __init__(
        self, codec: Codec, settings: EncodeSettings, *, lm: CarriedLM | None = None, device: str = "cpu"
    ) -> None:
        torch.set_num_threads(1)
        keep_heap()
        torch.backends.cuda.matmul.allow_tf32 = False  # codes must not depend on the worker
        torch.backends.cudnn.allow_tf32 = False
        self._codec, self._device = codec.to(device).with_precision(settings.precision), torch.device(device)
        self._spec, self._identity = codec.spec, CodecIdentity.of(codec)
        self._coder = None if lm is None else lm.coder(device)
        self._quality = settings.quality
        self._bandwidth_kbps = codec.spec.level_kbps * settings.num_codebooks
        self._batch_seconds = settings.batch_seconds

    def ready(self) -> bool:
        """True, once one frame went through: the device works."""
        self._codec.encode(torch.zeros(self._spec.channels, self._spec.hop_length))
        return True

    def encode_bundle(
        self, pulse: BatchPulse | None, *reads: Sequence[ReadAudio | ErrorRow]
    ) -> tuple[BundleCount, EncodedBundle]:
        """Encode what readers handed over, one row for each item."""
        stages = StageSeconds()
        with stages.rest_timed("other"):
            rows, padded_seconds = self._encode_all(reads, stages, pulse)
        ok = [row for row in rows if isinstance(row, TokenRow)]
        errors = Counter(row.error for row in rows if isinstance(row, ErrorRow))
        audio_seconds = sum(row.num_samples for row in ok) / self._spec.sample_rate
        return BundleCount(len(ok), errors, audio_seconds, stages), EncodedBundle(rows, padded_seconds)

    def _encode_all(
        self, reads: Sequence[Sequence[ReadAudio | ErrorRow]], stages: StageSeconds, pulse: BatchPulse | None
    ) -> tuple[list[TokenRow | ErrorRow], float]:
        rows: list[TokenRow | ErrorRow] = [item for read in reads for item in read if isinstance(item, ErrorRow)]
        batches = batches_of([item for read in reads for item in read], self._spec, self._batch_seconds)
        padded_samples = 0
        for number, (batch, waveforms) in enumerate(on_device(batches, self._device)):
            num_samples = self._count_samples([waveform.shape[-1] for waveform in waveforms])
            if pulse is not None:
                pulse(number, num_samples / self._spec.sample_rate)
            padded_samples += num_samples
            rows += self._encode(batch, waveforms, stages)
        return rows, padded_samples / self._spec.sample_rate

    def _count_samples(self, lengths: Sequence[int]) -> int:
        # Only causal codecs fill a batch with silence: the others would hear it, see `Codec.encode_batch`.
        return len(lengths) * max(lengths) if is_causal(self._spec) else sum(lengths)

    def _encode(
        self, items: Sequence[ReadAudio], waveforms: Sequence[torch.Tensor], stages: StageSeconds
    ) -> list[TokenRow | ErrorRow]:
        try:
            with stages.timed("encoding"):
                encoded = self._codec.encode_batch(waveforms, bandwidth_kbps=self._bandwidth_kbps)
            with stages.timed("measuring"):  # while a GPU still computes
                facts = [measure_audio(item.waveform, self._spec.sample_rate) for item in items]
            with stages.timed("encoding"):
                codes = [item.codes[0].cpu().numpy().astype(np.uint16) for item in encoded]
            with stages.timed("compressing"):
                streams = self._compress(encoded)
            with stages.timed("measuring"):
                qualities = self._measure(waveforms, encoded)
        except (QuantoneError, MemoryError, torch.OutOfMemoryError) as error:
            if len(items) > 1:  # alone, the good ones get through and the memory suffices
                alone = zip(items, waveforms, strict=True)
                return [row for item, waveform in alone for row in self._encode([item], [waveform], stages)]
            return [ErrorRow(items[0].input_id, items[0].uri, error_class(error), str(error) or repr(error))]
        return [
            _row(item, own, codes=codes[index], facts=facts[index], qtn=streams[index], quality=qualities[index])
            for index, (item, own) in enumerate(zip(items, encoded, strict=True))
        ]

    def _compress(self, encoded: Sequence[Encoded]) -> Sequence[bytes | None]:
        if self._coder is None:
            return [None] * len(encoded)
        return compress_many(encoded, self._identity, self._coder)

    def _measure(self, waveforms: Sequence[torch.Tensor], encoded: Sequence[Encoded]) -> Sequence[Quality | None]:
        if not self._quality:
            return [None] * len(encoded)
        return measure_quality(self._codec, waveforms, encoded)


def _row(
    item: ReadAudio,
    encoded: Encoded,
    *,
    codes: npt.NDArray[np.uint16],
    facts: AudioFacts,
    qtn: bytes | None,
    quality: Quality | None,
) -> TokenRow:
    return TokenRow(
        id=item.id,
        uri=item.uri,
        input_id=item.input_id,
        start_sample=item.start_sample,
        num_samples=encoded.num_samples,
        source_sample_rate=item.source_sample_rate,
        source_channels=item.source_channels,
        facts=facts,
        codes=codes,
        scales=None if encoded.scales is None else encoded.scales[0].cpu().numpy(),
        qtn=qtn,
        quality=quality,
    )
