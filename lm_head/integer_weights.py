"""The weights of a token language model as integers and step sizes: what its exact form is made of and stored as."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm_head.activation_grid import LIMIT, Slot, weight_steps
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer.errors import CheckpointError

MATRICES = ("project", "merge", "widen", "narrow")
NORMS = ("norm_attended", "norm_output")


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A linear layer: weights are `values` times `steps`, the bias is in floating point."""

    values: Tensor  # [N, M] int8
    steps: Tensor  # [N] float32
    bias: Tensor  # [N] float32

    def weight(self) -> Tensor:
        """[N, M] float32."""
        return self.values.float() * self.steps[:, None]


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """All of a model. Embeddings of level k are `embeddings[k]` times 2 ** shifts[k] times `embedding_step`."""

    config: LMConfig
    embeddings: Tensor  # [K, V + 1, D] int8
    shifts: Tensor  # [K] int8, 0 or more
    embedding_step: Tensor  # [] float32
    norm_input: tuple[Tensor, Tensor]  # gain and bias, [D] float32
    matrices: dict[str, IntegerMatrix]  # "0.project" ...
    norms: dict[str, tuple[Tensor, Tensor]]  # "0.norm_attended" ...
    heads: IntegerMatrix  # [K * V, D]
    steps: Tensor  # [layers + 1, slots] float32, of activations

    def to_tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        tensors = {
            "embeddings": self.embeddings,
            "shifts": self.shifts,
            "embedding_step": self.embedding_step,
            "steps": self.steps,
        }
        for name, (gain, bias) in {"norm_input": self.norm_input, **self.norms}.items():
            tensors |= {f"{name}.gain": gain, f"{name}.bias": bias}
        for name, matrix in {**self.matrices, "heads": self.heads}.items():
            tensors |= {f"{name}.values": matrix.values, f"{name}.steps": matrix.steps, f"{name}.bias": matrix.bias}
        return tensors

    @classmethod
    def from_tensors(cls, config: LMConfig, tensors: dict[str, Tensor]) -> IntegerWeights:
        """From what `to_tensors` made; other tensors are ignored.

        Raises:
            CheckpointError: a tensor is missing, or has another shape, type or range.
        """
        shapes = _shapes(config)
        for name, (dtype, shape) in shapes.items():
            if name not in tensors:
                raise CheckpointError(f"the integer language model lacks {name}")
            tensor = tensors[name]
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise CheckpointError(f"{name} is {found}, not {dtype} {list(shape)}")
            if dtype == torch.float32 and not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{name} holds values that are not finite")
            if name.endswith(("step", "steps")) and not bool((tensor > 0).all()):
                raise CheckpointError(f"{name} holds step sizes that are not positive")
        layers = range(config.num_layers)
        return cls(
            config,
            tensors["embeddings"],
            tensors["shifts"],
            tensors["embedding_step"],
            (tensors["norm_input.gain"], tensors["norm_input.bias"]),
            {f"{i}.{name}": _matrix(tensors, f"{i}.{name}") for i in layers for name in MATRICES},
            {f"{i}.{n}": (tensors[f"{i}.{n}.gain"], tensors[f"{i}.{n}.bias"]) for i in layers for n in NORMS},
            _matrix(tensors, "heads"),
            tensors["steps"],
        )


def _matrix(tensors: dict[str, Tensor], name: str) -> IntegerMatrix:
    return IntegerMatrix(tensors[f"{name}.values"], tensors[f"{name}.steps"], tensors[f"{name}.bias"])


