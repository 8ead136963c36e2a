"""The limits of the rows: what the machine allows for the counted work of each contender."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lm_head import read_lm_card
from lm_head.lm_checkpoint import load_lm
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.machine_ceilings import Ceilings, Precision
from pipelines.benchmarking.operation_count import Direction, LayerWork, codec_work, lm_work
from pipelines.benchmarking.speed_floor import limit
from pipelines.benchmarking.suite_settings import SuiteSettings
from tokenizer import CodecSpec, load_codec
from tokenizer.presets import PRESETS

_ARITHMETIC: dict[str, Precision] = {
    "quantone plain": "fp32",
    "quantone exact": "fp32",
    "quantone fast": "half",
    "encodec": "fp32",
    "transformers EncodecModel": "fp32",
}
_BATCH_OF_A_JOB = 16  # utterances: more would share the reading of weights further, to no effect
_CODE_BYTES = 2  # that a scan writes for each code at least


def with_limits(rows: Iterable[Row], ceilings: Mapping[int, Ceilings], settings: SuiteSettings) -> list[Row]:
    """Rows with the limit of each contender whose work can be counted.

    Args:
        rows: of a run with these settings.
        ceilings: of the machine by threads, at least for one.
        settings: of the run.
    """
    limited = []
    for row in rows:
        limits = _limits(row, ceilings, settings)
        results = [replace(result, limit=limits.get(result.contender)) for result in row.results]
        limited.append(replace(row, results=tuple(results)))
    return limited


def _limits(row: Row, ceilings: Mapping[int, Ceilings], settings: SuiteSettings) -> dict[str, float]:
    kind = row.key.split("/")[0]
    names = [result.contender for result in row.results]
    if kind == "codec":
        return _codec_limits(row, ceilings, settings)
    if kind == "lm":
        return {"quantone": _lm_limit(row, ceilings[1], settings)}
    if kind == "generate":
        most = _generation_limit(row, ceilings[1], settings)
        return {} if most is None else dict.fromkeys(names, most)
    if kind == "pipeline":
        spec = load_codec(settings.codec).spec
        work = _work(spec, "encode", spec.num_codebooks)
        num_encoders = _number_before(row.work, " encoder")
        return dict.fromkeys(names, num_encoders * limit(work, ceilings[1], "fp32", _BATCH_OF_A_JOB))
    if kind == "scan":
        most_threads = ceilings[max(ceilings)]
        return dict.fromkeys(names, most_threads.memory_bytes / _CODE_BYTES / 1e6)
    return {}


def _codec_limits(row: Row, ceilings: Mapping[int, Ceilings], settings: SuiteSettings) -> dict[str, float]:
    _, name, kbps, batch, threads = row.key.split("/")
    spec: CodecSpec = PRESETS[name] if name in PRESETS else load_codec(settings.codec).spec
    levels = spec.num_codebooks_at(float(kbps.removesuffix("kbps")))
    work = _work(spec, "encode" if row.work == "encode" else "decode", levels)
    batch_size, own = int(batch.removeprefix("batch")), ceilings[int(threads.removeprefix("threads"))]
    return {contender: limit(work, own, kind, batch_size) for contender, kind in _ARITHMETIC.items()}


@functools.cache
def _work(spec: CodecSpec, direction: Direction, num_codebooks: int) -> tuple[LayerWork, ...]:
    return tuple(codec_work(spec, direction, num_codebooks))


def _lm_limit(row: Row, ceilings: Ceilings, settings: SuiteSettings) -> float:
    spec = load_codec(str(read_lm_card(settings.lm).codec["name"])).spec
    levels = spec.num_codebooks_at(float(row.key.partition("/")[2].removesuffix("kbps")))
    config = load_lm(settings.lm).config
    if not isinstance(config, LMConfig):
        raise TypeError(f"a language model for entropy coding is a TokenLM, not {type(config).__name__}")
    frames = max(1, round(settings.seconds * float(spec.frame_rate)))
    steps: Sequence[LayerWork] = lm_work(config, levels, frames, float(spec.frame_rate))
    if row.work == "compress":  # who compresses knows all frames: they go through each layer together
        steps = [replace(layer, step_weights=0.0) for layer in steps]
    batch_size = _number_before(row.work, " streams") if "streams" in row.work else 1
    return limit(steps, ceilings, "int8", batch_size)


def _generation_limit(row: Row, ceilings: Ceilings, settings: SuiteSettings) -> float | None:
    lm = load_lm(settings.lm)
    if not isinstance(lm, TokenLM):
        return None
    batch_size, levels = _number_before(row.work, " stream"), lm.config.num_codebooks
    steps = lm_work(lm.config, levels, settings.generation_frames, frame_rate=1.0)
    return levels * limit(steps, ceilings, "fp32", batch_size)


def _number_before(text: str, word: str) -> int:
    return int(text.partition(word)[0].rpartition(" ")[2])
