"""New codes from a language model, frame by frame as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lm_head.coarse_first import CoarseFirstLM, LanguageModel
from lm_head.layouts import delayed
from lm_head.sampling import Sampling, draw_codes, row_generators
from lm_head.text_prefix import checked_text
from lm_head.token_lm import TokenLM
from tokenizer.errors import CodesError

_TO_BE_DRAWN = -1


def generate(
    lm: LanguageModel,
    prompt: Tensor,
    num_frames: int,
    *,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    text: Sequence[str] | None = None,
) -> Iterator[Tensor]:
    """Go on where a prompt ends.

    A model in layout "parallel" gives one frame after another; in layout "delay" too, the first one after as many steps
    as there are levels; a CoarseFirstLM gives `stretch_frames` at a time, and draws level 0 only: it takes the
    likeliest codes of the others, as VALL-E does.

    Args:
        lm: what to ask, on any device.
        prompt: [B, K, P] int64 codes to go on from. P may be 0: B and K say how many streams and levels are wanted.
        num_frames: how many to add.
        sampling: temperature, top_k and top_p; None draws from the model's own distribution.
        seed: as in `row_generators`: what a row draws depends on its own seed only.
        text: a transcript for each row, of the prompt and of what is to come, for models that take them.

    Returns:
        [B, K, n] int64 codes, n >= 1 and `num_frames` in total, each as soon as it is known, without the prompt.

    Raises:
        CodesError: a prompt that is no codes of this model.
        ValueError: fewer than 1 frame, wrong seeds, or text that the model cannot take.
    """
    _check_prompt(prompt, lm)
    if num_frames < 1:
        raise ValueError(f"at least 1 frame must be asked for, not {num_frames}")
    checked_text(text, len(prompt), known=lm.config.text)
    generators = row_generators(seed, len(prompt))
    chosen = sampling or Sampling()
    prompt = prompt.to(next(lm.parameters()).device)
    if isinstance(lm, TokenLM):
        return _steps(lm, prompt, num_frames, (chosen, generators, text))
    return _stretches(lm, prompt, num_frames, (chosen, generators, text))


_Manner = tuple[Sampling, Sequence[torch.Generator], Sequence[str] | None]


def _steps(lm: TokenLM, prompt: Tensor, num_frames: int, manner: _Manner) -> Iterator[Tensor]:
    """Frame by frame. In layout "delay" the last code of a frame is known `lag` steps after its first."""
    sampling, generators, text = manner
    rows, num_codebooks, prompt_frames = prompt.shape
    plan = torch.cat([prompt, prompt.new_full((rows, num_codebooks, num_frames), _TO_BE_DRAWN)], dim=-1)
    lag = 0
    if lm.config.layout == "delay":
        plan, lag = delayed(plan, lm.config.codebook_size), num_codebooks - 1
    logits, state = lm.begin(rows, num_codebooks, text=text)
    if prompt_frames:
        logits, state = lm.step(plan[..., :prompt_frames], state)
    for step in range(prompt_frames, plan.shape[-1]):
        drawn = draw_codes(logits[:, -1], sampling, generators)
        plan[..., step] = drawn.where(plan[..., step] == _TO_BE_DRAWN, plan[..., step])
        if step - lag >= prompt_frames:
            frame = plan[..., step - lag : step + 1]  # level k is lag - k steps back
            yield frame.diagonal(dim1=1, dim2=2)[..., None].clone() if lag else frame.clone()
        if step + 1 < plan.shape[-1]:
            logits, state = lm.step(plan[..., step : step + 1], state)


def _stretches(lm: CoarseFirstLM, prompt: Tensor, num_frames: int, manner: _Manner) -> Iterator[Tensor]:
    """Some frames of level 0 at a time, and then their other levels."""
    coarse = _steps(lm.coarse, prompt[:, :1], num_frames, manner)
    past, longest = prompt, lm.config.stretch_frames
    for start in range(0, num_frames, longest):
        count = min(longest, num_frames - start)
        stretch = torch.cat([next(coarse) for _ in range(count)], dim=-1)
        filled = lm.fine.fill(stretch, prompt.shape[1], past=past, text=manner[2])
        past = torch.cat([past, filled], dim=-1)[..., -lm.fine.config.context_frames :]
        yield filled


def _check_prompt(prompt: Tensor, lm: LanguageModel) -> None:
    config = lm.config
    if prompt.ndim != 3 or prompt.dtype != torch.int64 or not prompt.shape[0]:
        raise CodesError(f"a prompt is int64 [B, K, P], not {prompt.dtype} {list(prompt.shape)}")
    if not 1 <= prompt.shape[1] <= config.num_codebooks:
        raise CodesError(f"the prompt has {prompt.shape[1]} levels, the language model knows {config.num_codebooks}")
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < config.codebook_size:
        raise CodesError(f"codes of the prompt are not all in 0 to {config.codebook_size - 1}")
