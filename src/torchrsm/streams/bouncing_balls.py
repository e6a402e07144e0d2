"""Bouncing balls: simulate the world of Sutskever et al. and render it, sequence by sequence.

World units: the box is [0, 10] x [0, 10], a frame lasts one unit of time. A position or velocity is ``(x, y)``, x along
the columns of the image and y along its rows.

Source: docs/science/protocol.md, "The world" (Sutskever, Hinton, Taylor 2008).

A sequence is a function of its number and the seed alone. Its start is drawn with a counter-based generator from
integers, sums, products and quotients. So it depends on no library's generator, on no batch and on no earlier draw.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.streams.random import WEYL, mix, uniform
from torchrsm.streams.share import check_part
from torchrsm.streams.stream import StreamBatch, element_positions, require_boolean, require_integer, saved_step

BOX = 10.0
"""Side of the box, world units."""
SPEED = 0.5
"""Root of the summed squares of all velocities in the published world, world units per frame."""
MAX_SPEED = 10.0
"""The largest speed of balls, times that of the published world: half a box in a frame."""

SUB_STEPS = 2
"""Of a frame."""
# Start positions are drawn again as whole sets, as published: uniform over all sets that fit. Many balls hardly ever
# fit by chance, so after this many sets each ball is drawn again alone, until it touches none of those before it.
_WHOLE_SETS = 10_000
_MAX_SETS = 12_000
_TRIES_PER_BALL = 1_000
_FAR = 1_000.0  # world units, of a ball that a world does not have
MAX_EXPONENT = -math.log(1e-30)
"""A ball's light below 1e-30 is exactly 0: float32 has no denormals there."""
_REACH = MAX_EXPONENT**0.125  # distance of that, in radii

_LARGEST = 2**63 - 1

FloatArray = NDArray[np.float64]


class BallSequences(NamedTuple):
    """Sequences of bouncing balls with what they show."""

    frames: Tensor
    """``[sequences, time, 1, resolution, resolution]`` float32 in 0..1."""
    positions: Tensor
    """``[sequences, time, balls, 2]`` float64, centres ``(x, y)`` in world units."""
    velocities: Tensor
    """``[sequences, time, balls, 2]`` float64, world units per frame, before the move to the next frame."""


class Playing(NamedTuple):
    """Balls of sequences side by side, whose positions and velocities are changed in place.

    Attributes:
        positions, velocities: ``[n, balls, 2]``.
        radii: of the balls of each sequence, ``[n]``.
        numbers: of the sequences, ``[n]``.
        times: of the frames to come, ``[n]``.
    """

    positions: FloatArray
    velocities: FloatArray
    radii: FloatArray
    numbers: NDArray[np.int64]
    times: NDArray[np.int64]


