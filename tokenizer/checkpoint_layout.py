"""How another library names a codec's tensors, and renaming them: ours hold all levels, theirs one each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Names that another library gives to the tensors of one codec."""

    networks: Mapping[str, str]  # our key -> theirs
    levels: Mapping[str, str]  # our key of a tensor [K, ...] -> theirs, "{}" for the level
    ignored: Callable[[str], bool] = lambda _: False  # their keys that inference does not need


def to_ours(theirs: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    """Rename, and stack the levels.

    Args:
        theirs: as read, weight norm folded.
        layout: their names.
        shapes: of our tensors, by which theirs are measured before anything is stacked.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or not of floats.
    """
    wanted = {name: shapes[key] for key, name in layout.networks.items()}
    for key, name in layout.levels.items():
        num_levels = min(shapes[key][0], len(theirs) + 1)  # a config may claim millions of them
        wanted |= {name.format(level): shapes[key][1:] for level in range(num_levels)}
    rest = {key for key in theirs if not layout.ignored(key)}
    missing, unknown = sorted(wanted.keys() - rest), sorted(rest - wanted.keys())
    if missing or unknown:
        raise ValueError(f"weights missing {missing[:3]}, not of this codec {unknown[:3]}")
    for name, shape in wanted.items():
        require_floats(name, theirs[name])
        if _without_last(theirs[name].shape, len(shape)) != shape:
            raise ValueError(f"{name} is {list(theirs[name].shape)}, not {list(shape)}")
    ours = {key: theirs[name].float() for key, name in layout.networks.items()}
    for key, name in layout.levels.items():
        levels = [theirs[name.format(level)].float().reshape(shapes[key][1:]) for level in range(shapes[key][0])]
        ours[key] = torch.stack(levels)
    return ours


def to_theirs(ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse: their names, one tensor a level. The tensors are views of ours."""
    theirs = {name: ours[key] for key, name in layout.networks.items()}
    for key, name in layout.levels.items():
        theirs |= {name.format(level): value for level, value in enumerate(ours[key])}
    return theirs


def require_floats(key: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor of integers, truth values or complex numbers."""
    if not tensor.is_floating_point():
        raise ValueError(f"{key} is of {tensor.dtype}, not of floats")


def _without_last(shape: Size, num_dims: int) -> Size:
    """A 1x1 convolution's weight [out, in, 1] is a matrix to us."""
    return shape[:num_dims] if all(size == 1 for size in shape[num_dims:]) else shape
