"""The random numbers of one run, kept apart from those of everything else in the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_WITH_GENERATOR = frozenset({"cuda", "mps", "xpu"})
_STRIDE = 0x9E3779B97F4A7C15  # odd in its lower half, too: torch's generator of the CPU takes 32 bits of a seed


class Randomness:
    """The states of torch's global generators as a run left them (while it works: as others left them).

    Layers draw from torch's global generators. While a run works, `in_use` puts its own states there, and afterwards
    those that it found. So two runs in one process, or a run and the program around it, draw what each would alone. A
    CUDA graph takes its numbers from where the generator stands when it is replayed, so this holds for graphs, too.

    Args:
        seed: of the generators.
        device: on which the run computes; its generator is kept beside that of the CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device if device.type in _WITH_GENERATOR else None
        self._active = False
        self._states = {"cpu": torch.Generator().manual_seed(seed).get_state()}
        if self._device is not None:
            self._states[self._device.type] = torch.Generator(self._device).manual_seed(seed).get_state()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Draw from the run's generators until the end of the block, however it ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within `in_use`, let others draw from their own generators until the end of this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states by the type of their device."""
        return self._read() if self._active else dict(self._states)

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Go on, at the next `in_use`, from states that were saved; a generator without one stays as it is."""
        self._states |= {name: state for name, state in states.items() if name in self._states}

    def _swap(self) -> None:
        """Exchange the states that are kept here with those of the global generators."""
        found = self._read()
        torch.set_rng_state(self._states["cpu"])
        if self._device is not None:
            _set(self._device, self._states[self._device.type])
        self._states, self._active = found, not self._active

    def _read(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device is not None:
            states[self._device.type] = _get(self._device)
        return states


def _get(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def _set(device: torch.device, state: Tensor) -> None:
    module = torch.get_device_module(device)
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


def seed_of(rank: int, seed: int) -> int:
    """Return the seed of what process ``rank`` of a run draws while it learns, 0 to 2^63 - 1; rank 0 keeps ``seed``."""
    return (seed + rank * _STRIDE) % 2**63
