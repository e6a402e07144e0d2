"""Walks nested states, (named) tuples of tensors: the one place that knows how they are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(name: str, tree: Any) -> dict[str, Tensor]:
    """Name the tensors of nested tuples by their path, such as ``state.0.cells.index``; None is left out."""
    if tree is None:
        return {}
    if isinstance(tree, Tensor):
        return {name: tree}
    fields = getattr(tree, "_fields", None) or [str(i) for i in range(len(tree))]
    return {
        key: value
        for field, part in zip(fields, tree, strict=True)
        for key, value in flatten(f"{name}.{field}", part).items()
    }


def unflatten(name: str, like: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild the nested tuples of `flatten` in the form of ``like``.

    Raises:
        ValueError: a tensor is missing or of another shape or type.
    """
    if like is None:
        return None
    if isinstance(like, Tensor):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != like.shape or tensor.dtype != like.dtype:
            got = "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"checkpoint must have {name} as {tuple(like.shape)} {like.dtype}; got {got}")
        return tensor
    fields = getattr(like, "_fields", None)
    names = fields or [str(i) for i in range(len(like))]
    parts = [unflatten(f"{name}.{field}", part, tensors) for field, part in zip(names, like, strict=True)]
    return type(like)(*parts) if fields else type(like)(parts)
