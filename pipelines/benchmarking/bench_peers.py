"""Codecs beside those of other packages: encoding and decoding by bandwidth, batch and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipelines.benchmarking.bench_contest import Contender, Contest, Turns, hold
from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.bench_turns import torch_threads
from pipelines.benchmarking.peer_codecs import (
    ENCODEC_NAMES,
    PeerCodec,
    encodec_model,
    encodec_peer,
    transformers_encodec,
    transformers_mimi,
    with_weights_of,
)
from pipelines.bundled_speech import bundled_speech
from tokenizer import Codec, load_codec

_CROSSED_KBPS = 12.0  # every batch and number of threads at this one; the others with one row and one thread
_OTHER_KBPS = {"encodec_24khz": (1.5, 3.0, 6.0, 24.0), "encodec_48khz": (3.0, 6.0, 24.0)}
_CROSS = ((1, 1), (8, 1), (1, 2), (8, 2))  # batch, threads


@dataclass(frozen=True, slots=True)
class CodecCell:
    """One codec, bandwidth, batch and number of threads: a row of each direction."""

    codec: str  # one of the `encodec` package, or anything for `load_codec`
    kbps: float
    batch_size: int
    threads: int

    @property
    def key(self) -> str:
        """As `quantone bench all --only` takes it."""
        name = self.codec.rstrip("/").rpartition("/")[2]
        return f"codec/{name}/{self.kbps:g}kbps/batch{self.batch_size}/threads{self.threads}"


def codec_cells(bundled: str = "speech_24khz") -> list[CodecCell]:
    """Those of a whole run."""
    cells = [CodecCell(bundled, load_codec(bundled).spec.bandwidth_kbps, *cross) for cross in _CROSS]
    for name in ENCODEC_NAMES:
        cells += [CodecCell(name, _CROSSED_KBPS, *cross) for cross in _CROSS]
        cells += [CodecCell(name, kbps, 1, 1) for kbps in _OTHER_KBPS[name]]
    return cells


def bench_cell(cell: CodecCell, *, seconds: float, turns: Turns, missing: Callable[[str], None]) -> list[Row]:
    """Measure both directions of a cell on the bundled speech.

    Args:
        cell: where a codec of the `encodec` package is named, that package and `transformers` take part, ours with the
            weights of the first.
        seconds: of audio in each row of the batch.
        turns: rounds.
        missing: is told which packages could not take part.

    Raises:
        CheckpointError: no such codec.
        ValueError: the codec does not have the bandwidth.
    """
    baseline = "encodec" if cell.codec in ENCODEC_NAMES else "quantone plain"
    with torch_threads(cell.threads), torch.inference_mode():
        codec, peers = _contenders(cell, missing)
        names = [peer.name for peer in peers]
        waveform = bundled_speech(codec.spec, seconds, cell.batch_size)
        audio_seconds = cell.batch_size * waveform.shape[-1] / codec.spec.sample_rate
        encoded: dict[str, Any] = {}

        def encode(peer: PeerCodec) -> float:
            encoded[peer.name] = peer.encode(waveform)
            return audio_seconds

        def decode(peer: PeerCodec) -> float:
            peer.decode(encoded[peer.name])
            return audio_seconds

        rows = []
        for direction, call in {"encode": encode, "decode": decode}.items():
            contest = Contest(
                key=cell.key,
                work=direction,
                unit="x real time",
                contenders=[Contender(peer.name, partial(call, peer)) for peer in peers],
                baseline=baseline if baseline in names else None,
            )
            rows.append(hold(contest, turns))
    return rows


def _contenders(cell: CodecCell, missing: Callable[[str], None]) -> tuple[Codec, Sequence[PeerCodec]]:
    """Our codec, and everybody who takes part, ours first."""
    if cell.codec not in ENCODEC_NAMES:
        codec = load_codec(cell.codec)
        return codec, [_ours(codec, precision, cell.kbps) for precision in ("plain", "exact", "fast")]
    model = encodec_model(cell.codec)
    codec = with_weights_of(model, cell.codec)
    peers = [_ours(codec, precision, cell.kbps) for precision in ("exact", "fast")]
    return codec, [*peers, encodec_peer(model, cell.kbps), *_others(cell, missing)]


def _ours(codec: Codec, precision: Any, kbps: float) -> PeerCodec:
    chosen = codec.with_precision(precision)
    return PeerCodec(f"quantone {precision}", partial(chosen.encode, bandwidth_kbps=kbps), chosen.decode)


def _others(cell: CodecCell, missing: Callable[[str], None]) -> Iterator[PeerCodec]:
    try:
        yield transformers_encodec(cell.codec, cell.kbps)
        if cell.codec == "encodec_24khz" and cell.kbps == _CROSSED_KBPS:
            yield transformers_mimi()
    except ImportError as error:
        missing(str(error))
