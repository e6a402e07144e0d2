"""Walks nested states: the one place that knows how they are built.

A state is a tensor, None, or a (named) tuple of states. Batches come first in every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

StateT = TypeVar("StateT")


def map_state(function: Callable[..., Tensor], state: StateT, *others: StateT) -> StateT:
    """Return a state of the same form, each tensor of it ``function(tensor, *those of the others)``.

    Args:
        function: of a tensor, and of the tensors at the same place in the other states.
        state: decides the form; where it is None the result is None.
        others: states of the same form.

    Raises:
        ValueError: the others have another form.
    """
    if state is None:
        return None  # type: ignore[return-value]
    if isinstance(state, Tensor):
        return function(state, *others)  # type: ignore[return-value]
    rebuilt: StateT = _rebuilt(
        state,
        [map_state(function, *group) for group in zip(state, *others, strict=True)],  # type: ignore[call-overload]
    )
    return rebuilt


def detach(state: StateT) -> StateT:
    """Return a state without its graph."""
    return map_state(Tensor.detach, state)


def to_device(state: StateT, device: torch.device | str) -> StateT:
    """Return a state on a device; what is there already is not copied."""
    return map_state(lambda tensor: tensor.to(device), state)


def where(chosen: Tensor, state: StateT, other: StateT) -> StateT:
    """Return ``state`` for the streams that are ``chosen [batch]`` bool, ``other`` for the rest."""
    return map_state(lambda a, b: torch.where(chosen.view(-1, *[1] * (a.dim() - 1)), a, b), state, other)


def flatten(name: str, state: Any) -> dict[str, Tensor]:
    """Name the tensors of a state by their path, such as ``state.0.cells.index``; None is left out."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    return {
        key: value
        for field, part in zip(_names(state), state, strict=True)
        for key, value in flatten(f"{name}.{field}", part).items()
    }


def unflatten(name: str, like: StateT, tensors: Mapping[str, Tensor]) -> StateT:
    """Rebuild from the tensors of `flatten` a state of the form, and on the device, of ``like``.

    Raises:
        ValueError: a tensor is missing or of another shape or type.
    """
    if like is None:
        return None  # type: ignore[return-value]
    if isinstance(like, Tensor):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != like.shape or tensor.dtype != like.dtype:
            got = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"checkpoint must have {name} as {tuple(like.shape)} {like.dtype}; got {got}")
        return tensor.to(like.device)  # type: ignore[return-value]
    parts = [
        unflatten(f"{name}.{field}", part, tensors)
        for field, part in zip(_names(like), like, strict=True)  # type: ignore[call-overload]
    ]
    rebuilt: StateT = _rebuilt(like, parts)
    return rebuilt


def _names(state: Any) -> tuple[str, ...]:
    return getattr(state, "_fields", None) or tuple(str(i) for i in range(len(state)))


def _rebuilt(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
