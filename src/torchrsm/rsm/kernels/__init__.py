"""Engines: the dense reference and the fused sparse kernels, and the one place that chooses between them."""

from __future__ import annotations

import os
from typing import Literal

import torch

from torchrsm.rsm.kernels.cpu import FusedEngine
from torchrsm.rsm.kernels.reference import ReferenceEngine
from torchrsm.rsm.kernels.step import Context, Engine, Step, Weights

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


def set_threads(count: int, torch_threads: int = 1) -> None:
    """Say how many threads the fused kernel and torch use.

    Sums over the batch are taken in one part for each thread of the kernel, so runs repeat bit by bit for the same
    count only. Where the kernel has more than one thread torch should have one: a second torch thread spins between its
    short tasks on the core that the kernel needs. Where torch does most of the work (a rectifier) it is the other way
    round.

    Raises:
        ValueError: a number below 1.
    """
    for name, value in (("threads", count), ("torch_threads", torch_threads)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1; got {value}")
    torch.set_num_threads(torch_threads)
    _fused.threads = count


def threads() -> int:
    """Return how many threads the fused kernel uses."""
    return _fused.threads
