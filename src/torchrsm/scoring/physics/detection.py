"""Finds the balls of a frame by its pixels alone.

It knows neither a model nor the simulator, only the `WorldGeometry`, so dreamt and true frames are judged alike. A
position is ``(x, y)`` in pixels, x along the columns; the centre of the pixel in row i, column j is at
``(j + 0.5, i + 0.5)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.config import Config

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.int64]

BoolArray = NDArray[np.bool_]


class WorldGeometry(Config):
    """The world that a video is compared with, in pixels; the defaults are the bouncing balls of 30 x 30 pixels.

    A ball adds ``exp(-((d / radius)^2)^4)`` at distance d from its centre, and the sum over balls is clipped at 1. The
    box is the frame: 0..side on each axis.

    Attributes:
        balls: in the box.
        radius: of a ball.
        side: height and width of the box and of a frame.
        speed: root of the summed squares of all velocities, per frame; its square is the kinetic energy.
    """

    balls: int = Field(default=3, ge=1)
    radius: float = Field(default=3.6, gt=0)
    side: int = Field(default=30, ge=4)
    speed: float = Field(default=1.5, gt=0)

    @property
    def ball_mass(self) -> float:
        """Sum of the pixels of one ball, the integral of its profile: 36.9."""
        return math.pi * self.radius * self.radius * math.gamma(1.25)

    @property
    def energy(self) -> float:
        """Kinetic energy, the sum of all squared velocities: 2.25 px^2."""
        return self.speed * self.speed


WORLD = WorldGeometry()

THRESHOLD = 0.5
"""Pixels above this value belong to balls."""

_CHUNK = 4096  # frames at a time: bounds the memory, whatever the length of the video

_LLOYD_STEPS = 10

_FIT_SWEEPS = 12

_FIT_STEP = 0.5  # px: the furthest that a centre moves in one sweep

_FIT_DONE = 1e-3  # px: smaller steps end the fit

_FIT_REACH = 1.4  # radii: further away a ball's light is below 1e-6


class Detections(NamedTuple):
    """The balls of each frame.

    Attributes:
        counts: ``[n, t]``, how many there are.
        centres: ``[n, t, 2 * balls, 2]`` px, in no particular order, NaN beyond the count. A frame with more than
            ``2 * balls`` (a white one) has its count, but no centres.
    """

    counts: IntArray
    centres: FloatArray


def detect_balls(frames: Tensor, geometry: WorldGeometry = WORLD) -> Detections:
    """Find the balls of each frame.

    Pixels above `THRESHOLD` are joined to their four neighbours. A component counts for as many balls as its mass (the
    sum of its pixels) holds, rounded: less than half a ball is none, 0.5 to 1.5 is one, 1.5 to 2.5 is a merged pair,
    where a ball is what of a true one lies above the threshold. So blur that pales or shrinks a ball to less than half
    ends it. The pixels of a merged component are divided among its balls (Lloyd's algorithm from the furthest pixels).
    Last, the profiles of all balls of a frame, clipped at 1, are fitted to it (Gauss-Newton, one ball after another).

    On true frames (20,000) it finds the right number in all, and each centre to 0.001 px, touching or not.

    Args:
        frames: ``[n, t, 1, side, side]``, or one sequence ``[t, 1, side, side]``, floating point in 0..1.
        geometry: the world.

    Raises:
        ValueError: the frames have another shape or type, or a value that is not finite or outside 0..1.
    """
    images = checked_images(frames, geometry)
    n, t = images.shape[:2]
    images = images.reshape(n * t, geometry.side, geometry.side)
    count = np.zeros(n * t, dtype=np.int64)
    centres = np.full((n * t, 2 * geometry.balls, 2), np.nan)
    visible = _visible_mass(geometry)
    in_frame = np.zeros((3, 3, 3), dtype=np.int64)
    in_frame[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]  # neighbours within a frame, none in the frames before and after
    for start in range(0, n * t, _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = images[part]
        labels, components = ndimage.label(chunk > THRESHOLD, structure=in_frame)
        mass = np.bincount(labels.ravel(), weights=chunk.ravel(), minlength=components + 1)
        balls = np.floor(mass / visible + 0.5).astype(np.int64)
        balls[0] = 0  # the background
        _locate(chunk, labels, balls, geometry.radius, count[part], centres[part])
    return Detections(count.reshape(n, t), centres.reshape(n, t, *centres.shape[1:]))


def _visible_mass(geometry: WorldGeometry) -> float:
    """Return the part of a ball's mass above the threshold: ``pi r^2`` times the integral of exp(-q^4) over q."""
    edge = math.pow(math.log(1 / THRESHOLD), 0.25)  # (d / r)^2 where the profile crosses the threshold
    middle = (np.arange(1000) + 0.5) / 1000 * edge
    return math.pi * geometry.radius * geometry.radius * edge * float(np.exp(-(middle**4)).mean())


@compiled(nogil=True)
def _locate(
    images: NDArray[np.float32],
    labels: NDArray[np.int32],
    balls: IntArray,
    radius: float,
    count: IntArray,
    centres: FloatArray,
) -> None:
    """Fill ``count [n]`` and ``centres [n, limit, 2]`` from the components of the images and their numbers of balls."""
    limit = centres.shape[1]
    for n in range(len(images)):
        image, label = images[n], labels[n]
        found = 0
        numbers = np.unique(label)
        for number in numbers:
            found += balls[number]
        count[n] = found
        if found == 0 or found > limit:
            continue
        found = 0
        for number in numbers:
            if balls[number]:
                _divide(image, label, number, centres[n, found : found + balls[number]])
                found += balls[number]
        _fit(image, radius, centres[n, :found])


@compiled(nogil=True)
def _divide(image: NDArray[np.float32], label: NDArray[np.int32], number: int, centres: FloatArray) -> None:
    """Place ``centres [k, 2]`` at the centres of mass of k parts of a component, each pixel in the nearest part."""
    rows, columns = np.nonzero(label == number)
    balls = len(centres)
    x = y = mass = 0.0
    for p in range(len(rows)):
        light = image[rows[p], columns[p]]
        x, y, mass = x + light * (columns[p] + 0.5), y + light * (rows[p] + 0.5), mass + light
    x, y = x / mass, y / mass
    if balls == 1:
        centres[0, 0], centres[0, 1] = x, y
        return
    # The start: the pixel furthest from the centre of mass, then again and again the one furthest from all so far.
    nearest = np.full(len(rows), np.inf)
    for k in range(balls):
        for p in range(len(rows)):
            squared = (columns[p] + 0.5 - x) ** 2 + (rows[p] + 0.5 - y) ** 2
            nearest[p] = squared if k < 2 else min(nearest[p], squared)
        furthest = np.argmax(nearest)
        x, y = columns[furthest] + 0.5, rows[furthest] + 0.5
        centres[k, 0], centres[k, 1] = x, y
    sums = np.empty((balls, 3))
    for _ in range(_LLOYD_STEPS):
        sums[:] = 0.0
        for p in range(len(rows)):
            x, y, best, least = columns[p] + 0.5, rows[p] + 0.5, 0, np.inf
            for k in range(balls):
                squared = (x - centres[k, 0]) ** 2 + (y - centres[k, 1]) ** 2
                if squared < least:
                    best, least = k, squared
            light = image[rows[p], columns[p]]
            sums[best, 0] += light * x
            sums[best, 1] += light * y
            sums[best, 2] += light
        for k in range(balls):
            if sums[k, 2] > 0.0:
                centres[k, 0], centres[k, 1] = sums[k, 0] / sums[k, 2], sums[k, 1] / sums[k, 2]


@compiled(nogil=True)
def _fit(image: NDArray[np.float32], radius: float, centres: FloatArray) -> None:
    """Move ``centres [k, 2]`` to the least squared error between the image and the clipped sum of profiles."""
    side = len(image)
    reach = _FIT_REACH * radius
    for _ in range(_FIT_SWEEPS):
        furthest = 0.0
        for k in range(len(centres)):
            x, y = centres[k]
            xx = yy = 1e-6  # added so as not to divide by 0: a ball without an edge inside the frame stays where it is
            xy = gx = gy = 0.0
            for row in range(max(0, int(y - reach)), min(side - 1, int(y + reach)) + 1):
                for column in range(max(0, int(x - reach)), min(side - 1, int(x + reach)) + 1):
                    light = own = slope = 0.0
                    for j in range(len(centres)):
                        dx, dy = column + 0.5 - centres[j, 0], row + 0.5 - centres[j, 1]
                        q = (dx * dx + dy * dy) / (radius * radius)
                        if q < _FIT_REACH * _FIT_REACH:
                            own = math.exp(-(q * q) * (q * q))
                            light += own
                            if j == k:
                                slope = 8.0 * q * q * q * own / (radius * radius)
                    error = image[row, column] - min(light, 1.0)
                    if light < 1.0:
                        jx, jy = slope * (column + 0.5 - x), slope * (row + 0.5 - y)
                        xx, xy, yy = xx + jx * jx, xy + jx * jy, yy + jy * jy
                        gx, gy = gx + jx * error, gy + jy * error
            determinant = xx * yy - xy * xy
            step_x = (yy * gx - xy * gy) / determinant
            step_y = (xx * gy - xy * gx) / determinant
            length = math.sqrt(step_x * step_x + step_y * step_y)
            if length > _FIT_STEP:
                step_x, step_y = step_x * _FIT_STEP / length, step_y * _FIT_STEP / length
            centres[k, 0] += step_x
            centres[k, 1] += step_y
            furthest = max(furthest, length)
        if furthest < _FIT_DONE:
            break


def check_world(frames: Tensor, geometry: WorldGeometry = WORLD) -> None:
    """Check that frames can be of a world, before any work is done on them.

    Raises:
        ValueError: frames have a wrong shape, type or value.
    """
    checked_images(frames, geometry)


def checked_images(frames: Tensor, geometry: WorldGeometry, name: str = "frames") -> NDArray[np.float32]:
    """Return the checked frames as ``[n, t, side, side]``."""
    shape, side = list(frames.shape), geometry.side
    if len(shape) not in (4, 5) or 0 in shape or shape[-3:] != [1, side, side]:
        raise ValueError(
            f"{name} must have the shape [n, t, 1, {side}, {side}] or [t, 1, {side}, {side}], none of them 0; "
            f"got {shape}"
        )
    if not frames.is_floating_point():
        raise ValueError(f"{name} must be floating point in 0..1; got {frames.dtype}")
    low, high = (float(value) for value in frames.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(f"{name} must lie in 0..1 and be finite; got values from {low:g} to {high:g}")
    images: NDArray[np.float32] = frames.detach().cpu().float().contiguous().numpy()
    return images.reshape(-1, shape[-4], side, side)
