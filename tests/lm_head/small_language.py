"""A language of 16 codes whose rule a tiny model learns in seconds, and tiny models of every layout."""

import functools

import torch

from lm_head.coarse_first import CoarseFirstConfig, CoarseFirstLM
from lm_head.token_lm import LMConfig, TokenLM

SIZE, LEVELS = 16, 3
STRIDES = {"up": 1, "down": SIZE - 1}  # what level 0 goes on by in each frame
MODELS = ("parallel", "delay", "coarse_first")


def spoken(start, direction, num_frames):
    """[K, T]: level 0 counts, level 1 is its mirror image, level 2 is level 0 of the frame before."""
    level = (start + STRIDES[direction] * torch.arange(-1, num_frames)) % SIZE
    return torch.stack([level[1:], SIZE - 1 - level[1:], level[:-1]])


def utterances(count, num_frames, generator):
    """[B, K, T] and what each is: "up" or "down"."""
    starts = torch.randint(SIZE, (count,), generator=generator).tolist()
    directions = [sorted(STRIDES)[i] for i in torch.randint(2, (count,), generator=generator).tolist()]
    pairs = zip(starts, directions, strict=True)
    return torch.stack([spoken(start, direction, num_frames) for start, direction in pairs]), directions


def sharpened(lm):
    """A random model whose distributions are far from uniform, so that what it sees shows in what is drawn."""
    with torch.no_grad():
        for part in (lm.coarse, lm.fine) if isinstance(lm, CoarseFirstLM) else (lm,):
            part.head_weight.mul_(10)
    return lm


def tiny_lm(kind, *, text=False, seed=0):
    """Random weights, two layers of 32."""
    sizes = {"codebook_size": SIZE, "dim": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 64, "text": text}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind != "coarse_first":
            return TokenLM(LMConfig(num_codebooks=LEVELS, context_frames=12, layout=kind, **sizes))
        coarse = LMConfig(num_codebooks=1, context_frames=12, **sizes)
        fine = LMConfig(num_codebooks=LEVELS, context_frames=12, **sizes)
        return CoarseFirstLM(CoarseFirstConfig(coarse=coarse, fine=fine, stretch_frames=5))


@functools.cache
def taught_lm(kind, *, text, steps=300):
    """A tiny model that has learned the language; with text, one frame and the word for its direction suffice."""
    lm = tiny_lm(kind, text=text)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(lm.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    for step in range(steps):
        codes, directions = utterances(16, 16, generator)
        loss = lm.loss(codes, generator, text=directions if text else None, begins=step % 2 == 0)
        optimizer.zero_grad()
        loss.nats.backward()
        optimizer.step()
        schedule.step()
    return lm.eval()
