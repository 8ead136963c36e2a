"""`quantone train codec`: a recipe and audio in, a codec that `load_codec` reads out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from pipelines.spectrogram import reference_level, spectrogram_pixels
from pipelines.training.ray_training import run_training
from pipelines.training.recipe import Recipe, load_recipe
from pipelines.training.sampling import Sampler
from pipelines.training.training_audio import TrainingAudio, open_training_audio
from pipelines.training.training_batches import TrainingBatches
from pipelines.training.training_log import Preview
from pipelines.training.training_loop import LoopSettings, train
from pipelines.training.training_run import TrainingRun, replaced_as_a_whole
from pipelines.training.training_view import training_view
from tokenizer import load_codec, save_codec
from tokenizer.quantizer_training import codebook_use
from tokenizer.training import CodecTraining, StepResult

CODEC = "codec"
PREVIEW_CLIPS = 2


def train_codec(recipe: str | Path, data: list[Path], run: TrainingRun) -> Path:
    """Train a codec by a recipe; a run that was interrupted goes on from its last checkpoint.

    Every step draws its crops and its random numbers from the recipe's seed and its own number, so that an interrupted
    run ends with the same weights as an undisturbed one, up to the order of floating point sums between threads.

    Args:
        recipe: bundled name or YAML file.
        data: folders of audio, tar shards or manifests.
        run: where and how.

    Returns:
        The directory of the exported codec.

    Raises:
        ValueError: the recipe is wrong, `init_from` has another spec, or so many processes cannot share a batch.
        DatasetError: there is no audio to train on.
        CheckpointError: run_dir holds a checkpoint of another recipe, or `init_from` is no codec.
        FloatingPointError: a loss is not finite; the last checkpoint stays.
    """
    settings = load_recipe(recipe)
    settings = dataclasses.replace(settings, schedule=run.schedule(settings.schedule))
    run = run.settled()
    data = [source.resolve() for source in data]
    audio = open_training_audio(
        data, settings.codec, settings.data, cache_dir=run.run_dir / "audio", num_workers=os.cpu_count() or 1
    )
    if run.shown:
        _announce(settings, audio, run)
    config = {"recipe": settings, "data": data, "run": run}
    with training_view(run.run_dir, settings.name, shown=run.shown):
        run_training(_train_in_process, config, run_dir=run.run_dir, num_processes=run.num_processes)
    return run.run_dir / CODEC


def _announce(recipe: Recipe, audio: TrainingAudio, run: TrainingRun) -> None:
    lines = [audio.describe(), run.headline(recipe.name, recipe.schedule.steps)]
    left_out = Sampler(audio.kinds, audio.lengths, recipe.data.sampling).left_out
    if left_out:
        lines.insert(1, f"the data lacks what these mixtures need, the others make up for it: {', '.join(left_out)}")
    Console(stderr=True, soft_wrap=True).print("\n".join(lines), highlight=False)


class CodecLearner:
    """A codec in training as the loop wants it."""

    export_name = CODEC

    def __init__(self, recipe: Recipe, training: CodecTraining, preview_audio: Tensor) -> None:
        self.recipe, self.training, self.preview_audio = recipe, training, preview_audio
        self.fingerprint = json.dumps(
            {
                "name": recipe.name,
                "codec": recipe.codec.to_dict(),
                "discriminator": repr(recipe.objective.discriminator),
                "optimizers": [recipe.optimizer.muon, recipe.optimizer.weight_average > 0],
            },
            sort_keys=True,
        )
        self._result: StepResult | None = None

    def step(self, batch: Tensor, step: int, rate_factor: float) -> Mapping[str, float]:
        """Losses and the norm of the gradient."""
        self._result = self.training.step(batch, step, rate_factor=rate_factor, seed=self.recipe.schedule.seed)
        return {**self._result.losses, "gradient_norm": self._result.gradient_norm}

    def details(self) -> Mapping[str, Any]:
        """Shares of the balanced gradient; use of each level's codebook in this batch, a trend rather than a census."""
        if self._result is None:
            return {}
        used, perplexity = codebook_use(self._result.codes, self.recipe.codec.codebook_size)
        shares = {"shares": self._result.shares} if self._result.shares else {}
        return {**shares, "used": used, "perplexity": perplexity}

    def preview(self) -> Preview:
        """A few training crops at each bandwidth, as sound and as spectrograms beside the original."""
        codec, sample_rate = self.training.to_codec(self.recipe.name), self.recipe.codec.sample_rate
        encoded = codec.encode(self.preview_audio)
        versions = {"original": self.preview_audio}
        for kbps in codec.spec.bandwidths_kbps:
            versions[f"{kbps:g}_kbps"] = codec.decode(encoded, bandwidth_kbps=kbps)
        sounds, pictures = {}, {}
        for number in range(len(self.preview_audio)):
            level = reference_level(self.preview_audio[number, 0].numpy(), sample_rate)
            for version, waveforms in versions.items():
                sound = waveforms[number].mean(dim=0).numpy()  # [S]
                sounds[f"{version}/{number}"] = np.clip(sound, -1, 1)
                pictures[f"{version}/{number}"] = spectrogram_pixels(sound, sample_rate, level)
        return Preview(sounds, sample_rate, pictures)

    def export(self, directory: Path) -> None:
        """Write the inference form."""
        with replaced_as_a_whole(directory) as fresh:
            save_codec(self.training.to_codec(self.recipe.name), fresh, half=True)

    def state_dict(self) -> dict[str, Any]:
        """Of codec, discriminators, balancer and optimizers."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.training.load_state_dict(state)


def _train_in_process(config: dict[str, Any]) -> None:
    """What each process of the group runs."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    recipe, data, run = config["recipe"], config["data"], config["run"]
    schedule, spec, context = recipe.schedule, recipe.codec, ray_train.get_context()
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    num_samples = max(1, round(schedule.crop_seconds * spec.sample_rate / spec.hop_length)) * spec.hop_length
    # The decoded audio is there already: the driver has made it, and each process only opens it.
    audio = open_training_audio(data, spec, recipe.data, cache_dir=run.run_dir / "audio", num_workers=1)
    torch.manual_seed(schedule.seed)
    training = CodecTraining(
        spec,
        recipe.training,
        start=None if run.init_from is None else load_codec(run.init_from),
        device=str(get_device()),
    )
    with TrainingBatches(
        audio,
        recipe.data,
        batch_size=PREVIEW_CLIPS,
        num_samples=num_samples,
        seed=schedule.seed,
        num_workers=0,
    ) as first_rows:
        learner = CodecLearner(recipe, training, next(first_rows.from_step(0)))
    with TrainingBatches(
        audio,
        recipe.data,
        batch_size=schedule.batch_size,
        num_samples=num_samples,
        seed=schedule.seed,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        num_workers=run.data_workers,
    ) as batches:
        settings = LoopSettings(
            run_dir=run.run_dir,
            schedule=schedule,
            amount_per_step=schedule.batch_size * num_samples / spec.sample_rate,
            unit="audio s",
            first=context.get_world_rank() == 0,
        )
        train(learner, batches, settings)
