"""The language models of the `encodec` package: their files as a `TokenLM` and back, their evaluation to the last bit.

The package codes with floats that are rounded down to 1e-8. Another order of operations, another processor or another
version of torch changes some of them, and a stream written before is noise from there on. Such streams are therefore
only as portable as the original's own: same machine, same torch, same number of threads. Streams for any machine are
what `.qtn` is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn import functional

from lm_head.token_lm import LMConfig, TokenLM
from tokenizer.checkpoint_file import checked_tensors, named_hash, read_torch_file
from tokenizer.checkpoint_layout import Layout, to_ours, to_theirs
from tokenizer.codec_weights import blamed_on
from tokenizer.errors import CheckpointError

_NUM_HEADS, _MAX_PERIOD = 8, 10000.0  # leave no trace in a state dict; all released models have them
_CONTEXT_FRAMES = {16: 525}  # nor does this: 3.5 s, at the 150 frames/s of the model with 16 levels
_OTHER_CONTEXT_FRAMES = 262  # and at 75

_LAYER_NAMES = {
    "project.weight": "self_attn.in_proj_weight",
    "project.bias": "self_attn.in_proj_bias",
    "merge": "self_attn.out_proj",
    "norm_attended": "norm1",
    "widen": "linear1",
    "narrow": "linear2",
    "norm_output": "norm2",
}
_LEVELS = {"embeddings": "emb.{}.weight", "head_weight": "linears.{}.weight", "head_bias": "linears.{}.bias"}


def load_encodec_lm(path: str | Path, *, context_frames: int | None = None) -> TokenLM:
    """A language model from a file of the `encodec` package, such as encodec_lm_24khz-1608e3c0.th.

    Args:
        path: what `torch.save` made of its state dict.
        context_frames: how far it sees, which the file does not say. None for that of the released models: 525 for
            those of 16 levels (48 kHz), 262 for all others.

    Raises:
        CheckpointError: damaged, of another layout, or with weights that are not finite.
    """
    path = Path(path)
    tensors = checked_tensors(read_torch_file(path), path)
    with blamed_on(path):
        config = _config_from_shapes(tensors, context_frames)
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in TokenLM(config).state_dict().items()}
        weights = to_ours(tensors, _layout(shapes), shapes)
        for key, value in weights.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{key} has values that are NaN or infinite")
        lm = TokenLM(config)
        lm.load_state_dict(weights)
        return lm.eval().requires_grad_(requires_grad=False)


def export_encodec_lm(lm: TokenLM, path: str | Path) -> None:
    """Write a language model as a file that the `encodec` package's `LMModel` loads.

    Raises:
        CheckpointError: the layout cannot hold the model, or the file's name promises a hash.
    """
    path = Path(path)
    tensors = original_tensors(lm)
    if named_hash(path) is not None:
        raise CheckpointError(f"the end of {path.name} would be taken for the start of the file's sha256")
    torch.save(tensors, path)


def original_tensors(lm: TokenLM) -> dict[str, Tensor]:
    """The state dict that `encodec`'s `LMModel` has, float32 on the CPU, each tensor on its own.

    Raises:
        CheckpointError: the model has other than 8 heads or another period, which the layout cannot say.
    """
    config = lm.config
    if (config.num_heads, config.max_period) != (_NUM_HEADS, _MAX_PERIOD):
        raise CheckpointError(
            f"the layout of encodec's language models has {_NUM_HEADS} heads and a period of {_MAX_PERIOD:g}, not "
            f"{config.num_heads} and {config.max_period:g}"
        )
    ours = {key: value.detach().cpu().float() for key, value in lm.state_dict().items()}
    return {key: value.clone() for key, value in to_theirs(ours, _layout(ours)).items()}


class OriginalState(NamedTuple):
    """Where a stream stands."""

    layers: tuple[Tensor, ...]  # inputs of each layer, [1, P, D]
    position: int


class OriginalLM(nn.Module):
    """The original's evaluation of a language model, one frame after another, operation for operation.

    The modules are torch's own, named as in the original, and called with the same shapes and strides: only so do
    the last bits agree. Everything stays on the CPU.

    Args:
        lm: whose weights are copied.

    Raises:
        CheckpointError: as `original_tensors`.
    """

    def __init__(self, lm: TokenLM) -> None:
        super().__init__()
        self.config = config = lm.config
        weights = original_tensors(lm)
        with torch.device("meta"):
            levels = range(config.num_codebooks)
            self.emb = nn.ModuleList(nn.Embedding(config.codebook_size + 1, config.dim) for _ in levels)
            self.linears = nn.ModuleList(nn.Linear(config.dim, config.codebook_size) for _ in levels)
            self.transformer = nn.ModuleDict(
                {
                    "norm_in": nn.LayerNorm(config.dim),
                    "layers": nn.ModuleList(
                        nn.TransformerEncoderLayer(
                            config.dim, config.num_heads, config.hidden_dim, dropout=0.0, batch_first=True
                        )
                        for _ in range(config.num_layers)
                    ),
                }
            )
        self.load_state_dict(weights, assign=True)
        self.eval()

    def begin(self, num_codebooks: int) -> tuple[Tensor, OriginalState]:
        """Probabilities [K, V] of a stream's first frame, and the state behind it."""
        zeros = torch.zeros(1, 1, self.config.dim)
        nothing = torch.zeros(1, num_codebooks, 1, dtype=torch.int64)
        return self._step(nothing, OriginalState((zeros,) * self.config.num_layers, 0))

    def step(self, codes: Tensor, state: OriginalState) -> tuple[Tensor, OriginalState]:
        """Probabilities [K, V] of the frame behind one with the codes [K], and the state behind that."""
        return self._step(1 + codes[None, :, None], state)

    @torch.no_grad()
    def _step(self, shifted: Tensor, state: OriginalState) -> tuple[Tensor, OriginalState]:
        """From [1, K, 1], where 0 is no code and others are 1 too large."""
        num_codebooks = shifted.shape[1]
        x = sum(self.emb[level](shifted[:, level]) for level in range(num_codebooks))
        x = self.transformer["norm_in"](x) + self._sinusoids(state.position)
        layers = []
        for layer, past in zip(self.transformer["layers"], state.layers, strict=True):  # type: ignore[call-overload]
            x, inputs = self._layer(layer, x, past)
            layers.append(inputs[:, -self.config.context_frames :])
        heads = [self.linears[level](x) for level in range(num_codebooks)]
        logits = torch.stack(heads, dim=1).permute(0, 3, 1, 2)  # [1, V, K, 1]
        probabilities = torch.softmax(logits, dim=1)[0, :, :, 0].T
        return probabilities, OriginalState(tuple(layers), state.position + 1)

    def _layer(self, layer: nn.TransformerEncoderLayer, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Output [1, 1, D], and what the layer has seen so far [1, P + 1, D]."""
        seen = torch.cat([past, x], dim=1)
        nothing_hidden = torch.zeros(1, seen.shape[1], dtype=torch.bool)  # a mask, even an empty one, picks the kernel
        attended = layer.self_attn(x, seen, seen, attn_mask=nothing_hidden, need_weights=False)[0]
        x = layer.norm1(x + attended)
        return layer.norm2(x + layer.linear2(functional.gelu(layer.linear1(x)))), seen

    def _sinusoids(self, position: int) -> Tensor:
        half = self.config.dim // 2
        steps = torch.arange(half).view(1, 1, -1)
        phase = (torch.arange(1).view(1, -1, 1) + position) / (self.config.max_period ** (steps / (half - 1)))
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


def _layout(keys: Iterable[str]) -> Layout:
    """Their names for the tensors of a `TokenLM`."""
    networks = {}
    for key in keys:
        found = re.fullmatch(r"layers\.([0-9]+)\.(.*)", key)
        if found is not None:
            module, _, name = found[2].rpartition(".")
            theirs = _LAYER_NAMES.get(found[2]) or f"{_LAYER_NAMES[module]}.{name}"
            networks[key] = f"transformer.layers.{found[1]}.{theirs}"
        elif key not in _LEVELS:
            networks[key] = key.replace("norm_input.", "transformer.norm_in.")
    return Layout(networks, _LEVELS)


def _config_from_shapes(tensors: Mapping[str, Tensor], context_frames: int | None) -> LMConfig:
    """Sizes of the model; all of them no larger than what the tensors hold."""
    levels = sum(re.fullmatch(r"emb\.[0-9]+\.weight", key) is not None for key in tensors)
    layers = sum(re.fullmatch(r"transformer\.layers\.[0-9]+\.linear1\.weight", key) is not None for key in tensors)
    rows, dim = _matrix_shape(tensors, "emb.0.weight")
    hidden_dim, _ = _matrix_shape(tensors, "transformer.layers.0.linear1.weight")
    if context_frames is None:
        context_frames = _CONTEXT_FRAMES.get(levels, _OTHER_CONTEXT_FRAMES)
    return LMConfig(
        num_codebooks=levels,
        codebook_size=rows - 1,
        dim=dim,
        num_layers=layers,
        num_heads=_NUM_HEADS,
        hidden_dim=hidden_dim,
        context_frames=context_frames,
        max_period=_MAX_PERIOD,
    )


def _matrix_shape(tensors: Mapping[str, Tensor], key: str) -> Size:
    if key not in tensors:
        raise ValueError(f"not a language model of the encodec package: weights missing {key}")
    if tensors[key].dim() != 2:
        raise ValueError(f"{key} is {list(tensors[key].shape)}, not a matrix")
    return tensors[key].shape
