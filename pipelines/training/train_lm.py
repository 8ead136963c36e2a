"""`quantone train lm`: a recipe and token datasets in, a token language model that `load_lm` reads out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lm_head.coarse_first import CoarseFirstConfig, LanguageModelConfig
from lm_head.compression import CodecIdentity
from lm_head.lm_checkpoint import load_lm
from lm_head.lm_training import LMTraining
from pipelines import storage
from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.datasets.stored_codes import load_dataset_codec
from pipelines.inputs.transcripts import TextSource, TranscriptFile
from pipelines.training.lm_learner import LM, LMLearner
from pipelines.training.lm_recipe import LMRecipe, load_lm_recipe
from pipelines.training.ray_training import run_training
from pipelines.training.token_batches import TokenBatches
from pipelines.training.token_store import TokenStore, open_token_store, read_dataset_infos
from pipelines.training.training_loop import LoopSettings, train
from pipelines.training.training_run import TrainingRun
from pipelines.training.training_view import training_view
from tokenizer import CodecSpec, QuantoneError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What each process of the group is told."""

    recipe: LMRecipe  # as this run and these datasets make it
    datasets: tuple[str, ...]
    codec: dict[str, Any]  # the card of the codec that made the codes
    codebooks: Tensor | None  # [K, V, D]
    transcripts: str | None  # URI of a file of them
    run: TrainingRun

    def open_store(self) -> TokenStore:
        """The codes; the driver has made the store, and each process only opens it."""
        levels, folder = self.recipe.model.num_codebooks, self.run.run_dir / "codes"
        file = None if self.transcripts is None else TranscriptFile(self.transcripts)
        text = TextSource(file) if self.recipe.model.text else None
        return open_token_store(self.datasets, levels, self.recipe.held_out, folder, text=text, shown=self.run.shown)


def train_lm(
    recipe: str | Path,
    datasets: Sequence[str | Path],
    run: TrainingRun,
    *,
    bandwidth_kbps: float | None = None,
    transcripts: str | Path | None = None,
) -> Path:
    """Train a language model by a recipe; a run that was interrupted goes on from its last checkpoint.

    Every step draws its crops and its random numbers from the recipe's seed and its own number, so that an interrupted
    run ends with the same weights as an undisturbed one, up to the order of floating point sums between threads.

    Args:
        recipe: bundled name or YAML file.
        datasets: token datasets of one codec; directories or s3:// URIs.
        run: where and how.
        bandwidth_kbps: levels to learn, at most; None for those of the recipe that all datasets store.
        transcripts: for models that read, a file as `TranscriptFile` takes it; what it lacks is looked for in the
            datasets' column `text`. Utterances without a transcript are left out.

    Returns:
        The directory of the exported model.

    Raises:
        ValueError: the recipe is wrong or does not fit the codec, `init_from` has other sizes, the bandwidth is not
            there, so many processes cannot share a batch, or transcripts for a model that does not read.
        DatasetError: a dataset is damaged or empty, they are of different codecs, or transcripts are of others.
        CheckpointError: run_dir holds a checkpoint of another recipe, or `init_from` is no language model.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
    """
    settings = load_lm_recipe(recipe)
    schedule = run.schedule(settings.schedule)
    names = tuple(storage.absolute(dataset) for dataset in datasets)
    infos = read_dataset_infos(names)
    levels = _num_codebooks(settings, infos, bandwidth_kbps)
    model = _of_levels(settings.model, levels)
    if transcripts is not None and not model.text:
        raise ValueError(f"recipe {settings.name!r} is of a model that does not read: transcripts are of no use to it")
    codebooks, note = (None, None) if run.init_from is not None else _codebooks(infos[0], levels)
    job = _Job(
        recipe=dataclasses.replace(settings, schedule=schedule, model=model),
        datasets=names,
        codec={name: value for name, value in infos[0].codec.items() if name != "source"},
        codebooks=codebooks,
        transcripts=None if transcripts is None else storage.absolute(transcripts),
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


def _of_levels(model: LanguageModelConfig, num_codebooks: int) -> LanguageModelConfig:
    """The same sizes for so many levels."""
    if isinstance(model, CoarseFirstConfig):
        return dataclasses.replace(model, fine=dataclasses.replace(model.fine, num_codebooks=num_codebooks))
    return dataclasses.replace(model, num_codebooks=num_codebooks)


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
    told = f"{len(store.lengths)} utterances, {hours:.2f} h, {len(store.histogram)} levels; {held_out}"
    return f"{told}; {store.text.left_out} without a transcript are left out" if store.text is not None else told


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
        start=None if job.run.init_from is None else load_lm(job.run.init_from),
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
        amount_per_step=batches.frames_per_step,
        unit="frames",
        first=context.get_world_rank() == 0,
    )
    train(LMLearner(recipe, job.codec, training, store), batches, settings)
