"""Muon for convolutions: gradient steps made orthogonal, the kernels of one shape all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Of Newton and Schulz's iteration, chosen by Keller Jordan so that five rounds bring every singular value near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_EPSILON = 1e-7

_MOMENTUM = "momentum"


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return ``[n, a, b]`` of matrices of that shape: the same singular vectors, all singular values near 1.

    Five rounds of ``X <- p X + (q X X^T + r (X X^T)^2) X``, from matrices of norm 1; singular values end in 0.6..1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _EPSILON)
    p, q, r = _COEFFICIENTS
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = p * x + (q * square + r * (square @ square)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, made orthogonal: every direction of a kernel learns at the same rate.

    A kernel ``[out, in, h, w]`` is one matrix, ``[out, in * h * w]``. Keller Jordan, "Muon: an optimizer for hidden
    layers in neural networks", 2024. It is `torch.optim.Muon` for kernels, in single precision: kernels of one
    shape share one batched product, which matters where they are small.

    Args:
        kernels: weights of convolutions ``[out, in, h, w]``, and whether each is of a transposed one,
            ``[in, out, h, w]``.
        lr: learning rate; the step of a matrix taller than wide is ``sqrt(height / width)`` times as large.
        momentum: in 0..1.

    Raises:
        ValueError: a rate or momentum out of range, or weights of another shape.
    """

    def __init__(self, kernels: Iterable[tuple[Tensor, bool]], lr: float, momentum: float = 0.95) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0; got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in 0..1, 1 excluded; got {momentum}")
        weights: dict[bool, list[Tensor]] = {False: [], True: []}
        for weight, transposed in kernels:
            if weight.dim() != 4:
                raise ValueError(f"kernels must have 4 dimensions; got the shape {list(weight.shape)}")
            weights[transposed].append(weight)
        groups = [{"params": own, "transposed": transposed} for transposed, own in weights.items() if own]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients; ``closure`` is not called."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight, change in zip(weights, self._changes(weights, group["momentum"]), strict=True):
                change = change.transpose(0, 1) if group["transposed"] else change
                alike[change.shape].append((weight, change.flatten(1)))
            for shape, entries in alike.items():
                steps = orthogonalised(torch.stack([matrix for _, matrix in entries]))
                # The rate may be a tensor, which a captured step reads anew.
                steps *= -group["lr"] * max(1.0, steps.shape[1] / steps.shape[2]) ** 0.5
                kernels = steps.view(len(entries), *shape)
                kernels = kernels.transpose(1, 2) if group["transposed"] else kernels
                torch._foreach_add_([weight for weight, _ in entries], kernels.unbind())

    def _changes(self, weights: list[Tensor], momentum: float) -> Sequence[Tensor]:
        """Take the gradients into the momenta; return Nesterov's look-ahead of each."""
        if not weights:
            return ()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        momenta: list[Tensor] = []
        for weight in weights:
            state: dict[str, Any] = self.state[weight]
            if not state:
                state[_MOMENTUM] = torch.zeros_like(weight)
            momenta.append(state[_MOMENTUM])
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, momenta, momentum)