class BouncingBalls:
    """An endless stream of bouncing balls, in which no sequence is ever played twice.

    Element i of the batch plays the sequences ``first_sequence`` + i, + i + batch, + i + 2 batch, ... De-phased, it
    begins i mod ``sequence_length`` frames into its first sequence, so that not all elements start anew at the same
    step. The first batch flags all of them as starts: nothing was seen of them before, even in mid-sequence.

    Args:
        batch_size: sequences played side by side, 1 or more.
        balls: balls in the box, 1 or more.
        radius: of each ball, world units, above 0 and below 5.
        resolution: height and width of a frame, pixels, 4 or more.
        sequence_length: frames in a sequence, 2 or more.
        speed: of the balls, times that of the published world; above 0, at most 10.
        seed: 0 to 2^63 - 1; another seed gives another world of sequences.
        dephased: whether the elements begin at different times of their sequences.
        first_sequence: number of the sequence that element 0 plays first, 0 to 2^62 - 1.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """

    def __init__(
        self,
        batch_size: int = 64,
        *,
        balls: int = 3,
        radius: float = 1.2,
        resolution: int = 30,
        sequence_length: int = 100,
        speed: float = 1.0,
        seed: int = 0,
        dephased: bool = True,
        first_sequence: int = 0,
    ) -> None:
        self._batch_size = require_integer("batch_size", batch_size, 1)
        _check_world(balls, radius, resolution, sequence_length, speed, seed)
        self._settings: dict[str, Any] = {
            "stream": "BouncingBalls",
            "batch_size": self._batch_size,
            "balls": int(balls),
            "radius": float(radius),
            "resolution": int(resolution),
            "sequence_length": int(sequence_length),
            "seed": int(seed),
            "dephased": require_boolean("dephased", dephased),
            "first_sequence": require_integer("first_sequence", first_sequence, 0, _LARGEST // 2),
        }
        if speed != 1:  # positions that were saved before there was another speed do not name it
            self._settings["speed"] = float(speed)
        self._radius, self._speed = float(radius), float(speed)
        self._resolution = int(resolution)
        self._sequence_length = int(sequence_length)
        self._seed = np.uint64(seed)
        self._dephased = dephased
        self._first_sequence = int(first_sequence)
        self._elements_from, self._elements_played = 0, self._batch_size
        self._positions = np.empty((self._batch_size, int(balls), 2))
        self._velocities = np.empty_like(self._positions)
        self._radii = np.empty(self._batch_size)
        self._step: int
        self._numbers: NDArray[np.int64]
        self._times: NDArray[np.int64]
        self._seek(0)

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        return self._elements_played

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames: one channel, square."""
        return (1, self._resolution, self._resolution)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        numbers, times = self._numbers, self._times
        frames = torch.zeros(self.batch_size, *self.frame_shape, dtype=torch.float32)
        self._show(frames)
        starts = (times == 0) | (self._step == 0)

        self._step += 1
        self._numbers, self._times = self._elements(self._step)
        self._advance(Playing(self._positions, self._velocities, self._radii, self._numbers, self._times))
        begins = np.flatnonzero(self._times == 0)
        if begins.size:
            self._positions[begins], self._velocities[begins], self._radii[begins] = self._place(self._numbers[begins])
        return StreamBatch(frames, torch.from_numpy(starts), torch.from_numpy(numbers))

    def balls_now(self) -> tuple[Tensor, Tensor]:
        """Return positions and velocities of the next batch, ``[batch, balls, 2]`` each; see `BallSequences`."""
        return torch.from_numpy(self._positions.copy()), torch.from_numpy(self._velocities.copy())

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings and the number of batches played."""
        return {**self._settings, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned, exactly as if never interrupted.

        Raises:
            ValueError: the position is not one of a stream with the same settings.
        """
        self._seek(saved_step(state, self._settings))

    def part(self, first: int, count: int) -> BouncingBalls:
        """Return a stream of some elements of this one alone, from its position on, bit by bit as they are played here.

        The position that it saves is that of the whole.

        Args:
            first: the first element, 0 or more.
            count: how many, 1 or more.

        Raises:
            ValueError: there are no such elements.
        """
        check_part(self.batch_size, first, count)
        part = copy.copy(self)
        part._elements_from, part._elements_played = self._elements_from + first, count
        part._seek(self._step)
        return part

    def _place(self, numbers: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return starts: positions and velocities ``[n, balls, 2]``, and the radius of the balls ``[n]``."""
        balls = self._positions.shape[1]
        start, velocities = place_balls(self._seed, numbers, balls, self._radius, self._speed)
        return start, velocities, np.full(len(numbers), self._radius)

    def _show(self, frames: Tensor) -> None:
        """Draw the balls as they are now into black frames ``[n, 1, h, w]``."""
        _render(self._positions, self._radii, frames.numpy()[:, 0])

    def _advance(self, balls: Playing) -> None:
        """Move balls on by one frame, in place."""
        _move(balls.positions, balls.velocities, balls.radii)

    def _elements(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        numbers, times = element_positions(step, self._batch_size, self._sequence_length, self._dephased)
        part = slice(self._elements_from, self._elements_from + self._elements_played)
        return (numbers + self._first_sequence)[part], times[part]

    def _seek(self, step: int) -> None:
        """Go to a step: the world is simulated again from the starts of the sequences that play there."""
        self._step = step
        self._numbers, self._times = self._elements(step)
        self._positions, self._velocities, self._radii = self._place(self._numbers)
        for time in range(int(self._times.max())):
            late = self._times > time
            positions, velocities = self._positions[late], self._velocities[late]
            now = np.full(len(positions), time + 1)
            self._advance(Playing(positions, velocities, self._radii[late], self._numbers[late], now))
            self._positions[late], self._velocities[late] = positions, velocities


def bouncing_ball_sequences(
    sequences: int | Sequence[int],
    *,
    seed: int = 0,
    balls: int = 3,
    radius: float = 1.2,
    resolution: int = 30,
    sequence_length: int = 100,
    speed: float = 1.0,
) -> BallSequences:
    """Return whole sequences of bouncing balls, the same that `BouncingBalls` plays under the same numbers and seed.

    Args:
        sequences: how many sequences, counted from number 0, or the numbers of the sequences.
        seed: 0 to 2^63 - 1.
        balls: balls in the box, 1 or more.
        radius: of each ball, world units, above 0 and below 5.
        resolution: height and width of a frame, pixels, 4 or more.
        sequence_length: frames in a sequence, 2 or more.
        speed: of the balls, times that of the published world; above 0, at most 10.

    Raises:
        ValueError: an argument is outside its range, or the balls do not fit into the box.
    """
    _check_world(balls, radius, resolution, sequence_length, speed, seed)
    if isinstance(sequences, int | np.integer):
        chosen: Sequence[int] = range(require_integer("sequences", sequences, 1))
    else:
        chosen = [require_integer("sequences: each number", number, 0, _LARGEST) for number in sequences]
        if not chosen:
            raise ValueError("sequences must have at least one number; got none")
    numbers = np.array(chosen, dtype=np.int64)
    start, velocities = place_balls(np.uint64(seed), numbers, int(balls), float(radius), float(speed))
    simulated = simulate_balls(start, velocities, sequence_length, radius=radius)
    frames = render_balls(simulated[0], radius=radius, resolution=resolution)
    return BallSequences(frames, *simulated)


def simulate_balls(
    positions: Tensor | FloatArray, velocities: Tensor | FloatArray, frames: int, *, radius: float = 1.2
) -> tuple[Tensor, Tensor]:
    """Run worlds of bouncing balls from given positions and velocities.

    Each frame takes two sub-steps of 0.5: move; a ball beyond a wall gets the velocity that leads back (its position is
    kept); each pair that touches exchanges the velocity components along the line of centres, even if it parts already.

    Args:
        positions: ``[worlds, balls, 2]``, world units, as they are at the first frame.
        velocities: ``[worlds, balls, 2]``, world units per frame.
        frames: the number of frames to return, the first one included, 1 or more.
        radius: of each ball, world units, above 0 and below 5.

    Returns:
        Positions and velocities at each frame, both ``[worlds, frames, balls, 2]`` float64.

    Raises:
        ValueError: an argument is outside its range or has a wrong shape.
    """
    require_integer("frames", frames, 1)
    check_radius(radius)
    position = np.asarray(positions).astype(np.float64, order="C")
    velocity = np.asarray(velocities).astype(np.float64, order="C")
    if position.ndim != 3 or position.shape[2] != 2 or position.shape != velocity.shape:
        raise ValueError(
            "positions and velocities must both be [worlds, balls, 2]; "
            f"got {list(position.shape)} and {list(velocity.shape)}"
        )
    worlds, balls, _ = position.shape
    all_positions = np.empty((worlds, frames, balls, 2))
    all_velocities = np.empty_like(all_positions)
    for time in range(frames):
        if time:
            _move(position, velocity, np.full(worlds, float(radius)))
        all_positions[:, time], all_velocities[:, time] = position, velocity
    return torch.from_numpy(all_positions), torch.from_numpy(all_velocities)


def render_balls(positions: Tensor | FloatArray, *, radius: float = 1.2, resolution: int = 30) -> Tensor:
    """Return the images of balls at given positions, ``min(1, sum over balls of exp(-(distance^2 / radius^2)^4))``.

    The centre of the pixel in row i, column j is at ``y = (i + 0.5) * 10 / resolution``, ``x = (j + 0.5) * ...``. The
    light of a ball below 1e-30 counts as exactly 0.

    Args:
        positions: ``[..., balls, 2]``, centres ``(x, y)`` in world units; they may be outside the box.
        radius: of each ball, world units, above 0 and below 5.
        resolution: height and width of a frame, pixels, 4 or more.

    Returns:
        ``[..., 1, resolution, resolution]`` float32 in 0..1.

    Raises:
        ValueError: an argument is outside its range or has a wrong shape, or a position is not finite.
    """
    check_radius(radius)
    require_integer("resolution", resolution, 4)
    centres = np.asarray(positions).astype(np.float64, order="C")
    if centres.ndim < 2 or centres.shape[-1] != 2:
        raise ValueError(f"positions must be [..., balls, 2]; got {list(centres.shape)}")
    if not np.isfinite(centres).all():
        raise ValueError("positions must be finite; got NaN or infinity")
    *leading, balls, _ = centres.shape
    frames = torch.zeros(*leading, 1, resolution, resolution, dtype=torch.float32)
    images = frames.numpy().reshape(-1, resolution, resolution)
    _render(centres.reshape(-1, balls, 2), np.full(len(images), float(radius)), images)
    return frames


def check_radius(radius: float) -> None:
    """Raise a ValueError unless the radius of balls, world units, is in its range."""
    if isinstance(radius, bool) or not isinstance(radius, int | float | np.number) or not 0 < radius < BOX / 2:
        raise ValueError(f"radius must be a number above 0 and below {BOX / 2:g}; got {radius!r}")


def check_speed(speed: float) -> None:
    """Raise a ValueError unless the speed of balls, times that of the published world, is in its range."""
    if not (isinstance(speed, int | float | np.number) and not isinstance(speed, bool) and 0 < speed <= MAX_SPEED):
        raise ValueError(f"speed must be a number above 0 and at most {MAX_SPEED:g}; got {speed!r}")


def _check_world(balls: int, radius: float, resolution: int, sequence_length: int, speed: float, seed: int) -> None:
    require_integer("balls", balls, 1)
    check_radius(radius)
    check_speed(speed)
    require_integer("resolution", resolution, 4)
    require_integer("sequence_length", sequence_length, 2)
    require_integer("seed", seed, 0, _LARGEST)


def place_balls(
    seed: np.uint64, numbers: NDArray[np.int64], balls: int, radius: float, speed: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Return positions and velocities at the start of sequences, both ``[sequences, balls, 2]`` in world units.

    Args:
        seed: of the world.
        numbers: of the sequences.
        balls, radius, speed: in range, as `BouncingBalls` checks them.

    Raises:
        ValueError: the balls do not fit into the box.
    """
    worlds = len(numbers)
    positions = np.empty((worlds, balls, 2))
    velocities = np.empty_like(positions)
    counts = np.full(worlds, balls)
    failed = draw_starts(seed, numbers, counts, np.full(worlds, radius), np.full(worlds, speed), positions, velocities)
    if failed >= 0:
        raise ValueError(
            f"the balls do not fit: {balls} balls of radius {radius:g} touched in each of {_MAX_SETS} random "
            f"placements for sequence {numbers[failed]}; use fewer or smaller balls"
        )
    return positions, velocities


@compiled(nogil=True)
def draw_starts(
    seed: np.uint64,
    numbers: NDArray[np.int64],
    counts: NDArray[np.int64],
    radii: FloatArray,
    speeds: FloatArray,
    positions: FloatArray,
    velocities: FloatArray,
) -> int:
    """Draw the start of each sequence; return the index of the first whose balls do not fit, or -1.

    Args:
        seed: of the world.
        numbers: of the sequences, ``[n]``.
        counts: of the balls that each has, ``[n]``. The others stand still far away, where nothing meets them.
        radii: of the balls of each, ``[n]``.
        speeds: of the balls of each, times that of the published world, ``[n]``.
        positions, velocities: ``[n, balls, 2]``, where they are written.
    """
    for n in range(len(numbers)):
        key = mix(mix(seed + WEYL) + np.uint64(numbers[n]) * WEYL)
        balls, radius = counts[n], radii[n]
        # Uniform in [2, 10) and then rejected at the walls is uniform between these bounds.
        low, high = max(2.0, radius), BOX - radius
        draw = 0
        position, velocity = positions[n], velocities[n]
        for i in range(balls, len(position)):
            position[i] = _FAR * (i + 1)
            velocity[i] = 0.0
        sum_of_squares = 0.0
        for i in range(balls):
            for axis in range(2):
                # Standard normal as a ratio of uniforms (Kinderman, Monahan 1977): exact, and the only function that
                # libraries may round differently decides, it does not enter the value.
                while True:
                    u = 1.0 - uniform(key, draw)
                    v = (2.0 * uniform(key, draw + 1) - 1.0) * 0.8577638849607068  # sqrt(2 / e)
                    draw += 2
                    normal = v / u
                    if normal * normal <= -4.0 * math.log(u):
                        break
                velocity[i, axis] = normal
                sum_of_squares += normal * normal
        velocity *= SPEED * speeds[n] / math.sqrt(sum_of_squares)

        fits = False
        for drawn_set in range(_MAX_SETS):
            tries = 1 if drawn_set < _WHOLE_SETS else _TRIES_PER_BALL
            for i in range(balls):
                for _ in range(tries):
                    position[i, 0] = low + (high - low) * uniform(key, draw)
                    position[i, 1] = low + (high - low) * uniform(key, draw + 1)
                    draw += 2
                    fits = True
                    for j in range(i):
                        dx, dy = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1]
                        fits = fits and dx * dx + dy * dy >= 4.0 * radius * radius
                    if fits:
                        break
                if not fits:
                    break
            if fits:
                break
        if not fits:
            return n
    return -1


@compiled(nogil=True)
def _move(positions: FloatArray, velocities: FloatArray, radii: FloatArray) -> None:
    """Move worlds ``[worlds, balls, 2]``, whose balls have the radii ``[worlds]``, on by one frame, in place."""
    worlds, balls, _ = positions.shape
    for n in range(worlds):
        position, velocity, radius = positions[n], velocities[n], radii[n]
        for _ in range(SUB_STEPS):
            for i in range(balls):
                for axis in range(2):
                    position[i, axis] += velocity[i, axis] / SUB_STEPS
                    if position[i, axis] - radius < 0.0:
                        velocity[i, axis] = abs(velocity[i, axis])
                    if position[i, axis] + radius > BOX:
                        velocity[i, axis] = -abs(velocity[i, axis])
            for i in range(balls):
                for j in range(i):
                    dx, dy = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1]
                    squared = dx * dx + dy * dy
                    if 0.0 < squared < 4.0 * radius * radius:
                        exchange = (
                            (velocity[j, 0] - velocity[i, 0]) * dx + (velocity[j, 1] - velocity[i, 1]) * dy
                        ) / squared
                        velocity[i, 0] += exchange * dx
                        velocity[i, 1] += exchange * dy
                        velocity[j, 0] -= exchange * dx
                        velocity[j, 1] -= exchange * dy


@compiled(nogil=True)
def _render(positions: FloatArray, radii: FloatArray, frames: NDArray[np.float32]) -> None:
    """Add the light of balls ``[n, balls, 2]`` to black frames ``[n, resolution, resolution]``, clipped at 1.

    The balls of each frame have one radius, ``radii [n]``.
    """
    resolution = frames.shape[1]
    pixel = BOX / resolution
    for n in range(len(positions)):
        radius = radii[n]
        reach = _REACH * radius
        for i in range(positions.shape[1]):
            x, y = positions[n, i, 0], positions[n, i, 1]
            first_row, last_row = max(0.0, (y - reach) / pixel), min(resolution - 1.0, (y + reach) / pixel)
            first_column, last_column = max(0.0, (x - reach) / pixel), min(resolution - 1.0, (x + reach) / pixel)
            for row in range(int(first_row), int(last_row) + 1):
                dy = (row + 0.5) * pixel - y
                for column in range(int(first_column), int(last_column) + 1):
                    dx = (column + 0.5) * pixel - x
                    ratio = (dx * dx + dy * dy) / (radius * radius)
                    exponent = (ratio * ratio) * (ratio * ratio)
                    if exponent <= MAX_EXPONENT:
                        light = frames[n, row, column] + np.float32(math.exp(-exponent))
                        frames[n, row, column] = min(light, np.float32(1.0))