def _shapes(config: LMConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    levels, size, dim, hidden = config.num_codebooks, config.codebook_size, config.dim, config.hidden_dim
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "embeddings": (torch.int8, (levels, size + 1, dim)),
        "shifts": (torch.int8, (levels,)),
        "embedding_step": (torch.float32, ()),
        "steps": (torch.float32, (config.num_layers + 1, len(Slot))),
    }
    outputs = {"project": (3 * dim, dim), "merge": (dim, dim), "widen": (hidden, dim), "narrow": (dim, hidden)}
    matrices = {f"{i}.{name}": outputs[name] for i in range(config.num_layers) for name in MATRICES}
    for name, (rows, columns) in {**matrices, "heads": (levels * size, dim)}.items():
        shapes[f"{name}.values"] = (torch.int8, (rows, columns))
        shapes[f"{name}.steps"] = (torch.float32, (rows,))
        shapes[f"{name}.bias"] = (torch.float32, (rows,))
    for name in ["norm_input", *(f"{i}.{name}" for i in range(config.num_layers) for name in NORMS)]:
        shapes |= {f"{name}.gain": (torch.float32, (dim,)), f"{name}.bias": (torch.float32, (dim,))}
    return shapes


@torch.no_grad()
def quantize(lm: TokenLM, steps: Tensor) -> IntegerWeights:
    """Round a model to integers.

    Args:
        lm: trained, best with `RoundingGrid` in the end.
        steps: [layers + 1, slots] of its activations, from training or `calibrated_steps`.
    """
    lm = lm.cpu()
    matrices: dict[str, IntegerMatrix] = {}
    norms: dict[str, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(lm.transformer_layers()):
        matrices |= {f"{index}.{name}": _rounded(getattr(layer, name)) for name in MATRICES}
        norms |= {f"{index}.{name}": _gain_and_bias(getattr(layer, name)) for name in NORMS}
    embeddings, shifts, step = _rounded_embeddings(lm.embeddings.detach())
    heads = _rounded_matrix(lm.head_weight.flatten(0, 1), lm.head_bias.flatten())
    norm_input = _gain_and_bias(lm.norm_input)
    return IntegerWeights(lm.config, embeddings, shifts, step, norm_input, matrices, norms, heads, steps.cpu().float())


@torch.no_grad()
def dequantize(weights: IntegerWeights) -> TokenLM:
    """The floating point model whose weights are exactly those of the integer one."""
    lm = TokenLM(weights.config)
    scale = weights.embedding_step * torch.exp2(weights.shifts.float())
    lm.embeddings.copy_(weights.embeddings.float() * scale[:, None, None])
    _set_norm(lm.norm_input, weights.norm_input)
    for index, layer in enumerate(lm.transformer_layers()):
        for name in MATRICES:
            matrix, linear = weights.matrices[f"{index}.{name}"], getattr(layer, name)
            linear.weight.copy_(matrix.weight())
            linear.bias.copy_(matrix.bias)
        for name in NORMS:
            _set_norm(getattr(layer, name), weights.norms[f"{index}.{name}"])
    lm.head_weight.copy_(weights.heads.weight().view_as(lm.head_weight))
    lm.head_bias.copy_(weights.heads.bias.view_as(lm.head_bias))
    return lm.eval().requires_grad_(requires_grad=False)


def _set_norm(norm: torch.nn.LayerNorm, values: tuple[Tensor, Tensor]) -> None:
    norm.weight.copy_(values[0])
    norm.bias.copy_(values[1])


def _gain_and_bias(norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight.detach().float().clone(), norm.bias.detach().float().clone()


def _rounded(linear: torch.nn.Linear) -> IntegerMatrix:
    return _rounded_matrix(linear.weight, linear.bias)


def _rounded_matrix(weight: Tensor, bias: Tensor) -> IntegerMatrix:
    steps = weight_steps(weight.float())
    values = (weight.float() / steps).round().clamp(-LIMIT, LIMIT).to(torch.int8)
    return IntegerMatrix(values, steps.squeeze(1).clone(), bias.detach().float().clone())


def _rounded_embeddings(embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coarser steps by powers of two where a level's values are larger: sums stay sums of integers."""
    largest = embeddings.float().abs().amax(dim=(1, 2)).clamp(min=1e-12)  # [K]
    shifts = torch.log2(largest / largest.min()).ceil()
    step = (largest / torch.exp2(shifts)).max() / LIMIT
    values = (embeddings.float() / (step * torch.exp2(shifts))[:, None, None]).round().clamp(-LIMIT, LIMIT)
    return values.to(torch.int8), shifts.to(torch.int8), step
