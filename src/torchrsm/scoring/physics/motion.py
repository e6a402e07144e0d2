"""Follows the balls through time and measures their motion: a function for each metric.

Displacements are in pixels per frame. NaN stands for what could not be measured. The true values in the docstrings were
measured with this module on the 200 validation sequences.

Source: docs/science/protocol.md, "Dreams".
"""

from __future__ import annotations

import warnings
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torchrsm.scoring.physics.detection import (
    WORLD,
    BoolArray,
    Detections,
    FloatArray,
    IntArray,
    WorldGeometry,
    checked_images,
)

SLACK = 0.8
"""Tolerance of position, in frames of motion at the world's full speed: 1.2 px.

A frame of the true world may show a ball as far beyond a wall as the fastest ball moves in a sub-step, half a frame:
0.75 px; and two balls nearer than they fit by sqrt(2) of that, 1.06 px. The rest is for the detection."""

CHANGE = 0.1
"""Least change of a ball's displacement from one frame to the next that is a change of velocity, in units of the
world's full speed: 0.15 px per frame. True centres are found to 0.001 px; the noise of a dream must not count."""

LEAST_SPEED = 0.2
"""Speed from which a ball has a direction, in units of the world's full speed: 0.3 px per frame."""

LONGEST_CONTACT = 4
"""Frames in which a velocity may change for it to be one contact; a true one takes one or two."""

ENERGY_WINDOW = 11
"""Frames, centred, of the running median of the kinetic energy. A ball that turns back within a frame hardly moves, so
the energy of single frames dips; that of most frames does not."""

ENERGY_BAND = 0.5
"""Share of the reference by which the smoothed energy may be off before a sequence's life ends."""

WRONG_COUNT_FRAMES = 5
"""Frames in a row with a wrong number of balls that end a sequence's life."""


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


def frame_mass(frames: Tensor, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the mass of each frame, ``[n, t]``: its pixel sum in units of all balls' (110.7). Truth: 1, from 0.98.

    Raises:
        ValueError: as `detect_balls`.
    """
    mass: FloatArray = checked_images(frames, geometry).sum(axis=(-2, -1), dtype=np.float64)
    return mass / (geometry.balls * geometry.ball_mass)


def sharpness(frames: Tensor, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the share of each frame's pixels strictly between 0.1 and 0.9, ``[n, t]``, less for sharper ones.

    Truth: 0.089, from 0.074 to 0.099. A black frame has 0, so read it beside the mass.

    Raises:
        ValueError: as `detect_balls`.
    """
    images = checked_images(frames, geometry)
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
    return mean(np.where(np.isnan(detections.centres[..., 0]), np.nan, outside.any(axis=-1)), axis=-1)


def overlap_share(detections: Detections, geometry: WorldGeometry = WORLD) -> FloatArray:
    """Return the share of pairs of found balls nearer than ``2 radius - slack``, ``[n, t]``; NaN without a pair.

    Slack is `SLACK`. Truth: 0.
    """
    first, second = np.triu_indices(detections.centres.shape[2], 1)
    distance = np.linalg.norm(detections.centres[:, :, first] - detections.centres[:, :, second], axis=-1)
    near = distance < 2 * geometry.radius - SLACK * geometry.speed
    return mean(np.where(np.isnan(distance), np.nan, near), axis=-1)


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
    """Compare each isolated contact with the elastic law.

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
            "detections and truth must have the same sequences and frames [n, t]; "
            f"got {list(detections.counts.shape)} and {list(truth.counts.shape)}"
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
    return np.where(enough, median(windows, axis=-1), np.nan)


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
        raise ValueError(f"tracks must be [n, t, balls, 2] with t >= 2 to show a motion; got {list(tracks.shape)}")
    return np.diff(tracks, axis=1)


def median(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Return the median of the values that are not NaN; NaN if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing is left: NaN is the answer
        return np.asarray(np.nanmedian(values, axis=axis))


def mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))
