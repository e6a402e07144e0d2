"""The checkpoint of a run: one file with all that it needs to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrsm.storage.tensors import load_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"

FORMAT = "torchrsm-run-3"

RANDOM = {"cpu": "random", "cuda": "random.cuda", "mps": "random.mps", "xpu": "random.xpu"}
"""The tensor that holds the state of a device's generator of random numbers, by the type of the device."""


def random_name(device: str, rank: int) -> str:
    """Return the name of the tensor that holds the state of a generator of one of the processes that train together."""
    return RANDOM[device] if rank == 0 else f"rank.{rank}.{RANDOM[device]}"


_FORMER_TERMS = ("squared error", "adversarial loss", "discriminator's loss", "motion loss")
"""What checkpoints once summed of a rectifier, whether a term had a weight or not."""


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


def saved_sums(header: Mapping[str, Any], loss_names: Sequence[str]) -> list[float]:
    """Return the sums since the last record: frames, their error, and one for each loss.

    There are none just after a record, nor where a run is extended so that it goes on in another phase.

    Terms without a weight, which older checkpoints hold as zeros, are left out.

    Args:
        header: of a checkpoint.
        loss_names: of the phase that goes on.
    """
    frames, error, *losses = header["sums"] or [0.0, 0.0]
    layers = [name for name in loss_names if name.startswith("loss/")]
    former = loss_names if len(losses) == len(loss_names) else [*layers, *(f"rectifier/{t}" for t in _FORMER_TERMS)]
    by_name = dict(zip(header.get("loss_names", former), losses, strict=False))
    return [frames, error, *(by_name[n] for n in loss_names)] if by_name.keys() >= set(loss_names) else []


def layouts(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the strides of tensors, for the header; those that leave gaps or overlap are left out."""
    found = {}
    for name, tensor in tensors.items():
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if last + 1 == tensor.numel():
            found[name] = list(tensor.stride())
    return found


def laid_out(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors in the memory layout that they had when they were saved, as far as the header tells.

    Files store no layout, but torch chooses a convolution by that of its input, and another one rounds differently.
    """
    strides = header.get("layouts", {})
    return {
        name: torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype).copy_(tensor)
        if len(strides.get(name, ())) == tensor.dim() > 0
        else tensor
        for name, tensor in tensors.items()
    }


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

    Files store no layout, and a fused step needs the same one for both.
    """
    for weight, entry in optimiser.state.items():
        for key, value in entry.items():
            if value.shape == weight.shape:
                entry[key] = torch.empty_like(weight, requires_grad=False).copy_(value)
