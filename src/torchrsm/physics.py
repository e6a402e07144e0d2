"""Judges the physics of a video of balls by its pixels alone: finds the balls, follows them, measures their motion.

It knows neither a model nor the simulator, only the `WorldGeometry`, so dreamt and true frames are judged alike. A
position is ``(x, y)`` in pixels, x along the columns; the centre of the pixel in row i, column j is at
``(j + 0.5, i + 0.5)``. A displacement is in pixels per frame. What could not be measured is NaN, and None in JSON.

    detect_balls  ->  match_balls  ->  one function for each metric  ->  judge, summarise_physics

Source: protocol.md, "Self-looping". The true values in the docstrings were measured with this module on the 200
validation sequences.
"""

from __future__ import annotations

import math
import warnings
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torchrsm.config import Config

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class WorldGeometry(Config):
    """The world that a video is held against, in pixels; the defaults are the bouncing balls of 30 x 30 pixels.

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
"""Pixels above it belong to balls."""

SLACK = 0.8
"""Tolerance of position, in frames of motion at the world's full speed: 1.2 px.

A frame of the true world may show a ball as far beyond a wall as the fastest ball moves in a sub-step, half a frame:
0.75 px; and two balls nearer than they fit by sqrt(2) of that, 1.06 px. The rest is for the detection."""

CHANGE = 0.1
"""Least change of a ball's displacement from one frame to the next that is a change of velocity, in units of the
world's full speed: 0.15 px per frame. True centres are found to 0.001 px; the noise of a dream must not count."""

LEAST_SPEED = 0.2
"""Slowest ball that has a direction, in units of the world's full speed: 0.3 px per frame."""

LONGEST_CONTACT = 4
"""Frames in which a velocity may change for it to be one contact; a true one takes one or two."""

ENERGY_WINDOW = 11
"""Frames, centred, of the running median of the kinetic energy. A ball that turns back within a frame hardly moves, so
the energy of single frames dips; that of most frames does not."""

ENERGY_BAND = 0.5
"""Share of the reference by which the smoothed energy may be off before a sequence's life ends."""

WRONG_COUNT_FRAMES = 5
"""Frames in a row with a wrong number of balls that end a sequence's life."""

TRACKED_STEPS = (1, 5, 10, 20, 30)
"""Steps at which the balls are compared with the true ones; later, chaos has parted even equal worlds."""

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
    images = _images(frames, geometry)
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
    """Return what of a ball's mass lies above the threshold: ``pi r^2`` times the integral of exp(-q^4) over q."""
    edge = math.pow(math.log(1 / THRESHOLD), 0.25)  # (d / r)^2 where the profile crosses the threshold
    middle = (np.arange(1000) + 0.5) / 1000 * edge
    return math.pi * geometry.radius * geometry.radius * edge * float(np.exp(-(middle**4)).mean())


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _fit(image: NDArray[np.float32], radius: float, centres: FloatArray) -> None:
    """Move ``centres [k, 2]`` to the least squared error between the image and the clipped sum of profiles."""
    side = len(image)
    reach = _FIT_REACH * radius
    for _ in range(_FIT_SWEEPS):
        furthest = 0.0
        for k in range(len(centres)):
            x, y = centres[k]
            xx = yy = 1e-6  # not 0: a ball without an edge inside the frame stays where it is
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


