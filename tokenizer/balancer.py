"""The loss balancer: each loss gets the share of the gradient that its weight says, whatever its own scale.

Noting g_i the gradient of loss i with respect to the decoded waveform, n_i the mean over batch items of the norm that
it has for the item's own loss, and avg a moving average over steps, the balanced gradient is

    G = sum_i R * (w_i / sum_j w_j) * g_i / avg(n_i)

So G is, like the gradient of any mean over a batch, one B-th for each of B items, and mixes with those of losses that
are not balanced in the same proportion at every batch size. (The authors' code has g_i's norm as it is: G is B times
as long there.)

Source: EnCodec, arXiv:2210.13438, 3.4; norms by batch item are from the authors' code (audiocraft).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenizer.losses import mean_over_processes

_EPSILON = 1e-12  # a loss without any gradient yet keeps none


@dataclass(frozen=True, slots=True)
class BalancerState:
    """Moving averages of the gradients' norms, which are all that a balancer remembers."""

    sums: dict[str, float]  # of each loss: the decayed sum of its norms
    weights: dict[str, float]  # the decayed number of norms in it, so that a young average is not biased towards zero

    @classmethod
    def start(cls, names: Iterable[str]) -> BalancerState:
        """Nothing seen yet of these losses."""
        names = tuple(names)
        return cls(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BalancerState:
        """The inverse of `to_dict`.

        Raises:
            ValueError: the values are of something else.
        """
        if set(values) != {"sums", "weights"} or set(values["sums"]) != set(values["weights"]):
            raise ValueError(f"a balancer's state has sums and weights of the same losses, not {dict(values)!r}")
        return cls(dict(values["sums"]), dict(values["weights"]))

    def updated(self, norms: Mapping[str, float], decay: float) -> BalancerState:
        """With one more norm of some losses; the averages of the others stay."""
        sums = {name: self.sums[name] * decay + norm for name, norm in norms.items()}
        weights = {name: self.weights[name] * decay + 1.0 for name in norms}
        return BalancerState(self.sums | sums, self.weights | weights)

    @property
    def norms(self) -> dict[str, float]:
        """The averages, of the losses that were seen."""
        return {name: self.sums[name] / weight for name, weight in self.weights.items() if weight > 0}


def balance(
    losses: Mapping[str, Tensor],
    decoded: Tensor,
    weights: Mapping[str, float],
    state: BalancerState,
    *,
    decay: float = 0.999,
    total_norm: float = 1.0,
) -> tuple[Tensor, dict[str, float], BalancerState]:
    """The gradient that the decoder's output shall receive: `decoded.backward(gradient)`.

    Where each process has its part of the batch, all scale alike, and the mean over processes of the gradients of the
    weights is what one process with the whole batch would get.

    Args:
        losses: of this step, each a mean over the batch; may leave out some that the state knows. Their graphs are
            spent as far as they reach from `decoded`.
        decoded: [B, C, S], what the losses were computed from.
        weights: share of each loss; those of the losses at hand are normalised to a sum of 1.
        state: from `BalancerState.start` or the step before.
        decay: of the moving averages.
        total_norm: R, of one item's own balanced gradient, if all losses pulled in one direction.

    Returns:
        [B, C, S]; each loss's share of it, by norm in this step, 0 for one without a gradient; the next state.

    Raises:
        ValueError: a loss has no weight or is not in the state, or the weights are not positive together.
        FloatingPointError: a gradient is not finite on some process; the message names the loss.
    """
    unknown = losses.keys() - (weights.keys() & state.sums.keys())
    total_weight = sum(weights[name] for name in losses if name not in unknown)
    if unknown or total_weight <= 0:
        raise ValueError(f"losses {sorted(losses)} need weights {dict(weights)} above 0 and state {sorted(state.sums)}")
    last = list(losses)[-1]
    gradients = {
        name: torch.autograd.grad(loss, decoded, retain_graph=name != last)[0] for name, loss in losses.items()
    }
    norms = _item_norms(gradients)
    state = state.updated(norms, decay)
    means = state.norms
    scales = {name: total_norm * weights[name] / total_weight / (means[name] + _EPSILON) for name in losses}
    sizes = {name: scale * norms[name] for name, scale in scales.items()}
    whole = sum(sizes.values())
    shares = {name: size / whole if whole > 0 else 0.0 for name, size in sizes.items()}
    balanced = torch.zeros_like(decoded)
    for name, gradient in gradients.items():
        balanced.add_(gradient, alpha=scales[name])
    return balanced, shares, state


def _item_norms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean over batch items of the norm of an item's own gradient, by loss; over the items of all processes.

    A loss is a mean over B items, so an item's own gradient is B times its row, and the mean of B such norms is the sum
    of the rows' norms. However the items are spread over processes, the mean of that over processes is the same.

    Raises:
        FloatingPointError: a norm is not finite.
    """
    stacked = torch.stack(list(gradients.values())).flatten(2)  # [losses, B, C * S]
    sums = torch.linalg.vector_norm(stacked, dim=2, dtype=torch.float64).sum(dim=1)
    norms = dict(zip(gradients, mean_over_processes(sums).tolist(), strict=True))  # the only look at the device
    wrong = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if wrong:
        raise FloatingPointError(f"the gradient of a loss is not finite: {', '.join(wrong)}")
    return norms
