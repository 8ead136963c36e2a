"""Speed of generation: tokens per second, and how long the first frames take, for each layout."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import Tensor

from lm_head.coarse_first import CoarseFirstConfig, CoarseFirstLM, LanguageModel
from lm_head.generation import generate
from lm_head.lm_checkpoint import load_lm
from lm_head.token_lm import LMConfig, TokenLM
from pipelines.benchmarking.bench_turns import torch_threads


@dataclass(frozen=True, slots=True)
class GenerationBench:
    """What is measured."""

    num_frames: int = 150  # 2 s at 75 frames per second
    prompt_frames: int = 225
    num_codebooks: int = 8
    batch_sizes: Sequence[int] = (1, 8)
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class GenerationSpeed:
    """One model at one batch size: medians over the rounds."""

    name: str
    batch_size: int
    tokens_per_second: float  # codes of all levels and rows
    frames_per_second: float  # of each row
    first_frames_s: float  # from the prompt to the first frames of all rows, the prompt's own pass included


def bench_generate(lm: str | None = None, *, settings: GenerationBench | None = None) -> list[GenerationSpeed]:
    """Measure generation behind a prompt of random codes.

    Args:
        lm: anything for `load_lm`; None for random weights of the paper's sizes in every layout, which cost as much as
            trained ones.
        settings: sizes, rounds and the device.

    Raises:
        CheckpointError: no such language model.
        CodesError: more levels than it knows.
    """
    chosen = settings or GenerationBench()
    models = _random_models(chosen.num_codebooks) if lm is None else {lm: load_lm(lm)}
    with torch_threads(chosen.threads):
        return [speed for name, model in models.items() for speed in _speeds(name, model.to(chosen.device), chosen)]


def generation_table(speeds: Sequence[GenerationSpeed]) -> Table:
    """The speeds for a terminal."""
    table = Table(box=None, header_style="bold")
    for heading in ("", "batch", "tokens/s", "frames/s each", "first frames"):
        table.add_column(heading, justify="right" if heading else "left")
    for speed in speeds:
        table.add_row(
            speed.name,
            str(speed.batch_size),
            f"{speed.tokens_per_second:.0f}",
            f"{speed.frames_per_second:.0f}",
            f"{1000 * speed.first_frames_s:.0f} ms",
        )
    return table


def _random_models(num_codebooks: int) -> dict[str, LanguageModel]:
    sizes = LMConfig(num_codebooks=num_codebooks)
    models: dict[str, LanguageModel] = {
        "parallel": TokenLM(sizes),
        "delay": TokenLM(replace(sizes, layout="delay")),
    }
    if num_codebooks > 1:
        models["coarse_first"] = CoarseFirstLM(CoarseFirstConfig(fine=sizes))
    return models


def _speeds(name: str, lm: LanguageModel, settings: GenerationBench) -> Iterator[GenerationSpeed]:
    for batch_size in settings.batch_sizes:
        shape = (batch_size, settings.num_codebooks, settings.prompt_frames)
        prompt = torch.randint(lm.config.codebook_size, shape, generator=torch.Generator().manual_seed(0))
        _timed(lm, prompt, min(40, settings.num_frames))  # the warm-up
        runs = [_timed(lm, prompt, settings.num_frames) for _ in range(settings.rounds)]
        frames_per_second = settings.num_frames / statistics.median(total for _, total in runs)
        yield GenerationSpeed(
            name,
            batch_size,
            frames_per_second * batch_size * settings.num_codebooks,
            frames_per_second,
            statistics.median(first for first, _ in runs),
        )


def _timed(lm: LanguageModel, prompt: Tensor, num_frames: int) -> tuple[float, float]:
    """Seconds until the first frames are on the CPU, and until the last ones are."""
    begin = time.perf_counter()
    stream = generate(lm, prompt, num_frames)
    next(stream).cpu()
    first = time.perf_counter() - begin
    for frames in stream:
        frames.cpu()
    return first, time.perf_counter() - begin
