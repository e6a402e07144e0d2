"""The device that tests compute on, as ``pytest --device`` names it: ``cpu``, ``cuda``, ``mps`` or ``foreign``.

``foreign`` is the stand-in of `foreign_device`: what mixes devices fails on it, also where there is but a CPU.
"""

from typing import Any

import torch

from torchrsm.state import to_device

CHOICES = ("cpu", "cuda", "mps", "foreign")

_chosen = {"name": "cpu"}


def choose(name: str) -> None:
    """Let all tests compute on a device; before they are imported."""
    _chosen["name"] = name


def is_foreign() -> bool:
    """Whether that is the stand-in."""
    return _chosen["name"] == "foreign"


def device_name() -> str:
    """Return its name in settings."""
    return "cuda" if is_foreign() else _chosen["name"]


def device() -> torch.device:
    """Return it, with its number, as tensors have it."""
    return torch.device("cuda", 0) if device_name() == "cuda" else torch.device(device_name())


def here(value: Any) -> Any:
    """Move a module, a tensor or a state there."""
    return value.to(device()) if isinstance(value, torch.nn.Module) else to_device(value, device())


def random_state() -> tuple[torch.Tensor, ...]:
    """Return the states of the generators that a computation there draws from."""
    own = [torch.get_device_module(device()).get_rng_state()] if device_name() != "cpu" else []
    return (torch.get_rng_state(), *own)


def set_random_state(states: tuple[torch.Tensor, ...]) -> None:
    """Go back to what `random_state` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device()).set_rng_state(state)
