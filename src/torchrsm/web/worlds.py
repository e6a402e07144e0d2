"""The worlds that a session can watch. A world goes on for ever, one frame after another."""

from __future__ import annotations

import copy
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.streams import MovingMNIST, bouncing_ball_sequences, render_balls, simulate_balls

RADIUS = 1.2
RESOLUTION = 30
_TOUCH = 2 * RADIUS
_BOX = 10.0

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Seen(NamedTuple):
    """One frame of a world.

    Attributes:
        frame: ``[1, c, h, w]`` float32 in 0..1.
        start: whether nothing that was seen before belongs to it.
    """

    frame: Tensor
    start: bool


class World(Protocol):
    """Plays frames without end."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        ...

    def next(self) -> Seen:
        """Return the next frame."""
        ...

    def copy(self) -> Self:
        """Return a world that goes on from here by itself."""
        ...


class BallsWorld:
    """Bouncing balls, which a viewer can move while they fly.

    Args:
        balls: how many.
        seed: of where they begin.
    """

    def __init__(self, balls: int, seed: int) -> None:
        start = bouncing_ball_sequences(1, seed=seed, balls=balls, sequence_length=2)
        self.positions: NDArray[np.float64] = start.positions[0, 0].numpy().copy()
        self.velocities: NDArray[np.float64] = start.velocities[0, 0].numpy().copy()
        self._begun = False

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1, RESOLUTION, RESOLUTION)

    def next(self) -> Seen:
        """Move the balls and draw them."""
        start, self._begun = not self._begun, True
        if not start:
            positions, velocities = simulate_balls(self.positions[None], self.velocities[None], 2, radius=RADIUS)
            self.positions, self.velocities = positions[0, 1].numpy(), velocities[0, 1].numpy()
        return Seen(render_balls(self.positions[None], radius=RADIUS, resolution=RESOLUTION), start)

    def copy(self) -> Self:
        """Return a world that goes on from here by itself."""
        return copy.deepcopy(self)

    def place(self, ball: int | None, x: float, y: float, vx: float, vy: float) -> int:
        """Put a ball somewhere and return which; the nearest for None.

        It is kept inside the box and, as two balls cannot be in one place, away from the others.

        Raises:
            ValueError: there is no such ball.
        """
        if ball is not None and ball >= len(self.positions):
            raise ValueError(f"ball must be in 0..{len(self.positions) - 1}; got {ball}")
        wanted = np.clip(np.array([x, y]), RADIUS, _BOX - RADIUS)
        if ball is None:
            ball = int(np.argmin(np.square(self.positions - wanted).sum(1)))
        others = np.delete(self.positions, ball, 0)
        self.positions[ball] = _free_place(wanted, others)
        self.velocities[ball] = (vx, vy)
        return ball

    def draw(self, ball: int) -> Tensor:
        """Return one ball as it stands, alone, ``[1, 1, h, w]``."""
        return render_balls(self.positions[None, ball : ball + 1], radius=RADIUS, resolution=RESOLUTION)


def _free_place(wanted: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place nearest to the wanted one where a ball touches no other."""
    if not len(others) or np.linalg.norm(others - wanted, axis=1).min() >= _TOUCH:
        return wanted
    steps = np.arange(RADIUS, _BOX - RADIUS + 1e-9, 0.1)
    places = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    free = np.linalg.norm(places[:, None] - others[None], axis=2).min(1) >= _TOUCH
    if not free.any():  # six balls leave room; if they did not, the ball would go where it was wanted
        return wanted
    places = places[free]
    return np.asarray(places[np.square(places - wanted).sum(1).argmin()])


class DigitsWorld:
    """Moving MNIST, sequences one after another.

    Args:
        seed: of the sequences.
    """

    def __init__(self, seed: int) -> None:
        self._stream = MovingMNIST(1, seed=seed, split="test", resolution=32, sequence_length=200)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self._stream.frame_shape

    def next(self) -> Seen:
        """Return the next frame."""
        batch = next(self._stream)
        return Seen(batch.frames, bool(batch.starts[0]))

    def copy(self) -> Self:
        """Return a world that goes on from here by itself."""
        return copy.deepcopy(self)


def in_grey(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``[t, 1, h, w]`` of frames in grey or colour: the luma of ITU-R BT.601."""
    if frames.shape[1] == 1:
        return frames
    luma = np.rint(np.einsum("tchw,c->thw", frames, _LUMA)[:, None])
    return np.asarray(luma, dtype=np.uint8)


class ClipWorld:
    """A video, again and again.

    Args:
        frames: ``[t, c, h, w]`` uint8.
    """

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = frames
        self._position = 0

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self._frames.shape
        return (channels, height, width)

    def next(self) -> Seen:
        """Return the next frame."""
        frame = torch.from_numpy(self._frames[self._position][None].astype(np.float32) / 255)
        start = self._position == 0
        self._position = (self._position + 1) % len(self._frames)
        return Seen(frame, start)

    def copy(self) -> Self:
        """Return a world that goes on from here by itself, through the same frames."""
        return copy.copy(self)
