"""Engines: the dense reference and the fused sparse kernels, and the one place that chooses between them."""

from __future__ import annotations

import os
from typing import Literal

import torch

from torchrsm.kernels.cpu import FusedEngine
from torchrsm.kernels.reference import ReferenceEngine
from torchrsm.kernels.step import Context, Engine, Step, Weights

__all__ = ["Context", "Engine", "EngineName", "Step", "Weights", "choose_engine", "set_threads", "threads"]

EngineName = Literal["auto", "fused", "reference"]

_reference = ReferenceEngine()
_fused = FusedEngine(threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def choose_engine(name: EngineName, device: torch.device) -> Engine:
    """Return the engine for a device: ``auto`` is the fused kernel where there is one, else the dense reference.

    Raises:
        ValueError: unknown name, or ``fused`` on a device that has no fused kernel.
    """
    if name not in ("auto", "fused", "reference"):
        raise ValueError(f"engine must be one of auto, fused, reference; got {name!r}")
    if name == "fused" and device.type != "cpu":
        raise ValueError(f"engine 'fused' runs on device cpu; got {device.type!r} (use 'auto' or 'reference')")
    return _fused if device.type == "cpu" and name != "reference" else _reference


def set_threads(count: int) -> None:
    """Use this many threads in the fused kernel, and one in torch.

    Sums over the batch are taken in one part for each thread, so runs repeat bit by bit for the same count only. A
    second torch thread would spin between its short tasks on the core that the kernel needs.

    Raises:
        ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"threads must be >= 1; got {count}")
    torch.set_num_threads(1)
    _fused.threads = count


def threads() -> int:
    """Return how many threads the fused kernel uses."""
    return _fused.threads
