"""`quantone train lm`: a recipe and token datasets in, a token language model that `load_lm` reads out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from lm_head.compression import CodecIdentity
from lm_head.entropy import order_zero_entropy
from lm_head.lm_checkpoint import LMCard, load_token_lm, save_lm
from lm_head.lm_training import LMTraining, rounding_grids
from pipelines import storage
from pipelines.dataset_info import DatasetInfo
from pipelines.lm_evaluation import Bits, block_bits
from pipelines.lm_recipe import LMRecipe, load_lm_recipe
from pipelines.ray_training import run_training
from pipelines.spectrogram import magma
from pipelines.stored_codes import load_dataset_codec
from pipelines.token_batches import TokenBatches
from pipelines.token_store import Codes, TokenStore, open_token_store, read_dataset_infos
from pipelines.training_log import Preview
from pipelines.training_loop import LoopSettings, train
from pipelines.training_run import TrainingRun, replaced_as_a_whole
from pipelines.training_view import training_view
from tokenizer import CodecSpec, QuantoneError

LM = "lm"
CELL = (8, 4)  # pixels of a code in the picture: height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What each process of the group is told."""

    recipe: LMRecipe  # as this run and these datasets make it
    datasets: tuple[str, ...]
    codec: dict[str, Any]  # the card of the codec that made the codes
    codebooks: Tensor | None  # [K, V, D]
    run: TrainingRun

    def open_store(self) -> TokenStore:
        """The codes; the driver has made the store, and each process only opens it."""
        levels, folder = self.recipe.model.num_codebooks, self.run.run_dir / "codes"
        return open_token_store(self.datasets, levels, self.recipe.held_out, folder, shown=self.run.shown)


def train_lm(
    recipe: str | Path, datasets: Sequence[str | Path], run: TrainingRun, *, bandwidth_kbps: float | None = None
) -> Path:
    """Train a language model by a recipe; a run that was interrupted goes on from its last checkpoint.

    Every step draws its crops and its random numbers from the recipe's seed and its own number, so that an interrupted
    run ends with the same weights as an undisturbed one, up to the order of floating point sums between threads.

    Args:
        recipe: bundled name or YAML file.
        datasets: token datasets of one codec; directories or s3:// URIs.
        run: where and how.
        bandwidth_kbps: levels to learn, at most; None for those of the recipe that all datasets store.

    Returns:
        The directory of the exported model.

    Raises:
        ValueError: the recipe is wrong or does not fit the codec, `init_from` has other sizes, the bandwidth is not
            there, or so many processes cannot share a batch.
        DatasetError: a dataset is damaged or empty, or they are of different codecs.
        CheckpointError: run_dir holds a checkpoint of another recipe, or `init_from` is no language model.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
    """
    settings = load_lm_recipe(recipe)
    schedule = run.schedule(settings.schedule)
    names = tuple(storage.absolute(dataset) for dataset in datasets)
    infos = read_dataset_infos(names)
    levels = _num_codebooks(settings, infos, bandwidth_kbps)
    model = dataclasses.replace(settings.model, num_codebooks=levels)
    codebooks, note = (None, None) if run.init_from is not None else _codebooks(infos[0], levels)
    job = _Job(
        recipe=dataclasses.replace(settings, schedule=schedule, model=model),
        datasets=names,
        codec={name: value for name, value in infos[0].codec.items() if name != "source"},
        codebooks=codebooks,
        run=run.settled(),
    )
    store = job.open_store()
    if run.shown:
        lines = [_describe(store, job), job.run.headline(settings.name, schedule.steps)]
        Console(stderr=True, soft_wrap=True).print("\n".join(lines + ([note] if note else [])), highlight=False)
    with training_view(job.run.run_dir, settings.name, shown=run.shown):
        run_training(_train_in_process, {"job": job}, run_dir=job.run.run_dir, num_processes=run.num_processes)
    return job.run.run_dir / LM


def _num_codebooks(recipe: LMRecipe, infos: Sequence[DatasetInfo], bandwidth_kbps: float | None) -> int:
    """Levels to learn: what the bandwidth has, or all that recipe and datasets have in common."""
    size, most = recipe.model.codebook_size, min(info.num_codebooks for info in infos)
    if infos[0].codebook_size != size:
        raise ValueError(f"the recipe is for codebooks of {size} entries, the datasets have {infos[0].codebook_size}")
    if bandwidth_kbps is None:
        return min(recipe.model.num_codebooks, most)
    spec = CodecSpec.from_dict(infos[0].codec["spec"])
    levels = spec.num_codebooks_at(bandwidth_kbps)
    if levels > min(recipe.model.num_codebooks, most):
        raise ValueError(
            f"bandwidth {bandwidth_kbps:g} kbps has {levels} levels, the datasets store {most}, "
            f"and the recipe is for up to {recipe.model.num_codebooks}"
        )
    return levels


def _codebooks(info: DatasetInfo, num_codebooks: int) -> tuple[Tensor | None, str | None]:
    """What the codes stand for, [K, V, D], to start from; where there is no codec, why the run starts without."""
    try:
        quantizer = load_dataset_codec(info).quantizer
    except (QuantoneError, OSError) as error:
        return None, f"embeddings start at random, for want of the codec: {error}"
    entries = torch.arange(info.codebook_size)
    return torch.stack([quantizer.decode_level(entries, level) for level in range(num_codebooks)]).detach(), None


