"""Scores predictions of bouncing balls of which a predictor did not see all: by what was true, and where it matters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torchrsm.predictor import Predictor
from torchrsm.scoring.metrics import Summary, summarise
from torchrsm.scoring.physics import detect_balls
from torchrsm.scoring.rollouts import world_geometry
from torchrsm.scoring.sequences import predict_sequences
from torchrsm.streams.bouncing_balls import BOX, BallSequences
from torchrsm.streams.disturbed import DisturbanceConfig, disturbed_sequences, expected_noisy
from torchrsm.streams.settings import PUBLISHED_BALLS, BallWorldConfig

FIRST = 10
"""Frames that a predictor sees before the first that is scored."""

NEAR = 6
"""Pixels beside a bar that are scored apart, too."""


class DisturbedScores(NamedTuple):
    """What `score_disturbed` measured, over sequences.

    Attributes:
        error: squared error of frame 11 to the last, summed over the pixels that are ever shown.
        after_gap: the same of frames that are shown where the one before was not; None where there is no gap.
        gap_distance: px, of these frames the median distance of a true ball from the nearest predicted one, each of
            which stands for one ball; infinite where most balls are missing; None where there is no gap.
        near_bar: squared error within `NEAR` pixels of the edges of a bar, outside of it; None where there is none.
        behind_bar: squared error behind it; None where there is none.
    """

    error: Summary
    after_gap: Summary | None
    gap_distance: float | None
    near_bar: Summary | None
    behind_bar: Summary | None


def score_disturbed(
    predictor: Predictor[Any, Any],
    sequences: BallSequences,
    disturbance: DisturbanceConfig,
    world: BallWorldConfig = PUBLISHED_BALLS,
    batch_size: int = 50,
) -> DisturbedScores:
    """Show a predictor what is left of sequences, and score its predictions by the true frames.

    Of noisy frames the truth is their mean, since that is all that can be known (`expected_noisy`).

    Args:
        predictor: the system.
        sequences: of bouncing balls, more than `FIRST` frames each.
        disturbance: what disturbs them, at most one value of each.
        world: of the sequences.
        batch_size: sequences side by side, >= 1.

    Raises:
        ValueError: the sequences are too short, or several values are given of a disturbance.
    """
    frames = sequences.frames
    if frames.shape[1] <= FIRST:
        raise ValueError(f"sequences must have > {FIRST} frames; got {frames.shape[1]}")
    for name in ("noise", "flicker", "blackout", "bar"):
        if len(values := getattr(disturbance, name)) > 1:
            raise ValueError(f"disturbance.{name} must be one value; got {values}")
    shown, seen = disturbed_sequences(frames, disturbance)
    truth = expected_noisy(frames, disturbance.noise[0]) if disturbance.noise else frames
    parts = [
        predict_sequences(predictor, shown[part], None if seen is None else seen[part]).frames
        for part in torch.arange(len(frames)).split(batch_size)
    ]
    predicted = torch.cat(parts)
    squares = (predicted - truth).double().square().sum(2)  # [n, t, h, w]
    scored = squares[:, FIRST:]
    if seen is None:
        return DisturbedScores(_summed(scored), None, None, None, None)
    ever = seen.flatten(0, 2).any(0)  # [h, w]
    near_bar = behind_bar = None
    if disturbance.bar:
        near_bar, behind_bar = _summed(scored * _beside(ever)), _summed(scored * ~ever)
    visible = seen.flatten(2).any(2)  # [n, t]
    gap_ends = torch.zeros_like(visible)
    gap_ends[:, 1:] = visible[:, 1:] & ~visible[:, :-1]
    gap_ends[:, :FIRST] = False
    after_gap, distance = None, None
    if gap_ends.any():
        errors = (squares * ever).sum((2, 3))
        has = gap_ends.any(1)
        after_gap = summarise((torch.where(gap_ends, errors, 0.0).sum(1) / gap_ends.sum(1).clamp(min=1))[has])
        distance = _distance(predicted[gap_ends], sequences.positions[gap_ends], world)
    return DisturbedScores(_summed(scored * ever), after_gap, distance, near_bar, behind_bar)


def _summed(squares: Tensor) -> Summary:
    """Summarise squared errors ``[n, t, h, w]``: summed over pixels, means over frames, then over sequences."""
    return summarise(squares.sum((2, 3)).mean(1))


def _beside(ever: Tensor) -> Tensor:
    """Return the pixels ``[h, w]`` that are shown and lie within `NEAR` columns of one that never is."""
    hidden = (~ever).any(0)
    near = torch.nn.functional.max_pool1d(hidden.double()[None], 2 * NEAR + 1, 1, NEAR)[0] > 0
    return ever & near


def _distance(predicted: Tensor, positions: Tensor, world: BallWorldConfig) -> float:
    """Return the median distance, px, of true balls ``[n, balls, 2]`` from those in frames ``[n, c, h, w]``."""
    geometry = world_geometry(world)
    centres = detect_balls(predicted[:, None].clamp(0, 1), geometry).centres[:, 0]  # [n, limit, 2], NaN beyond
    true = positions.numpy() * geometry.side / BOX
    found = []
    for there, here in zip(true, centres, strict=True):
        known = here[~np.isnan(here[:, 0])]
        apart = np.linalg.norm(there[:, None] - known[None], axis=-1)
        rows, columns = linear_sum_assignment(apart)
        found.append(np.concatenate((apart[rows, columns], np.full(len(there) - len(rows), np.inf))))
    return float(np.median(np.concatenate(found)))
