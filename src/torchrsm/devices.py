"""The devices that torch computes on: how they are named, which ones are there, and what each can do."""

from __future__ import annotations

import re
from typing import Annotated

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

DEVICE_FORMS = "auto|cpu|cuda|cuda:N|mps"
"""How a device is named, for people."""

_FORMS = "auto, cpu, cuda, cuda:N or mps"


def check_device_name(name: str) -> str:
    """Return the name of a device, whether it is there or not.

    Raises:
        ValueError: no device is named so.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name):
        raise ValueError(f"device must be {_FORMS}; got {name!r}")
    return name


def _in_settings(name: str) -> str:
    try:
        return check_device_name(name)
    except ValueError:
        raise PydanticCustomError("device_name", f"Input should be {_FORMS}") from None


DeviceName = Annotated[str, AfterValidator(_in_settings)]
"""The name of a device in settings: ``cpu``, ``cuda`` (the first one), ``cuda:N``, ``mps``, or ``auto``."""


def available_devices() -> list[str]:
    """Return the names of all devices of this machine, the CPU first."""
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of this name.

    ``auto`` is the first CUDA device if there is one, else the CPU. It is never ``mps``, which has no float64; that one
    must be asked for.

    Raises:
        ValueError: no device is named so, or there is no such device; the message names those that there are.
    """
    asked, names = check_device_name(str(name)), available_devices()
    first = next((other for other in names if other.startswith("cuda")), None)
    chosen = {"auto": first or "cpu", "cuda": first or "cuda"}.get(asked, asked)
    if chosen not in names:
        raise ValueError(f"device must be auto or one that is there, {', '.join(names)}; got {asked!r}")
    return torch.device(chosen)


def precise_type(device: torch.device) -> torch.dtype:
    """Return the type in which a device adds up errors and moves balls: float64 where there is one."""
    return torch.float32 if device.type == "mps" else torch.float64


def wait_for(device: torch.device) -> None:
    """Return when all work that was given to a device is done; on the CPU it always is."""
    if device.type in ("cuda", "mps"):
        torch.get_device_module(device).synchronize()
