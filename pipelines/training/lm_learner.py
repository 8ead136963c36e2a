"""A language model in training as the loop wants it: what is logged, shown, kept and exported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_head.code_bits import code_bits
from lm_head.compression import CodecIdentity
from lm_head.entropy import order_zero_entropy
from lm_head.lm_checkpoint import LMCard, save_lm
from lm_head.lm_training import LMTraining, rounding_grids
from pipelines.evaluating.lm_evaluation import Bits
from pipelines.spectrogram import magma
from pipelines.training.lm_recipe import LMRecipe
from pipelines.training.token_batches import TokenBatch
from pipelines.training.token_store import TokenStore
from pipelines.training.training_log import Preview
from pipelines.training.training_run import replaced_as_a_whole

LM = "lm"
CELL = (8, 4)  # pixels of a code in the picture: height, width


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
        self._texts = None if store.text is None else list(store.text.held_out.values())
        self._order_0: list[float] = order_zero_entropy(store.histogram).tolist()
        self._steps = 0  # made, those before the last checkpoint included
        self._bits: dict[int, list[float]] = {}  # of each level since the last row of the log

    def step(self, batch: TokenBatch, step: int, rate_factor: float) -> Mapping[str, float]:
        """Bits per code of the levels that the step was about, and the norm of the gradient."""
        schedule = self.recipe.schedule
        result = self.training.step(
            batch.codes,
            step,
            rate_factor=rate_factor,
            seed=schedule.seed,
            total_steps=schedule.steps,
            text=batch.text,
            lengths=batch.lengths,
        )
        self._steps = step + 1
        for level, bits in result.bits.items():
            self._bits.setdefault(level, []).append(bits)
        mean = sum(result.bits.values()) / len(result.bits)
        return {"bits": mean, "gradient_norm": result.gradient_norm}

    def details(self) -> Mapping[str, Any]:
        """Bits per code by level since the last row; at a checkpoint also those of utterances never trained on.

        Beside them those of raw packing, and those that the training codes' frequencies alone would give; where the
        model reads also those that the same codes cost with the transcript of another utterance.
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
        costs = np.concatenate(self._costs(self._texts), axis=1)  # [K, frames]
        judged = {"bits_held_out": costs.mean(axis=1).tolist(), "saved": 1 - float(costs.mean()) / raw}
        if self._texts is not None:
            others = np.concatenate(self._costs([*self._texts[1:], *self._texts[:1]]), axis=1)
            judged["bits_other_text"] = others.mean(axis=1).tolist()
        return judged

    def preview(self) -> Preview:
        """What each code of a held-out utterance costs: time to the right, level 0 on top, bright is dear."""
        pictures = {}
        for name, bits in zip(self._held_out, self._costs(self._texts, most=1), strict=False):
            levels = bits / (1.2 * math.log2(self.recipe.model.codebook_size))
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

    def _costs(self, texts: Sequence[str] | None, most: int | None = None) -> list[Bits]:
        """Bits of each code [K, T] of the first block of held-out utterances, on the grid once it holds."""
        lm, steps = self.training.to_lm().to(self.training.device), self.training.grid_steps
        grids = None if steps is None else rounding_grids(steps)
        frames = CodecIdentity.from_card(self.codec).frames_per_block
        costs = []
        for number, codes in enumerate(list(self._held_out.values())[:most]):
            block = torch.from_numpy(codes[None, :, :frames].astype(np.int64)).to(self.training.device)
            text = None if texts is None else [texts[number]]
            costs.append(code_bits(lm, block, text=text, grids=grids)[0].cpu().numpy())
        return costs
