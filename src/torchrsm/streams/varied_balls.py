"""Bouncing balls of many worlds: each sequence draws how many balls it has, how large and how fast they are.

A sequence is a function of its number and the seed alone, as in `torchrsm.streams.bouncing_balls`, whose rules it
follows in all else. How many balls, their radius and their speed are drawn one by one, uniform in their ranges.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrsm.compiling import compiled
from torchrsm.streams.bouncing_balls import (
    BOX,
    BouncingBalls,
    FloatArray,
    check_radius,
    check_speed,
    draw_starts,
)
from torchrsm.streams.random import WEYL, mix, uniform
from torchrsm.streams.stream import require_integer

LARGEST_SHARE = 0.5
"""Share of the box that the most balls of the largest radius may cover. So many can be placed without contact."""

Counts = tuple[int, int]
"""Smallest and largest number."""

Range = tuple[float, float]
"""Smallest and largest value."""


class VariedBalls(BouncingBalls):
    """The stream `BouncingBalls`, in which each sequence is of a world of its own.

    It always goes on. Balls that find no place in a sequence, after all the tries that `BouncingBalls` takes, are left
    out of it, one after another. With ranges that are not refused that hardly ever happens.

    Args:
        batch_size: sequences played side by side, 1 or more.
        balls: fewest and most balls of a sequence, 1 or more.
        radius: smallest and largest radius, world units, above 0 and below 5; all balls of a sequence have one radius.
        speed: slowest and fastest, times the speed of the published world, above 0, at most 10.
        **settings: ``resolution``, ``sequence_length``, ``seed``, ``dephased`` and ``first_sequence`` of
            `BouncingBalls`.

    Raises:
        ValueError: an argument is outside its range, or the most balls of the largest radius would cover more than
            half of the box.
    """

    def __init__(
        self,
        batch_size: int = 64,
        *,
        balls: Counts = (2, 6),
        radius: Range = (0.7, 1.5),
        speed: Range = (0.5, 2.0),
        **settings: Any,
    ) -> None:
        check_ranges(balls, radius, speed)
        self._counts = (int(balls[0]), int(balls[1]))
        self._radius_range = (float(radius[0]), float(radius[1]))
        self._speed_range = (float(speed[0]), float(speed[1]))
        super().__init__(batch_size, balls=self._counts[1], radius=self._radius_range[1], **settings)
        ranges = {"balls": self._counts, "radius": self._radius_range, "speed": self._speed_range}
        self._settings |= {"stream": "VariedBalls", **{name: list(value) for name, value in ranges.items()}}

    def _place(self, numbers: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
        counts = np.empty(len(numbers), dtype=np.int64)
        radii, speeds = np.empty(len(numbers)), np.empty(len(numbers))
        _draw_worlds(self._seed, numbers, self._counts, self._radius_range, self._speed_range, counts, radii, speeds)
        positions = np.empty((len(numbers), self._counts[1], 2))
        velocities = np.empty_like(positions)
        while (failed := draw_starts(self._seed, numbers, counts, radii, speeds, positions, velocities)) >= 0:
            counts[failed] -= 1  # one ball always fits
        return positions, velocities, radii


def check_ranges(balls: Counts, radius: Range, speed: Range) -> None:
    """Raise a ValueError unless worlds can be drawn from these ranges, as `VariedBalls` explains them."""
    for name, given in (("balls", balls), ("radius", radius), ("speed", speed)):
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"{name} must be two numbers, the smallest and the largest; got {given!r}")
    for count in balls:
        require_integer("balls", count, 1)
    for one in radius:
        check_radius(one)
    for one in speed:
        check_speed(one)
    for name, (low, high) in (("balls", balls), ("radius", radius), ("speed", speed)):
        if low > high:
            raise ValueError(f"{name} must be the smallest and the largest, in this order; got {low:g} and {high:g}")
    share = balls[1] * math.pi * radius[1] ** 2 / BOX**2
    if balls[1] > 1 and share > LARGEST_SHARE:
        raise ValueError(
            f"the most balls of the largest radius must cover at most {LARGEST_SHARE:.0%} of the box; "
            f"got {share:.0%} with {balls[1]} balls of radius {radius[1]:g}"
        )


@compiled(nogil=True)
def _draw_worlds(
    seed: np.uint64,
    numbers: NDArray[np.int64],
    balls: Counts,
    radius: Range,
    speed: Range,
    counts: NDArray[np.int64],
    radii: FloatArray,
    speeds: FloatArray,
) -> None:
    """Draw number, radius and speed of the balls of each sequence, from numbers that its start does not use."""
    for n in range(len(numbers)):
        key = mix(mix(seed + WEYL + WEYL) + np.uint64(numbers[n]) * WEYL)
        counts[n] = balls[0] + int((balls[1] - balls[0] + 1) * uniform(key, 0))
        radii[n] = radius[0] + (radius[1] - radius[0]) * uniform(key, 1)
        speeds[n] = speed[0] + (speed[1] - speed[0]) * uniform(key, 2)
