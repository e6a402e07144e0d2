"""Bouncing balls whose future is not certain: some are kicked at any time, others turn left or right at a mark.

They follow the rules of `torchrsm.streams.bouncing_balls` in all else. What chance does at a frame of a sequence is a
function of the seed, the number of the sequence and the frame alone, and no speed ever changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.streams.bouncing_balls import (
    BOX,
    BallSequences,
    BouncingBalls,
    FloatArray,
    Playing,
    render_balls,
    simulate_balls,
)
from torchrsm.streams.random import WEYL, mix, uniform

MARK = 0.3
"""How bright the mark is."""


class KickedBalls(BouncingBalls):
    """The stream `BouncingBalls`, in which each ball is kicked now and then: its direction changes, its speed does not.

    Args:
        batch_size: sequences played side by side, 1 or more.
        kick_rate: how likely a ball is kicked between two frames, 0 to 1.
        kick_size: how far it may turn: the tangent of half the largest angle, above 0. 1 is a right angle. The tangent
            of half the angle is uniform between minus that and that.
        **settings: those of `BouncingBalls`.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """

    def __init__(
        self, batch_size: int = 64, *, kick_rate: float = 0.05, kick_size: float = 1.0, **settings: Any
    ) -> None:
        if not 0 <= kick_rate <= 1:
            raise ValueError(f"kick_rate must be in 0..1; got {kick_rate!r}")
        if not 0 < kick_size < np.inf:
            raise ValueError(f"kick_size must be a number above 0; got {kick_size!r}")
        self._kick_rate, self._kick_size = float(kick_rate), float(kick_size)
        super().__init__(batch_size, **settings)
        self._settings |= {"stream": "KickedBalls", "kick_rate": self._kick_rate, "kick_size": self._kick_size}

    def _advance(self, balls: Playing) -> None:
        super()._advance(balls)
        _kick(self._seed, balls.numbers, balls.times, balls.velocities, self._kick_rate, self._kick_size)


class TwoWayBalls(BouncingBalls):
    """The stream `BouncingBalls`, in which a ball turns left or right by a right angle where it crosses a mark.

    The mark is a line from the top of the box to its bottom, half-way between its sides. It is seen in each frame, dark
    grey and two pixels wide (one where the number of columns is odd); a ball covers it. A ball that has crossed it
    flies on at a right angle from the next frame on.

    Args:
        batch_size: sequences played side by side, 1 or more.
        left_share: how likely it turns left, as seen by one who flies with it and looks at the picture, 0 to 1.
        balls: in the box, 1 or more.
        **settings: those of `BouncingBalls`.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """

    def __init__(self, batch_size: int = 64, *, left_share: float = 0.5, balls: int = 1, **settings: Any) -> None:
        if not 0 <= left_share <= 1:
            raise ValueError(f"left_share must be in 0..1; got {left_share!r}")
        self._left_share = float(left_share)
        super().__init__(batch_size, balls=balls, **settings)
        self._settings |= {"stream": "TwoWayBalls", "left_share": self._left_share}

    def _show(self, frames: Tensor) -> None:
        super()._show(frames)
        draw_mark(frames)

    def _advance(self, balls: Playing) -> None:
        before = balls.positions[..., 0].copy()
        super()._advance(balls)
        _turn(self._seed, balls.numbers, balls.times, before, balls.positions, balls.velocities, self._left_share)


def draw_mark(frames: Tensor) -> None:
    """Draw the mark of `TwoWayBalls` into frames ``[..., h, w]``, in place, behind all that is brighter."""
    width = frames.shape[-1]
    middle = frames[..., (width - 1) // 2 : width // 2 + 1]
    middle.clamp_(min=MARK)


def kicked_ball_sequences(sequences: int, *, seed: int = 0, **settings: Any) -> BallSequences:
    """Return the first sequences that `KickedBalls` plays with a seed.

    Args:
        sequences: how many, 1 or more.
        seed: 0 to 2^63 - 1.
        **settings: of the world and the kicks, see `KickedBalls`.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """
    return _played(KickedBalls(sequences, seed=seed, dephased=False, **settings))


def two_way_ball_sequences(sequences: int, *, seed: int = 0, **settings: Any) -> BallSequences:
    """Return the first sequences that `TwoWayBalls` plays with a seed.

    Args:
        sequences: how many, 1 or more.
        seed: 0 to 2^63 - 1.
        **settings: of the world and the turns, see `TwoWayBalls`.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """
    return _played(TwoWayBalls(sequences, seed=seed, dephased=False, **settings))


class Crossings(NamedTuple):
    """The frames of sequences of `TwoWayBalls` that chance has just decided, with both futures.

    Attributes:
        sequence, time: of each such frame, ``[n]`` int64. Up to the frame before it, the ball is not seen to turn.
        left, right: the frame if the ball turns left, and if it turns right, ``[n, 1, h, w]``.
        turned_left: which of them came, ``[n]`` bool.
    """

    sequence: Tensor
    time: Tensor
    left: Tensor
    right: Tensor
    turned_left: Tensor


def crossings(sequences: BallSequences, radius: float = 1.2) -> Crossings:
    """Return the frames that follow those in which a ball is first seen beyond the mark.

    Args:
        sequences: of one ball, from `two_way_ball_sequences`.
        radius: of the ball, world units.

    Raises:
        ValueError: there are several balls in a sequence.
    """
    positions, velocities = sequences.positions, sequences.velocities
    if positions.shape[2] != 1:
        raise ValueError(f"sequences must be of one ball each; got {positions.shape[2]}")
    x = positions[:, :, 0, 0]
    beyond = (x[:, 1:-1] < BOX / 2) != (x[:, :-2] < BOX / 2)
    sequence, before = beyond.nonzero(as_tuple=True)
    seen = before + 1  # the frame in which the ball is first seen there
    place, velocity = positions[sequence, seen], velocities[sequence, seen]
    # The ball flew in the direction (d, .); turned left, its vertical speed is -d, see `_turn`.
    flew = (x[sequence, seen] - x[sequence, before]).sign()
    turned_left = velocity[:, 0, 1].sign() == -flew
    ways = []
    for way in (velocity, -velocity):
        moved, _ = simulate_balls(place, way, 2, radius=radius)
        frames = render_balls(moved[:, 1], radius=radius, resolution=sequences.frames.shape[-1])
        draw_mark(frames)
        ways.append(frames)
    came, other = ways
    chosen = turned_left.view(-1, 1, 1, 1)
    return Crossings(
        sequence, seen + 1, torch.where(chosen, came, other), torch.where(chosen, other, came), turned_left
    )


def _played(stream: BouncingBalls) -> BallSequences:
    """Play the first sequence of each element of a stream that has not begun."""
    frames, positions, velocities = [], [], []
    for _ in range(stream.state_dict()["sequence_length"]):
        now = stream.balls_now()
        positions.append(now[0])
        velocities.append(now[1])
        frames.append(next(stream).frames)
    return BallSequences(torch.stack(frames, 1), torch.stack(positions, 1), torch.stack(velocities, 1))


@compiled(nogil=True)
def _kick(
    seed: np.uint64,
    numbers: NDArray[np.int64],
    times: NDArray[np.int64],
    velocities: FloatArray,
    rate: float,
    size: float,
) -> None:
    """Turn the velocities ``[n, balls, 2]`` of balls that are kicked, in place."""
    balls = velocities.shape[1]
    for n in range(len(numbers)):
        key = mix(mix(seed + WEYL + WEYL + WEYL) + np.uint64(numbers[n]) * WEYL)
        for i in range(balls):
            draw = 2 * (times[n] * balls + i)
            if uniform(key, draw) < rate:
                # A turn by the angle whose half has this tangent: no function that libraries round differently.
                half = size * (2.0 * uniform(key, draw + 1) - 1.0)
                cosine, sine = (1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half)
                x, y = velocities[n, i]
                velocities[n, i, 0], velocities[n, i, 1] = cosine * x - sine * y, sine * x + cosine * y


@compiled(nogil=True)
def _turn(
    seed: np.uint64,
    numbers: NDArray[np.int64],
    times: NDArray[np.int64],
    before: FloatArray,
    positions: FloatArray,
    velocities: FloatArray,
    left_share: float,
) -> None:
    """Turn the velocities ``[n, balls, 2]`` of balls whose x was ``before [n, balls]`` on the other side, in place."""
    balls = velocities.shape[1]
    middle = BOX / 2
    for n in range(len(numbers)):
        key = mix(mix(seed + WEYL + WEYL + WEYL + WEYL) + np.uint64(numbers[n]) * WEYL)
        for i in range(balls):
            if (before[n, i] < middle) != (positions[n, i, 0] < middle):
                x, y = velocities[n, i]
                left = uniform(key, times[n] * balls + i) < left_share
                # The rows of a picture are counted downwards, so left of (1, 0) is (0, -1).
                velocities[n, i, 0], velocities[n, i, 1] = (y, -x) if left else (-y, x)
