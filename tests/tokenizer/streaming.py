"""What tests of streaming layers share: seeded layers, noise, and streams cut into chunks."""

import torch
from hypothesis import strategies as st

CUTS = st.lists(st.integers(0, 6), min_size=1, max_size=8)


def seeded(build, *args, **kwargs):
    """A layer with the same random weights in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs).eval().requires_grad_(requires_grad=False)


def noise(*shape):
    """The same noise in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stream(layer, x, cuts, unit=1):
    """Step through x [B, C, S] in chunks of `cuts` units, then the rest, and end the stream."""
    state, pieces, position = layer.initial_state(x.shape[0]), [], 0
    for cut in [*(unit * cut for cut in cuts), x.shape[-1]]:
        y, state = layer.step(x[..., position : position + cut], state)
        pieces.append(y)
        position += cut
    rest = layer.finish(state)
    return torch.cat(pieces if rest is None else [*pieces, rest], dim=-1)