def match_balls(detections: Detections, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Follow each ball through time.

    From each frame to the next the balls are matched so that the sum of the squared distances is least. A frame with
    another number of balls than the world's breaks the tracks: NaN there, and after it the order begins anew.

    Returns:
        ``[n, t, balls, 2]`` px; along t the second last index is the same ball as long as there is no NaN between.
    """
    tracks = _complete(detections, geometry)
    for index in range(1, tracks.shape[1]):
        tracks[:, index] = _matched(tracks[:, index - 1], tracks[:, index])
    return tracks


def check_world(frames: Tensor, geometry: WorldGeometry = WORLD) -> None:
    """Check that videos can be of a world, before the work of making them.

    Raises:
        ValueError: frames have a wrong shape, type or value.
    """
    _images(frames, geometry)


def frame_mass(frames: Tensor, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the mass of each frame, ``[n, t]``: its pixel sum in units of all balls' (110.7). Truth: 1, from 0.98.

    Raises:
        ValueError: as `detect_balls`.
    """
    mass: FloatArray = _images(frames, geometry).sum(axis=(-2, -1), dtype=np.float64)
    return mass / (geometry.balls * geometry.ball_mass)


def sharpness(frames: Tensor, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the share of each frame's pixels strictly between 0.1 and 0.9, ``[n, t]``, less for sharper ones.

    Truth: 0.089, from 0.074 to 0.099. A black frame has 0, so read it beside the mass.

    Raises:
        ValueError: as `detect_balls`.
    """
    images = _images(frames, geometry)
    share: FloatArray = ((images > 0.1) & (images < 0.9)).mean(axis=(-2, -1))
    return share


def kinetic_energy(tracks: FloatArray) -> FloatArray:
    """Return the sum over balls of the squared displacement of each transition, ``[n, t - 1]`` px^2; NaN if untracked.

    Truth: 2.25 but for transitions with a bounce, which turn some of the way back: median 2.25, mean 2.18.

    Args:
        tracks: what `match_balls` returns, of 2 frames or more.

    Raises:
        ValueError: there is one frame only.
    """
    energy: FloatArray = (_displacements(tracks) ** 2).sum(axis=(-2, -1))
    return energy


def outside_share(detections: Detections, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the share of the found balls that reach more than `SLACK` beyond a wall, ``[n, t]``; NaN without balls.

    A ball is inside if its centre is in ``radius - slack .. side - radius + slack`` on both axes. Truth: 0.
    """
    low = geometry.radius - SLACK * geometry.speed
    outside = (detections.centres < low) | (detections.centres > geometry.side - low)
    return _mean(np.where(np.isnan(detections.centres[..., 0]), np.nan, outside.any(axis=-1)), axis=-1)


def overlap_share(detections: Detections, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the share of pairs of found balls nearer than ``2 radius - slack``, ``[n, t]``; NaN without a pair.

    Slack is `SLACK`. Truth: 0.
    """
    first, second = np.triu_indices(detections.centres.shape[2], 1)
    distance = np.linalg.norm(detections.centres[:, :, first] - detections.centres[:, :, second], axis=-1)
    near = distance < 2 * geometry.radius - SLACK * geometry.speed
    return _mean(np.where(np.isnan(distance), np.nan, near), axis=-1)


def bounces(tracks: FloatArray, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return 1 for each transition in which the velocity of a ball changes, else 0, ``[n, t - 1]``.

    NaN where the tracks do not tell; they never do for the last transition. The mean is the bounce rate, in truth 0.214
    (0.222 by the simulator's velocities on the same sequences, which also shows changes below `CHANGE`).

    The displacement of a ball changes by more than `CHANGE` at one frame if it bounced at the end of the transition
    into that frame, and at both frames of a transition if it bounced within. So a run of such frames is cut into pairs,
    each a bounce in the transition between them, and what is left over is one in the transition before it.

    Centres that jitter count as well, so read it beside the sharpness: true frames blurred by 0.8 px with noise of 0.05
    have a rate of 0.55 (and reflections off by 4 degrees), while count and energy hardly change.

    Raises:
        ValueError: there is one frame only.
    """
    changed, known = _velocity_changes(tracks, geometry)
    run = np.zeros_like(changed, dtype=np.int64)  # place in a run of changes, from 1
    for index in range(1, run.shape[1]):
        run[:, index] = np.where(changed[:, index], run[:, index - 1] + 1, 0)
    odd, following = run[:, :-1] % 2 == 1, changed[:, 1:]
    within = odd & following
    at_end = (run[:, 1:] % 2 == 1) & ~np.concatenate([changed[:, 2:], np.zeros_like(changed[:, :1])], axis=1)
    told = known[:, 1:] & known[:, :-1]
    told[:, 0] = known[:, 1]
    return np.where(told, (within | at_end).any(axis=-1), np.nan)


class Reflections(NamedTuple):
    """Isolated contacts, one entry for each ball that changed its direction; a pair has two.

    Attributes:
        sequence: ``[m]``, the sequence.
        frame: ``[m]``, the frame at which the displacement first changed, counted from 0.
        degrees: ``[m]``, 0..180, the angle between the direction after the contact and that of the elastic law.
        pair: ``[m]``, whether with another ball, else with a wall.
    """

    sequence: IntArray
    frame: IntArray
    degrees: FloatArray
    pair: BoolArray


def reflections(tracks: FloatArray, geometry: WorldGeometry = WORLD) -> Reflections:
    """Hold each isolated contact against the elastic law.

    A contact is a run of at most `LONGEST_CONTACT` frames at which a ball's displacement changes. The velocity before
    is the displacement into its first frame, the velocity after that from its last frame on. The two straight paths
    are nearest to each other at the time of the contact; there

    - a wall is met if the ball comes to within `SLACK` of it and approaches: the law turns the velocity across it;
    - another ball is met if it is within ``2 radius + slack`` and approaches: the law exchanges the velocities along
      the line of centres.

    Left out are contacts with more or less than one wall or ball, those with another near when they are over, those
    with a ball that is itself meeting something else, and those after which the ball is or should be slower than
    `LEAST_SPEED`. Truth: median below 0.001, for 99 % below 1.

    Raises:
        ValueError: there is one frame only.
    """
    slack = SLACK * geometry.speed
    sequence, ball, first, last = _isolated_changes(tracks, geometry)
    one = np.arange(len(sequence))
    velocities = tracks[sequence, first] - tracks[sequence, first - 1]  # [m, balls, 2]
    ends = tracks[sequence, last]  # [m, balls, 2]
    before, after = velocities[one, ball], tracks[sequence, last + 1, ball] - ends[one, ball]
    # The time at which the two paths are nearest, in frames after the first, and all balls at that time.
    apart = tracks[sequence, first, ball] - (ends[one, ball] - after * (last - first)[:, None])
    change = before - after
    with np.errstate(invalid="ignore", divide="ignore"):  # no change in all: NaN, left out below
        time = -(apart * change).sum(axis=-1) / (change**2).sum(axis=-1)
    positions = tracks[sequence, first] + velocities * np.clip(time, -1, last - first + 1)[:, None, None]

    low, high = geometry.radius + slack, geometry.side - geometry.radius - slack
    walls = ((positions < low) & (velocities < 0)) | ((positions > high) & (velocities > 0))  # [m, balls, 2]
    line = positions[:, :, None] - positions[:, None]  # [m, balls, balls, 2]
    distance = np.linalg.norm(line, axis=-1)
    closing = ((velocities[:, :, None] - velocities[:, None]) * line).sum(axis=-1) < 0
    meets = (distance < 2 * geometry.radius + slack) & closing  # [m, balls, balls], never with itself
    pair, partner = meets[one, ball].any(axis=-1), meets[one, ball].argmax(axis=-1)
    partner_contacts = walls[one, partner].sum(axis=-1) + meets[one, partner].sum(axis=-1)
    partner_changes = _velocity_changes(tracks, geometry)[0][sequence, first - 1, partner]

    # All that the ball has met, with what it is near to when the contact is over: else two contacts look like one.
    end_distance = np.linalg.norm(ends - ends[one, ball][:, None], axis=-1)  # [m, balls]
    end_distance[one, ball] = np.inf
    met_walls = walls[one, ball] | (ends[one, ball] < low) | (ends[one, ball] > high)
    met_balls = meets[one, ball] | (end_distance < 2 * geometry.radius + slack)
    alone = (walls[one, ball].sum(axis=-1) + pair == 1) & (met_walls.sum(axis=-1) + met_balls.sum(axis=-1) == 1)
    alone &= ~pair | ((partner_contacts == 1) & ~partner_changes)

    normal = line[one, ball, partner] / np.where(pair, distance[one, ball, partner], 1)[:, None]
    exchange = ((velocities[one, partner] - before) * normal).sum(axis=-1, keepdims=True) * normal
    law = np.where(pair[:, None], before + exchange, np.where(walls[one, ball], -before, before))
    slowest = np.minimum(np.linalg.norm(law, axis=-1), np.linalg.norm(after, axis=-1))
    alone &= (slowest >= LEAST_SPEED * geometry.speed) & np.isfinite(time)
    cross = law[:, 0] * after[:, 1] - law[:, 1] * after[:, 0]
    degrees = np.degrees(np.arctan2(np.abs(cross), (law * after).sum(axis=-1)))
    return Reflections(sequence[alone], first[alone], degrees[alone], pair[alone])


def _isolated_changes(tracks: FloatArray, geometry: WorldGeometry) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return the sequence, ball, first and last frame ``[m]`` of each short run of changes of a ball's displacement.

    The frame before and the one after are known to be without a change: else half of another bounce may be in the
    displacements there.
    """
    changed, known = _velocity_changes(tracks, geometry)
    edges = np.diff(np.pad(changed.transpose(0, 2, 1), ((0, 0), (0, 0), (1, 1))).astype(np.int8), axis=-1)
    sequence, ball, first = (edges == 1).nonzero()
    last = (edges == -1).nonzero()[2] - 1
    isolated = (last - first < LONGEST_CONTACT) & known[sequence, first - 1] & known[sequence, last + 1]
    return sequence[isolated], ball[isolated], first[isolated], last[isolated]


def tracked_error(detections: Detections, truth: Detections, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the mean distance of the balls from the true ones at each frame, ``[n, t]`` px.

    The balls of each frame are matched anew so that the sum of the squared distances is least, since balls have no
    names. NaN where one of the two does not show the world's number of balls. Truth: 0; unrelated true frames: 8.2.

    Raises:
        ValueError: the two have different numbers of sequences or frames.
    """
    if detections.counts.shape != truth.counts.shape:
        raise ValueError(
            "detections and truth must have the same sequences and frames [n, t], "
            f"received {list(detections.counts.shape)} and {list(truth.counts.shape)}"
        )
    balls = _complete(detections, geometry)
    distance: FloatArray = np.linalg.norm(balls - _matched(balls, _complete(truth, geometry)), axis=-1).mean(axis=-1)
    return distance


def smoothed_energy(energy: FloatArray) -> FloatArray:
    """Return the running median of ``[n, t]`` over `ENERGY_WINDOW` frames, centred, shortened at both ends.

    NaN are left out; where no more than half of a window's frames are left, the result is NaN.
    """
    half = ENERGY_WINDOW // 2
    padded = np.pad(energy, ((0, 0), (half, half)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, ENERGY_WINDOW, axis=1)
    enough = np.isfinite(windows).sum(axis=-1) > half
    return np.where(enough, _median(windows, axis=-1), np.nan)


def lifetime(
    count: IntArray, energy: FloatArray, reference: FloatArray | float | None = None, geometry: WorldGeometry = WORLD
) -> IntArray:
    """Return the number of steps, ``[n]``, before each sequence ends; t if it does not.

    It ends with the first of `WRONG_COUNT_FRAMES` steps in a row that have a wrong number of balls, or with the first
    step at which the smoothed energy is off its reference by more than `ENERGY_BAND`, whichever is earlier. Of true
    sequences of 200 frames 0.998 do not end.

    Args:
        count: ``[n, t]`` balls found at each step.
        energy: ``[n, t]`` what `smoothed_energy` returns, for the transition into each step; NaN is not judged.
        reference: ``[n]`` px^2, or one for all; the world's if None.
        geometry: the world.
    """
    wrong = count != geometry.balls
    if count.shape[1] >= WRONG_COUNT_FRAMES:
        in_a_row = np.lib.stride_tricks.sliding_window_view(wrong, WRONG_COUNT_FRAMES, axis=1).all(axis=-1)
        ends = np.pad(in_a_row, ((0, 0), (0, WRONG_COUNT_FRAMES - 1)))
    else:
        ends = np.zeros_like(wrong)
    target = np.broadcast_to(geometry.energy if reference is None else reference, len(count))[:, None]
    ends = ends | (np.abs(energy - target) > ENERGY_BAND * target)
    steps: IntArray = np.pad(ends, ((0, 0), (0, 1)), constant_values=True).argmax(axis=1)
    return steps


class VideoPhysics(NamedTuple):
    """What `judge` measured: ``[n, t]`` at each step, or ``[n]`` for each sequence. NaN where it cannot be known.

    Attributes:
        counts: balls found.
        mass: `frame_mass`.
        energy: `kinetic_energy` of the transition into the step, px^2.
        smooth_energy: `smoothed_energy` of it.
        outside: `outside_share`.
        overlap: `overlap_share`.
        sharpness: `sharpness`.
        bounce: `bounces` in the transition into the step.
        reflections: `reflections`; a frame is the index of a step.
        reference_energy: ``[n]`` what the lifetime is held against, px^2.
        lifetime: ``[n]`` `lifetime`.
        tracked: `tracked_error` beside the true video, up to the last of `TRACKED_STEPS`, NaN later; None without one.
    """

    counts: IntArray
    mass: FloatArray
    energy: FloatArray
    smooth_energy: FloatArray
    outside: FloatArray
    overlap: FloatArray
    sharpness: FloatArray
    bounce: FloatArray
    reflections: Reflections
    reference_energy: FloatArray
    lifetime: IntArray
    tracked: FloatArray | None


def judge(
    frames: Tensor, truth: Tensor | None = None, before: Tensor | None = None, *, geometry: WorldGeometry = WORLD
) -> VideoPhysics:
    """Measure every metric of videos, dreamt or true.

    Args:
        frames: ``[n, t, 1, side, side]``, or one sequence ``[t, 1, side, side]``, floating point in 0..1.
        truth: the true videos from the same step on, of any length; they are compared as far as both go.
        before: the frames just before, any number: with one, the motion into the first step is known; with 12 or more,
            the median of their energy is the reference of the lifetime instead of the world's.
        geometry: the world.

    Raises:
        ValueError: frames have a wrong shape, type or value, are not of the same number of sequences, or there is only
            one frame in all and so no motion.
    """
    images = _images(frames, geometry)
    n, t = images.shape[:2]
    given = {"truth": truth, "before": before}
    for name, other in given.items():
        if other is not None and len(_images(other, geometry, name)) != n:
            raise ValueError(f"{name} must have the {n} sequences of frames, received {len(_images(other, geometry))}")
    detections = whole = detect_balls(frames, geometry)
    earlier = 0
    if before is not None:
        seen = detect_balls(before, geometry)
        earlier = seen.counts.shape[1]
        whole = Detections(
            np.concatenate([seen.counts, detections.counts], axis=1),
            np.concatenate([seen.centres, detections.centres], axis=1),
        )
    if earlier + t < 2:
        raise ValueError("frames must be >= 2, those before included, to show a motion; received 1")

    tracks = match_balls(whole, geometry)
    energy = kinetic_energy(tracks)
    reference = np.full(n, geometry.energy)
    if earlier > ENERGY_WINDOW:
        own = _median(energy[:, : earlier - 1], axis=1)
        reference = np.where(own > 0, own, reference)  # NaN or 0: no motion was seen before
    met = reflections(tracks, geometry)
    late = met.frame >= earlier
    contacts = Reflections(met.sequence[late], met.frame[late] - earlier, met.degrees[late], met.pair[late])
    smooth = _last(smoothed_energy(energy), t)
    tracked = None
    if truth is not None:
        true_frames = truth if truth.dim() == 5 else truth[None]
        shared = min(t, true_frames.shape[1], max(TRACKED_STEPS))
        tracked = np.full((n, t), np.nan)
        cut = Detections(detections.counts[:, :shared], detections.centres[:, :shared])
        tracked[:, :shared] = tracked_error(cut, detect_balls(true_frames[:, :shared], geometry), geometry)
    return VideoPhysics(
        counts=detections.counts,
        mass=frame_mass(frames, geometry),
        energy=_last(energy, t),
        smooth_energy=smooth,
        outside=outside_share(detections, geometry),
        overlap=overlap_share(detections, geometry),
        sharpness=sharpness(frames, geometry),
        bounce=_last(bounces(tracks, geometry), t),
        reflections=contacts,
        reference_energy=reference,
        lifetime=lifetime(detections.counts, smooth, reference, geometry),
        tracked=tracked,
    )


class WindowPhysics(BaseModel):
    """The physics of steps ``first`` to ``last``, counted from 1. None where nothing could be measured.

    Attributes:
        first, last: the steps.
        right_count: share of the frames with the world's number of balls.
        mass: median over sequences of their median.
        kinetic_energy: px^2, median over sequences of their median, over the transitions that could be followed.
        outside, overlap: mean share over the frames.
        sharpness: mean share over the frames.
        bounce_rate: share of the transitions that could be followed.
        reflection_degrees: median over the contacts.
        contacts: how many; each ball of a pair counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    last: int
    right_count: float
    mass: float
    kinetic_energy: float | None
    outside: float | None
    overlap: float | None
    sharpness: float
    bounce_rate: float | None
    reflection_degrees: float | None
    contacts: int


class TrackedError(BaseModel):
    """Distance from the true balls at one step, px, over the sequences in which it is known (``share`` of all)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    median: float | None
    mean: float | None
    share: float


class StepPhysics(BaseModel):
    """The physics at each step, the first value is step 1; None where nothing could be measured.

    Attributes:
        right_count: share of the sequences with the world's number of balls.
        mass: median over sequences.
        kinetic_energy: px^2, median over sequences, not smoothed.
        outside, overlap, sharpness: mean over sequences.
        bounce_rate: share of sequences.
        alive: share of the sequences whose lifetime reaches the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    right_count: tuple[float, ...]
    mass: tuple[float, ...]
    kinetic_energy: tuple[float | None, ...]
    outside: tuple[float | None, ...]
    overlap: tuple[float | None, ...]
    sharpness: tuple[float, ...]
    bounce_rate: tuple[float | None, ...]
    alive: tuple[float, ...]


class PhysicsSummary(BaseModel):
    """What `summarise_physics` measured, ready for JSON; ``PhysicsSummary.model_validate_json`` reads it back.

    Attributes:
        geometry: the world that the videos were held against.
        sequences, steps: their numbers.
        windows: steps 1 to 50, 1 to 150, the last 50, as far as the video is longer; the last one is all steps.
        lifetime: median over sequences, steps; a sequence that does not end counts with all its steps.
        never_ended: share of the sequences that were alive at the last step.
        reference_energy: px^2, median over sequences of what the lifetime was held against.
        tracked: at each of `TRACKED_STEPS` that both videos reach; empty without a true video.
        by_step: at each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: WorldGeometry
    sequences: int
    steps: int
    windows: tuple[WindowPhysics, ...]
    lifetime: float
    never_ended: float
    reference_energy: float
    tracked: tuple[TrackedError, ...]
    by_step: StepPhysics


def summarise_physics(
    frames: Tensor, truth: Tensor | None = None, before: Tensor | None = None, *, geometry: WorldGeometry = WORLD
) -> PhysicsSummary:
    """Judge videos and summarise them over sequences; arguments and errors as `judge`."""
    physics = judge(frames, truth, before, geometry=geometry)
    n, t = physics.counts.shape
    right = physics.counts == geometry.balls
    alive = physics.lifetime[:, None] >= np.arange(1, t + 1)
    parts = [(1, 50), (1, 150), (t - 49, t)]
    spans = [(first, last) for first, last in parts if first >= 1 and last <= t and (first, last) != (1, t)]
    tracked = []
    if truth is not None and physics.tracked is not None:
        reached = min(t, truth.shape[-4])
        for step in (step for step in TRACKED_STEPS if step <= reached):
            values = physics.tracked[:, step - 1]
            tracked.append(
                TrackedError(
                    step=step,
                    median=_value(_median(values)),
                    mean=_value(_mean(values)),
                    share=float(np.isfinite(values).mean()),
                )
            )
    return PhysicsSummary(
        geometry=geometry,
        sequences=n,
        steps=t,
        windows=tuple(_window(physics, right, first, last) for first, last in [*spans, (1, t)]),
        lifetime=float(np.median(physics.lifetime)),
        never_ended=float(alive[:, -1].mean()),
        reference_energy=float(np.median(physics.reference_energy)),
        tracked=tuple(tracked),
        by_step=StepPhysics(
            right_count=tuple(right.mean(axis=0).tolist()),
            mass=tuple(np.median(physics.mass, axis=0).tolist()),
            kinetic_energy=_values(_median(physics.energy, axis=0)),
            outside=_values(_mean(physics.outside, axis=0)),
            overlap=_values(_mean(physics.overlap, axis=0)),
            sharpness=tuple(physics.sharpness.mean(axis=0).tolist()),
            bounce_rate=_values(_mean(physics.bounce, axis=0)),
            alive=tuple(alive.mean(axis=0).tolist()),
        ),
    )


def _window(physics: VideoPhysics, right: BoolArray, first: int, last: int) -> WindowPhysics:
    steps = slice(first - 1, last)
    contact = physics.reflections
    degrees = contact.degrees[(contact.frame >= first - 1) & (contact.frame < last)]
    return WindowPhysics(
        first=first,
        last=last,
        right_count=float(right[:, steps].mean()),
        mass=float(np.median(np.median(physics.mass[:, steps], axis=1))),
        kinetic_energy=_value(_median(_median(physics.energy[:, steps], axis=1))),
        outside=_value(_mean(physics.outside[:, steps])),
        overlap=_value(_mean(physics.overlap[:, steps])),
        sharpness=float(physics.sharpness[:, steps].mean()),
        bounce_rate=_value(_mean(physics.bounce[:, steps])),
        reflection_degrees=_value(_median(degrees)),
        contacts=len(degrees),
    )


def _complete(detections: Detections, geometry: WorldGeometry) -> FloatArray:
    """Return the centres ``[n, t, balls, 2]``, NaN in frames with another number of balls than the world's."""
    right = detections.counts == geometry.balls
    return np.where(right[..., None, None], detections.centres[:, :, : geometry.balls], np.nan)


def _matched(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return ``second [..., balls, 2]``, its balls in the order nearest to ``first``; as it is where one is NaN."""
    balls = first.shape[-2]
    squared = ((first[..., :, None, :] - second[..., None, :, :]) ** 2).sum(axis=-1)  # [..., balls, balls]
    squared = np.where(np.isnan(squared), 0, squared)  # all orders are alike: the first one, as it is
    if balls <= 4:
        orders = np.array(list(permutations(range(balls))))
        costs = squared[..., np.arange(balls), orders].sum(axis=-1)  # [..., orders]
        order = orders[costs.argmin(axis=-1)]
    else:
        order = np.empty(squared.shape[:-1], dtype=np.int64)
        for index in np.ndindex(squared.shape[:-2]):
            order[index] = linear_sum_assignment(squared[index])[1]
    return np.take_along_axis(second, order[..., None], axis=-2)


def _velocity_changes(tracks: FloatArray, geometry: WorldGeometry) -> tuple[BoolArray, BoolArray]:
    """Return where a ball's displacement changes ``[n, t, balls]``, and where that is known ``[n, t]``."""
    change = np.linalg.norm(np.diff(_displacements(tracks), axis=1), axis=-1)
    around = ((0, 0), (1, 1), (0, 0))  # a first and a last frame, of which it is not known
    changed = np.pad(change > CHANGE * geometry.speed, around)
    known = np.pad(np.isfinite(change).all(axis=-1), around[:2])
    return changed, known


def _displacements(tracks: FloatArray) -> FloatArray:
    if tracks.shape[1] < 2:
        raise ValueError(f"tracks must be [n, t, balls, 2] with t >= 2 to show a motion, received {list(tracks.shape)}")
    return np.diff(tracks, axis=1)


def _last(by_transition: FloatArray, steps: int) -> FloatArray:
    """Return the transitions into the last ``steps`` frames; that into the very first frame is unknown."""
    return np.pad(by_transition, ((0, 0), (1, 0)), constant_values=np.nan)[:, -steps:]


def _median(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Return the median of what is not NaN; NaN if nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing is left: NaN is the answer
        return np.asarray(np.nanmedian(values, axis=axis))


def _mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Return the mean of what is not NaN; NaN if nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def _value(number: FloatArray) -> float | None:
    return None if np.isnan(number) else float(number)


def _values(numbers: FloatArray) -> tuple[float | None, ...]:
    return tuple(_value(number) for number in numbers)


def _images(frames: Tensor, geometry: WorldGeometry, name: str = "frames") -> NDArray[np.float32]:
    """Return the checked frames as ``[n, t, side, side]``."""
    shape, side = list(frames.shape), geometry.side
    if len(shape) not in (4, 5) or 0 in shape or shape[-3:] != [1, side, side]:
        raise ValueError(
            f"{name} must have the shape [n, t, 1, {side}, {side}] or [t, 1, {side}, {side}], none of them 0; "
            f"received {shape}"
        )
    if not frames.is_floating_point():
        raise ValueError(f"{name} must be floating point in 0..1, received {frames.dtype}")
    low, high = (float(value) for value in frames.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(f"{name} must lie in 0..1 and be finite, received values from {low:g} to {high:g}")
    images: NDArray[np.float32] = frames.detach().cpu().float().contiguous().numpy()
    return images.reshape(-1, shape[-4], side, side)
