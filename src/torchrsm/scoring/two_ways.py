"""Scores whether draws are of both futures where a ball may turn left or right, each as often as it comes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchrsm.predictor import evaluation_mode
from torchrsm.scoring.samples import share_of_one
from torchrsm.streams.bouncing_balls import BallSequences
from torchrsm.streams.chance_balls import crossings


class TwoWayScores(NamedTuple):
    """What `evaluate_two_ways` measured.

    Attributes:
        crossings: how often a ball crossed the mark.
        left: share of left turns among the draws that show one of the two futures.
        left_truth: share of left turns among those that came.
        neither: share of draws that show neither future.
    """

    crossings: int
    left: float
    left_truth: float
    neither: float


def evaluate_two_ways(
    model: Any,
    sequences: BallSequences,
    samples: int = 16,
    seed: int = 0,
    radius: float = 1.2,
    batch_size: int = 50,
) -> TwoWayScores:
    """Let a model predict the frames in which a ball of `torchrsm.streams.TwoWayBalls` turns, from all before them.

    Args:
        model: a `torchrsm.predictor.Predictor`; with ``samples`` its `predict` takes ``samples`` and ``generator``.
        sequences: of one ball each, from `torchrsm.streams.two_way_ball_sequences`.
        samples: draws of each prediction, >= 0; with 0 the predicted frame stands for them.
        seed: of the draws, 0 to 2^62.
        radius: of the ball, world units.
        batch_size: sequences side by side, >= 1. Another size draws other noise.

    Raises:
        ValueError: an argument is out of its range, the model cannot draw, or no ball crosses the mark.
    """
    if samples < 0:
        raise ValueError(f"samples must be >= 0; got {samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1; got {batch_size}")
    turns = crossings(sequences, radius)
    if len(turns.time) == 0:
        raise ValueError("a ball must cross the mark in one of the sequences; got none that does")
    left, neither = torch.zeros(2, len(turns.time), dtype=torch.float64)
    for number, batch in enumerate(sequences.frames.split(batch_size)):
        first = number * batch_size
        generator: torch.Generator | None = None
        with torch.inference_mode(), evaluation_mode(model):
            state = model.initial_state((len(batch), *batch.shape[2:]))
            prediction = model.predict(state)
            for time, frame in enumerate(batch.unbind(1)):
                here = (turns.time == time) & (turns.sequence >= first) & (turns.sequence < first + len(batch))
                if here.any():
                    generator = generator or torch.Generator(prediction.frame.device).manual_seed(seed + number)
                    drawn: Any = prediction.frame[None]
                    if samples:
                        drawn = model.predict(state, samples=samples, generator=generator).samples
                    draws = drawn.cpu()[:, turns.sequence[here] - first]
                    left[here], neither[here] = share_of_one(draws, turns.left[here], turns.right[here])
                state = model.observe(frame.to(prediction.frame.device, copy=True), prediction, state)
                prediction = model.predict(state)
    either = 1 - neither
    return TwoWayScores(
        crossings=len(turns.time),
        left=float((left * either).sum() / either.sum().clamp(min=1e-9)),
        left_truth=float(turns.turned_left.double().mean()),
        neither=float(neither.mean()),
    )
