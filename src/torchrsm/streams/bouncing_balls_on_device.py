"""Bouncing balls made on a device: the world of `torchrsm.streams.bouncing_balls` in tensor operations alone.

So no frame crosses from the CPU, and one step can be captured as a CUDA graph. The host gives only the starts of the
sequences to come, once in so many steps as a sequence has frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from torchrsm.devices import precise_type
from torchrsm.state import map_state
from torchrsm.streams.bouncing_balls import BOX, MAX_EXPONENT, SUB_STEPS, BouncingBalls
from torchrsm.streams.stream import StreamBatch


class _World(NamedTuple):
    """What the next frame is made from: tensors on the device, which stay where they are and are written in place.

    Attributes:
        positions, velocities: ``[batch, balls, 2]``, of the frame that comes next.
        next_positions, next_velocities: ``[batch, balls, 2]``, with which each element begins its next sequence.
        numbers: ``[batch]`` int64, of the sequences.
        times: ``[batch]`` int64, in the sequences.
        unseen: ``[batch]`` bool, true before the first frame of all.
    """

    positions: Tensor
    velocities: Tensor
    next_positions: Tensor
    next_velocities: Tensor
    numbers: Tensor
    times: Tensor
    unseen: Tensor


class BouncingBallsOnDevice(BouncingBalls):
    """The stream `BouncingBalls`, made on a device: the same sequences, up to rounding, and the same positions.

    Positions are float64, where the device has that, else float32. A collision enlarges a difference. In float64 what
    comes of it stays below what a pixel shows; in float32 the balls of a sequence may part from those of the CPU.

    A step can be captured in place, for instance as a CUDA graph::

        stream.prepare()  # before each step: the host's part, mostly nothing
        stream.advance()  # tensor operations alone; captured once, it can be replayed
        stream.batch      # the same tensors after each step, with the new frames in them

    ``next`` does all of it and returns copies, which no later step overwrites.

    Args:
        batch_size, **settings: as of `BouncingBalls`.
        device: where the frames are made.

    Attributes:
        batch: what `advance` wrote last, on the device.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """

    def __init__(self, batch_size: int = 64, *, device: torch.device | str, **settings: Any) -> None:
        self._device = torch.device(device)
        self._world: _World | None = None
        super().__init__(batch_size, **settings)

    def __copy__(self) -> Self:
        """Return a stream at the same position, for `part`, that shares no tensors with this one."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__ | {"_world": None}
        return twin

    @property
    def device(self) -> torch.device:
        """Where the frames are made."""
        return self._device

    def __next__(self) -> StreamBatch:
        self.prepare()
        self.advance()
        return map_state(torch.clone, self.batch)

    def prepare(self) -> None:
        """Count the step that `advance` is about to take, and refill the starts of sequences when they are used up.

        In so many steps as a sequence has frames, each element begins exactly one sequence.
        """
        if self._steps_until_refill == 0:
            self._refill()
        self._steps_until_refill -= 1
        self._step += 1

    def advance(self) -> None:
        """Write the next frames to `batch`, then move the world on by one frame, all in place.

        Nothing is read by the host and no shape depends on a value.
        """
        assert self._world is not None
        world, radius = self._world, self._radius
        _render(world.positions, radius, self.batch.frames)
        torch.logical_or(world.times == 0, world.unseen, out=self.batch.starts)
        self.batch.index.copy_(world.numbers)

        world.unseen.zero_()
        _move(world.positions, world.velocities, radius)
        world.times.add_(1).remainder_(self._sequence_length)
        begins = world.times == 0
        world.numbers.add_(begins, alpha=self._batch_size)
        chosen = begins.view(-1, 1, 1)
        world.positions.copy_(torch.where(chosen, world.next_positions, world.positions))
        world.velocities.copy_(torch.where(chosen, world.next_velocities, world.velocities))

    def _seek(self, step: int) -> None:
        """Go to a step, as the CPU's stream does, and take its world to the device."""
        super()._seek(step)
        if self._world is None:
            self._world = self._empty_world()
        world = self._world
        world.positions.copy_(torch.from_numpy(self._positions))
        world.velocities.copy_(torch.from_numpy(self._velocities))
        world.numbers.copy_(torch.from_numpy(self._numbers))
        world.times.copy_(torch.from_numpy(self._times))
        world.unseen.fill_(step == 0)
        self._refill()

    def _empty_world(self) -> _World:
        kind, device, count = precise_type(self._device), self._device, len(self._positions)
        now, velocities, then, next_velocities = (
            torch.zeros(self._positions.shape, dtype=kind, device=device) for _ in range(4)
        )
        numbers, times, index = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3))
        unseen, starts = (torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2))
        frames = torch.zeros(count, *self.frame_shape, dtype=torch.float32, device=device)
        self.batch = StreamBatch(frames, starts, index)
        return _World(now, velocities, then, next_velocities, numbers, times, unseen)

    def _refill(self) -> None:
        """Draw, on the CPU, the sequence that each element begins next, and put its start on the device."""
        assert self._world is not None
        numbers, _ = self._elements(self._step)
        positions, velocities, _ = self._place(numbers + self._batch_size)
        self._world.next_positions.copy_(torch.from_numpy(positions), non_blocking=True)
        self._world.next_velocities.copy_(torch.from_numpy(velocities), non_blocking=True)
        self._steps_until_refill = self._sequence_length


def _move(positions: Tensor, velocities: Tensor, radius: float) -> None:
    """Move worlds ``[worlds, balls, 2]`` on by one frame, in place; pairs exchange in the order of the CPU's stream."""
    balls = positions.shape[1]
    pairs = [(i, j) for i in range(balls) for j in range(i)]
    for _ in range(SUB_STEPS):
        positions.add_(velocities / SUB_STEPS)
        back = velocities.abs()
        velocities.copy_(torch.where(positions - radius < 0, back, velocities))
        velocities.copy_(torch.where(positions + radius > BOX, -back, velocities))
        if not pairs:
            continue
        offsets = torch.stack([positions[:, i] - positions[:, j] for i, j in pairs])  # [pairs, worlds, 2]
        squared = offsets.square().sum(-1, keepdim=True)
        touch = (squared > 0) & (squared < 4 * radius * radius)
        offsets, squared = torch.where(touch, offsets, 0), torch.where(touch, squared, 1)
        for (i, j), offset, square in zip(pairs, offsets, squared, strict=True):
            closing = ((velocities[:, j] - velocities[:, i]) * offset).sum(-1, keepdim=True)
            exchange = closing / square * offset  # 0 where they do not touch
            velocities[:, i] += exchange
            velocities[:, j] -= exchange


def _render(positions: Tensor, radius: float, frames: Tensor) -> None:
    """Write the light of balls ``[n, balls, 2]`` to frames ``[n, 1, resolution, resolution]``, clipped at 1."""
    resolution = frames.shape[-1]
    centres = (torch.arange(resolution, dtype=positions.dtype, device=positions.device) + 0.5) * (BOX / resolution)
    across, down = (centres - positions[..., None]).square().unbind(2)  # each [n, balls, resolution]
    ratio = (across[..., None, :] + down[..., :, None]) / (radius * radius)
    exponent = ratio.square().square()
    light = torch.where(exponent <= MAX_EXPONENT, torch.exp(-exponent), 0).to(frames.dtype)
    frames.copy_(light.sum(1, keepdim=True).clamp(max=1))
