"""Bouncing balls as an environment of Gymnasium: an agent is shown a frame and says what the next one will be.

``gymnasium.make("torchrsm.environments:torchrsm/BouncingBalls-v0")`` imports this module and makes one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from torchrsm.streams.bouncing_balls import BOX, bouncing_ball_sequences

NAME = "torchrsm/BouncingBalls-v0"
"""By which `gymnasium.make` knows the environment once this module is imported."""

Frame = NDArray[np.float32]

_SEEDS = 2**31


class BouncingBallsEnv(gymnasium.Env[Frame, Frame]):
    """A sequence of bouncing balls is an episode; an action is the predicted next frame.

    An observation is a frame, ``[1, resolution, resolution]`` float32 in 0..1. So is an action; outside of 0..1 it
    is cut. The reward is minus the squared error, summed over the pixels: 0 for a perfect prediction. What the agent
    does changes nothing in the world. ``info`` holds ``positions``, the centres ``[balls, 2]`` (x, y) in 0..1; after
    a step ``frame_squared_error``.

    Args:
        balls: in the box.
        radius: of each, world units; the box has a side of 10.
        resolution: rows and columns of a frame.
        sequence_length: frames of an episode; it ends with the last one.
        speed: times that of the published world.
        render_mode: ``rgb_array`` for pictures ``[resolution, resolution, 3]`` uint8 from `render`, or None.

    Raises:
        ValueError: a setting is out of its range, as of `torchrsm.streams.bouncing_ball_sequences`, or another
            ``render_mode``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        balls: int = 3,
        radius: float = 1.2,
        resolution: int = 30,
        sequence_length: int = 100,
        speed: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None; got {render_mode!r}")
        self._world: dict[str, Any] = {
            "balls": balls,
            "radius": radius,
            "resolution": resolution,
            "sequence_length": sequence_length,
            "speed": speed,
        }
        self.render_mode = render_mode
        shape = (1, resolution, resolution)
        self._draw(0)
        self.observation_space = spaces.Box(0.0, 1.0, shape, np.float32)
        self.action_space = spaces.Box(0.0, 1.0, shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin a sequence and return its first frame; a seed decides which one, and those of the resets after it."""
        super().reset(seed=seed)
        self._draw(int(self.np_random.integers(_SEEDS)))
        return self._frames[0], self._info()

    def step(self, action: Frame) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Compare a prediction with the next frame, and return that frame.

        Raises:
            ValueError: the action is of another shape.
            RuntimeError: the episode has ended.
        """
        predicted = np.asarray(action, np.float32)
        if predicted.shape != self.action_space.shape:
            raise ValueError(f"action must have the shape {self.action_space.shape}; got {predicted.shape}")
        if self._time + 1 == len(self._frames):
            raise RuntimeError("the episode has ended; call reset")
        self._time += 1
        frame = self._frames[self._time]
        error = float(np.square(predicted.clip(0, 1).astype(np.float64) - frame).sum())
        ended = self._time + 1 == len(self._frames)
        return frame, -error, ended, False, {**self._info(), "frame_squared_error": error}

    def render(self) -> NDArray[np.uint8]:
        """Return the last frame as a picture, ``[resolution, resolution, 3]`` uint8."""
        grey = np.round(255 * self._frames[self._time][0]).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)

    def _draw(self, seed: int) -> None:
        sequences = bouncing_ball_sequences(1, seed=seed, **self._world)
        self._frames = sequences.frames[0].numpy()
        self._positions = sequences.positions[0].numpy() / BOX
        self._time = 0

    def _info(self) -> dict[str, Any]:
        return {"positions": self._positions[self._time]}


if NAME not in gymnasium.registry:
    gymnasium.register(NAME, f"{__name__}:{BouncingBallsEnv.__name__}")