def _describe(store: TokenStore, job: _Job) -> str:
    identity = CodecIdentity.from_card(job.codec)
    hours = int(store.starts[-1]) * identity.hop_length / identity.sample_rate / 3600
    held_out = f"{len(store.held_out)} held-out ones are judged" if store.held_out else "none is held out"
    return f"{len(store.lengths)} utterances, {hours:.2f} h, {len(store.histogram)} levels; {held_out}"


class LMLearner:
    """A language model in training as the loop wants it."""

    export_name = LM

    def __init__(self, recipe: LMRecipe, codec: dict[str, Any], training: LMTraining, store: TokenStore) -> None:
        self.recipe, self.codec, self.training = recipe, codec, training
        self.fingerprint = json.dumps(
            {
                "name": recipe.name,
                "codec": codec["sha256"],
                "model": recipe.model.to_dict(),
                "optimizers": [recipe.optimizer.muon, recipe.optimizer.weight_average > 0],
            },
            sort_keys=True,
        )
        self._held_out = store.held_out
        self._order_0: list[float] = order_zero_entropy(store.histogram).tolist()
        self._steps = 0  # made, those before the last checkpoint included
        self._bits: dict[int, list[float]] = {}  # of each level since the last row of the log

    def step(self, batch: Tensor, step: int, rate_factor: float) -> Mapping[str, float]:
        """Bits per code of the levels that the step was about, and the norm of the gradient."""
        schedule = self.recipe.schedule
        result = self.training.step(
            batch, step, rate_factor=rate_factor, seed=schedule.seed, total_steps=schedule.steps
        )
        self._steps = step + 1
        for level, bits in result.bits.items():
            self._bits.setdefault(level, []).append(bits)
        mean = sum(result.bits.values()) / len(result.bits)
        return {"bits": mean, "gradient_norm": result.gradient_norm}

    def details(self) -> Mapping[str, Any]:
        """Bits per code by level since the last row; at a checkpoint also those of utterances never trained on.

        Beside them those of raw packing, and those that the training codes' frequencies alone would give.
        """
        by_level = {f"{level:02d}": sum(bits) / len(bits) for level, bits in sorted(self._bits.items())}
        self._bits = {}
        schedule = self.recipe.schedule
        if self._steps % schedule.checkpoint_every and self._steps != schedule.steps:
            return {"bits_training": by_level}
        raw = math.log2(self.recipe.model.codebook_size)
        return {"bits_training": by_level, "bits_order_0": self._order_0, "bits_raw": raw, **self._judged(raw)}

    def _judged(self, raw: float) -> Mapping[str, Any]:
        if not self._held_out:
            return {}
        costs = np.concatenate(self._costs(self._held_out.values()), axis=1)  # [K, frames]
        return {"bits_held_out": costs.mean(axis=1).tolist(), "saved": 1 - float(costs.mean()) / raw}

    def preview(self) -> Preview:
        """What each code of a held-out utterance costs: time to the right, level 0 on top, bright is dear."""
        pictures = {}
        for name, codes in list(self._held_out.items())[:1]:
            levels = np.concatenate(self._costs([codes]), axis=1) / (1.2 * math.log2(self.recipe.model.codebook_size))
            pixels = magma(np.clip(levels, 0, 1).astype(np.float32))
            pictures[f"bits/{name}"] = pixels.repeat(CELL[0], axis=0).repeat(CELL[1], axis=1)
        return Preview(pictures=pictures)

    def export(self, directory: Path) -> None:
        """Write the inference form: once the grid holds, in integers, as the entropy coder takes it."""
        with replaced_as_a_whole(directory) as fresh:
            save_lm(self.training.to_lm(), fresh, LMCard(self.recipe.name, self.codec), self.training.grid_steps)

    def state_dict(self) -> dict[str, Any]:
        """Of the model and its optimizers."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.training.load_state_dict(state)

    def _costs(self, utterances: Iterable[Codes]) -> list[Bits]:
        """Bits of each code [K, T] of the first block of some utterances, on the grid once it holds."""
        lm, steps = self.training.to_lm().to(self.training.device), self.training.grid_steps
        grids = None if steps is None else rounding_grids(steps)
        frames = CodecIdentity.from_card(self.codec).frames_per_block
        return [next(block_bits(lm, codes, frames, grids)) for codes in utterances]


def _train_in_process(config: dict[str, Any]) -> None:
    """What each process of the group runs."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    job: _Job = config["job"]
    recipe, schedule, context = job.recipe, job.recipe.schedule, ray_train.get_context()
    if job.run.threads is not None:
        torch.set_num_threads(job.run.threads)
    store = job.open_store()
    torch.manual_seed(schedule.seed)
    training = LMTraining(
        recipe.model,
        recipe.objective,
        recipe.optimizer,
        autocast=schedule.autocast,
        codebooks=job.codebooks,
        start=None if job.run.init_from is None else load_token_lm(job.run.init_from),
        device=str(get_device()),
    )
    batches = TokenBatches(
        store,
        batch_size=schedule.batch_size,
        num_frames=schedule.crop_frames,
        seed=schedule.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    settings = LoopSettings(
        run_dir=job.run.run_dir,
        schedule=schedule,
        amount_per_step=float(schedule.batch_size * schedule.crop_frames),
        unit="frames",
        first=context.get_world_rank() == 0,
    )
    train(LMLearner(recipe, job.codec, training, store), batches, settings)
