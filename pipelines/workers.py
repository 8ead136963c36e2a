"""What runs on the workers of a corpus job: reading files, encoding them, and committing a unit.

Plain functions and one plain class; the conductor turns them into Ray tasks and actors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lm_head.compression import CodecIdentity, compress_many
from pipelines import storage
from pipelines.carried_lm import CarriedLM
from pipelines.parts import ErrorRow, PartSize, TokenRow, encode_errors, encode_part, measure_part, part_name
from pipelines.plan import compose_batches
from pipelines.sources import SourceFile
from tokenizer import Codec, CodecSpec, Encoded, QuantoneError, mix_channels, read_audio, resample
from tokenizer.networks import is_causal

SILENCE_DBFS = -120.0  # written for digital silence, which has no level


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file as it comes from a reader: at the codec's rate and channel count."""

    id: str
    uri: str
    source_sample_rate: int
    source_channels: int
    waveform: npt.NDArray[np.float32]  # [C, S]


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a committed unit adds to the totals."""

    num_ok: int
    num_errors: int
    audio_seconds: float
    size: PartSize
    padded_seconds: float  # of audio that went through the codec, silence at batch ends included


@dataclass(frozen=True, slots=True)
class BundleCount:
    """What the conductor needs to know of a bundle while its rows stay where they are."""

    num_ok: int
    num_errors: int
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class EncodedBundle:
    """Rows of one bundle, and the padding that its batches had."""

    rows: list[TokenRow | ErrorRow]
    padded_seconds: float


def read_bundle(files: Sequence[SourceFile], spec: CodecSpec) -> tuple[int, list[ReadFile | ErrorRow]]:
    """Read, check, mix down and resample files; what cannot be read becomes an error row.

    Returns:
        How many there are, for who only needs to know that it is done, and one item a file.
    """
    torch.set_num_threads(1)
    items = [_read(file, spec) for file in files]
    return len(items), items


def _read(file: SourceFile, spec: CodecSpec) -> ReadFile | ErrorRow:
    try:
        with storage.open_input(file.uri, file.size) as stream:
            waveform, sample_rate = read_audio(stream)
        channels = waveform.shape[0]
        waveform = resample(mix_channels(waveform, spec.channels), sample_rate, spec.sample_rate)
        return ReadFile(file.id, file.uri, sample_rate, channels, waveform.numpy())
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises belongs to its file, not to the job
        return ErrorRow(file.id, file.uri, type(error).__name__, str(error) or repr(error))


class Encoder:
    """A codec on its device that turns read files into rows; with a language model, each with a .qtn stream."""

    def __init__(
        self,
        codec: Codec,
        num_codebooks: int,
        batch_seconds: float,
        *,
        lm: CarriedLM | None = None,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = False  # codes must not depend on the worker
        torch.backends.cudnn.allow_tf32 = False
        self._codec = codec.to(device)
        self._spec, self._identity = codec.spec, CodecIdentity.of(codec)
        self._coder = None if lm is None else lm.coder(device)
        self._bandwidth_kbps = codec.spec.level_kbps * num_codebooks
        self._max_samples = max(1, round(batch_seconds * codec.spec.sample_rate))

    def ready(self) -> bool:
        """True, once one frame went through: the device works."""
        self._codec.encode(torch.zeros(self._spec.channels, self._spec.hop_length))
        return True

    def encode_bundle(self, *reads: Sequence[ReadFile | ErrorRow]) -> tuple[BundleCount, EncodedBundle]:
        """Encode what readers handed over, one row for each item.

        Batches follow from lengths and ids alone, so a resumed job composes the same ones.
        """
        rows: list[TokenRow | ErrorRow] = [item for read in reads for item in read if isinstance(item, ErrorRow)]
        files = sorted(
            (item for read in reads for item in read if isinstance(item, ReadFile)), key=lambda item: item.id
        )
        padded_samples = 0
        for batch in compose_batches([file.waveform.shape[-1] for file in files], self._max_samples):
            members = [files[position] for position in batch]
            padded_samples += self._count_samples([file.waveform.shape[-1] for file in members])
            rows += self._encode(members)
        ok = [row for row in rows if isinstance(row, TokenRow)]
        seconds = sum(row.num_samples for row in ok) / self._spec.sample_rate
        count = BundleCount(len(ok), len(rows) - len(ok), seconds)
        return count, EncodedBundle(rows, padded_samples / self._spec.sample_rate)

    def _count_samples(self, lengths: Sequence[int]) -> int:
        # Only causal codecs fill a batch with silence: the others would hear it, see `Codec.encode_batch`.
        return len(lengths) * max(lengths) if is_causal(self._spec) else sum(lengths)

    def _encode(self, files: Sequence[ReadFile]) -> list[TokenRow | ErrorRow]:
        # Copied: arrays from the object store are read-only, which torch warns about.
        waveforms = [torch.from_numpy(file.waveform.copy()) for file in files]
        try:
            encoded = self._codec.encode_batch(waveforms, bandwidth_kbps=self._bandwidth_kbps)
            streams = self._compress(encoded)
        except (QuantoneError, MemoryError, torch.OutOfMemoryError) as error:
            if len(files) > 1:  # alone, the good ones get through and the memory suffices
                return [row for file in files for row in self._encode([file])]
            return [ErrorRow(files[0].id, files[0].uri, type(error).__name__, str(error) or repr(error))]
        return [_token_row(*columns) for columns in zip(files, encoded, streams, strict=True)]

    def _compress(self, encoded: Sequence[Encoded]) -> Sequence[bytes | None]:
        if self._coder is None:
            return [None] * len(encoded)
        return compress_many(encoded, self._identity, self._coder)


def _token_row(item: ReadFile, encoded: Encoded, qtn: bytes | None) -> TokenRow:
    power = float(np.mean(np.square(item.waveform, dtype=np.float64)))
    return TokenRow(
        id=item.id,
        uri=item.uri,
        num_samples=encoded.num_samples,
        source_sample_rate=item.source_sample_rate,
        source_channels=item.source_channels,
        peak=float(np.abs(item.waveform).max()),
        rms_dbfs=max(SILENCE_DBFS, 10 * math.log10(power)) if power > 0 else SILENCE_DBFS,
        codes=encoded.codes[0].cpu().numpy().astype(np.uint16),
        scales=None if encoded.scales is None else encoded.scales[0].cpu().numpy(),
        qtn=qtn,
    )


@dataclass(frozen=True, slots=True)
class Target:
    """Where units are committed, and what every part says about its codec."""

    dataset: str
    card: dict[str, Any]
    num_codebooks: int
    lm: Any = None  # Ray's reference to the CarriedLM that compresses the codes; None: they are not


def commit_unit(unit: int, order: Sequence[str], target: Target, *bundles: EncodedBundle) -> UnitResult:
    """Write a unit: first its errors, then its part, each in one atomic step.

    The part comes last because its presence says that the unit is done: killed between the two, the unit is done again
    and writes the same errors over. A part is written even if no row worked.

    Args:
        unit: number in the plan.
        order: ids in listing order, which is the order of the rows.
        target: the dataset.
        bundles: all rows of the unit, in any order.
    """
    rows = {row.id: row for bundle in bundles for row in bundle.rows}
    ordered = [rows[name] for name in order]
    tokens = [row for row in ordered if isinstance(row, TokenRow)]
    errors = [row for row in ordered if isinstance(row, ErrorRow)]
    spec = CodecSpec.from_dict(target.card["spec"])
    errors_uri = storage.join(target.dataset, "errors", part_name(unit))
    if errors:
        storage.commit(errors_uri, encode_errors(errors))
    else:
        storage.remove(errors_uri)  # of an earlier, killed attempt that had any
    content = encode_part(tokens, spec, target.num_codebooks, target.card, compressed=target.lm is not None)
    storage.commit(storage.join(target.dataset, "parts", part_name(unit)), content)
    return UnitResult(
        num_ok=len(tokens),
        num_errors=len(errors),
        audio_seconds=sum(row.num_samples for row in tokens) / spec.sample_rate,
        size=measure_part(content, tokens),
        padded_seconds=sum(bundle.padded_seconds for bundle in bundles),
    )
