"""The optimisers that more than one way of learning uses, as fast as a device allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from torchrsm.learning.muon import Muon

_Optimiser = TypeVar("_Optimiser", bound=torch.optim.Optimizer)

_FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})


def has_fused_steps(weights: Sequence[Tensor]) -> bool:
    """Return whether torch updates all weights at once, in one pass, on the device where they are."""
    return all(weight.device.type in _FUSED for weight in weights)


def forget_gradients(weights: Iterable[Tensor]) -> None:
    """Drop the gradients of weights, as `torch.nn.Module.zero_grad` does, which looks for its weights each time."""
    for weight in weights:
        weight.grad = None


def adam(
    weights: Sequence[Tensor],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Return Adam for weights that are all on one device."""
    return with_rates_on_device(
        torch.optim.Adam(
            weights, learning_rate, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=has_fused_steps(weights)
        )
    )


def with_muon(
    weights: Sequence[nn.Parameter],
    kernels: Sequence[tuple[Tensor, bool]],
    rate: float,
    matrix_rate: float | None,
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return the optimisers of weights, and the learning rate of each: Muon for kernels and another for the rest.

    Args:
        weights: all that one loss changes, at least one.
        kernels: of convolutions, and whether each is transposed, see `torchrsm.rectifiers.contract.kernels_of`; those
            that are not among the weights are left out.
        rate: of the other optimiser, > 0.
        matrix_rate: of Muon, > 0; None for the other optimiser there, too.
        make: returns the other optimiser, for the weights that it is given.
    """
    own = {id(weight) for weight in weights}
    chosen = [] if matrix_rate is None else [pair for pair in kernels if id(pair[0]) in own]
    by_muon = {id(kernel) for kernel, _ in chosen}
    others = [weight for weight in weights if id(weight) not in by_muon]
    found: list[tuple[torch.optim.Optimizer, float]] = [(make(others), rate)] if others else []
    if matrix_rate is not None and chosen:
        found.append((with_rates_on_device(Muon(chosen, matrix_rate)), matrix_rate))
    return found


def with_rates_on_device(optimiser: _Optimiser) -> _Optimiser:
    """Make each rate of weights on a CUDA device a tensor there, which a captured step reads; return the optimiser."""
    for group in optimiser.param_groups:
        device = group["params"][0].device
        if device.type == "cuda":
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
    return optimiser


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights, in place where it is a tensor, so that a captured step follows it."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
