"""The devices of this machine on which a run can learn."""

from __future__ import annotations

import torch


def available_devices() -> list[str]:
    """Return the names of all devices that a run can be given, the CPU first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def choose_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` is the CPU, whose engine is the fastest that there is.

    Raises:
        ValueError: there is no such device; the message names those that there are.
    """
    names = available_devices()
    chosen = {"auto": "cpu", "cuda": "cuda:0"}.get(name, name)
    if chosen not in names:
        raise ValueError(f"device must be auto or one that is there, {', '.join(names)}; got {name!r}")
    return torch.device(chosen)
