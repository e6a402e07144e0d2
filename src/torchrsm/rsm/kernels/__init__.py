"""Engines: the dense reference, the fused sparse kernels and CUDA's, and the one place that chooses between them."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from torchrsm.rsm.kernels.cpu import FusedEngine
from torchrsm.rsm.kernels.cuda import CudaEngine, triton_is_installed
from torchrsm.rsm.kernels.reference import ReferenceEngine
from torchrsm.rsm.kernels.step import Context, Engine, Step, Weights

__all__ = [
    "ENGINES",
    "Context",
    "Engine",
    "EngineEntry",
    "EngineName",
    "Step",
    "Weights",
    "check_engine",
    "choose_engine",
    "set_threads",
    "side_by_side",
    "threads",
    "threads_in_use",
]

_T = TypeVar("_T")

EngineName = str
"""A name in `ENGINES`, or ``auto`` for the first of them that serves the device and the type of the weights."""


class EngineEntry(NamedTuple):
    """An engine and what it serves.

    Attributes:
        engine: the implementation.
        devices: types of devices; None for all.
        dtypes: of the weights; None for all of floating point.
        package: what must be installed besides what torchrsm itself needs, and whether it is; None for nothing.
    """

    engine: Engine
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    package: tuple[str, Callable[[], bool]] | None = None

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether the engine computes with weights of this kind."""
        right_device = self.devices is None or device.type in self.devices
        return right_device and (self.dtypes is None or dtype in self.dtypes)

    @property
    def missing(self) -> str | None:
        """The package that the engine lacks, or None."""
        return None if self.package is None or self.package[1]() else self.package[0]


_fused = FusedEngine(threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

ENGINES: dict[str, EngineEntry] = {
    "cuda": EngineEntry(CudaEngine(), ("cuda",), (torch.float32,), ("triton", triton_is_installed)),
    "fused": EngineEntry(_fused, devices=("cpu",), dtypes=(torch.float32,)),
    "reference": EngineEntry(ReferenceEngine()),
}
"""The engines by name, the fastest first."""


def choose_engine(name: EngineName, device: torch.device, dtype: torch.dtype = torch.float32) -> Engine:
    """Return the engine of this name, or for ``auto`` the first one that serves weights of this kind.

    While a program is exported or compiled, ``auto`` is the reference, the one that is made of tensor operations alone.
    An engine that lacks a package is passed over with one warning in a process.

    Raises:
        ValueError: an unknown name, an engine that does not serve such weights, or one that lacks a package.
    """
    if name == "auto":
        if torch.compiler.is_compiling():
            return ENGINES["reference"].engine
        return _first_that_serves(device, dtype)
    check_engine(name)
    entry = ENGINES[name]
    if not entry.serves(device, dtype):
        devices = ", ".join(entry.devices or ("any device",))
        dtypes = ", ".join(str(kind) for kind in entry.dtypes or ("any floating-point type",))
        raise ValueError(f"engine {name!r} needs weights on {devices} of {dtypes}; got {device.type}, {dtype}")
    if entry.missing is not None:
        raise ValueError(f"engine {name!r} needs the package {entry.missing}, which is not installed")
    return entry.engine


def _first_that_serves(device: torch.device, dtype: torch.dtype) -> Engine:
    for name, entry in ENGINES.items():
        if entry.serves(device, dtype):
            if entry.missing is None:
                return entry.engine
            _warn_of_missing(name, entry.missing)
    raise AssertionError("the reference serves all")


@functools.cache  # once in a process
def _warn_of_missing(name: str, package: str) -> None:
    warnings.warn(
        f"engine {name!r} is left out, because the package {package} is not installed; a slower one is used",
        stacklevel=3,
    )


def check_engine(name: EngineName) -> None:
    """Raise a ValueError unless ``name`` is that of an engine, or ``auto``."""
    if name != "auto" and name not in ENGINES:
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}; got {name!r}")


def set_threads(count: int, torch_threads: int = 1) -> None:
    """Set how many threads the fused kernel and torch use.

    Sums over the batch are taken in one part for each thread of the kernel, so runs repeat bit by bit for the same
    count only. If the kernel has more than one thread, torch should have one: a second torch thread spins between its
    short tasks on the core that the kernel needs. A network that learns from several streams shares them out among the
    threads of the kernel (`side_by_side`). Where it learns from one stream alone, the kernel should have one thread.

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


def side_by_side(tasks: Sequence[Callable[[], _T]]) -> list[_T]:
    """Call each task, in the threads of the fused kernel where it has several, and return what each returned.

    No order is kept. No task may use the fused engine.
    """
    return _fused.side_by_side(tasks)


@contextmanager
def threads_in_use(count: int, torch_threads: int = 1) -> Iterator[None]:
    """Use so many threads (`set_threads`), and as many as before once the block has ended, however it ends.

    Within the block `set_threads` may change the numbers again.

    Raises:
        ValueError: a number below 1.
    """
    before = threads(), torch.get_num_threads()
    set_threads(count, torch_threads)
    try:
        yield
    finally:
        set_threads(*before)
