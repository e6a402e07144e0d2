"""All that a run needs to go on: one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrsm.storage.tensors import load_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"

FORMAT = "torchrsm-run-2"


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, foreign or of another format.
    """
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} must have the format {FORMAT}; got {header.get('format')}")
    return tensors, header


def optimiser_state(prefix: str, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return what an optimiser remembers of each weight, from the tensors whose names begin with ``prefix``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            parameter, key = name.removeprefix(prefix).split(".")
            state.setdefault(int(parameter), {})[key] = tensor
    return state


def lay_out_as_weights(optimiser: torch.optim.Optimizer) -> None:
    """Give what an optimiser remembers of a weight the memory layout of that weight.

    Files know none, and a fused step goes through the memory of both side by side.
    """
    for weight, entry in optimiser.state.items():
        for key, value in entry.items():
            if value.shape == weight.shape:
                entry[key] = torch.empty_like(weight, requires_grad=False).copy_(value)
