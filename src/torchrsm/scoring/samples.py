"""Scores draws of what may come: whether they are distributed as what comes, and each of them as sharp.

An error of one draw says little where several futures are possible: a draw of another future than the one that comes
is as wrong as a bad one. These scores compare the draws of a prediction as a whole with what came.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, PlainSerializer
from torch import Tensor

from torchrsm.predictor import Predictor, evaluation_mode
from torchrsm.scoring.metrics import Summary, frame_squared_error, summarise
from torchrsm.scoring.sequences import Mapped, check_sequences, one_by_one

_SummaryField = Annotated[Summary, PlainSerializer(lambda summary: summary._asdict())]

_BLURRED = (0.1, 0.9)  # a pixel between these is neither dark nor bright


def energy_score(samples: Tensor, frame: Tensor) -> Tensor:
    """Return ``E|x - y| - E|x - x'| / 2`` of draws x and what came y, ``[...]`` float64; the lower, the better.

    The norm is that of whole frames. The mean over pairs leaves out those of a draw with itself, so it is unbiased.

    Args:
        samples: ``[m, ..., c, h, w]``, m draws of each prediction, m >= 2.
        frame: ``[..., c, h, w]``.

    Source: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation" (2007), section 4.3.

    Raises:
        ValueError: there are fewer than two draws, or they have another shape than the frame.
    """
    count = _check_samples(samples, frame)
    draws, came = (x.to(torch.float64).flatten(-3) for x in (samples, frame))
    to_frame = (draws - came).norm(dim=-1).mean(0)
    apart = torch.zeros_like(to_frame)
    for i in range(count - 1):
        apart += (draws[i + 1 :] - draws[i]).norm(dim=-1).sum(0)
    score: Tensor = to_frame - apart / (count * (count - 1))
    return score


def continuous_ranked_probability_score(samples: Tensor, frame: Tensor) -> Tensor:
    """Return the CRPS of each pixel, its mean over the pixels of a frame, ``[...]`` float64; the lower, the better.

    It is the energy score in one dimension: each pixel for itself. It does not ask which pixels belong together.

    Args:
        samples: ``[m, ..., c, h, w]``, m draws of each prediction, m >= 2.
        frame: ``[..., c, h, w]``.

    Raises:
        ValueError: as for `energy_score`.
    """
    count = _check_samples(samples, frame)
    draws, came = samples.to(torch.float64), frame.to(torch.float64)
    # Of sorted draws the sum of all distances between two is one weighted sum.
    weights = 2 * torch.arange(count, dtype=torch.float64) - (count - 1)
    apart = (draws.sort(0).values * weights.view(-1, *[1] * came.dim())).sum(0)
    pixels = (draws - came).abs().mean(0) - apart / (count * (count - 1))
    return pixels.mean((-3, -2, -1))


def spread(samples: Tensor) -> Tensor:
    """Return the variance of draws ``[m, ..., c, h, w]``, summed over the pixels of a frame, ``[...]`` float64.

    Where draws and what comes are of one distribution, the mean of m draws has on average the squared error
    ``(1 + 1 / m) * spread``.
    """
    return samples.to(torch.float64).var(0).sum((-3, -2, -1))


def share_of_one(samples: Tensor, one: Tensor, other: Tensor, share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Return the share of draws that are one of two futures, and of those that are neither; both ``[n]`` float64.

    A draw is the nearer of both futures, if its squared distance from it is at most a ``share`` of that between them.
    The first share is of the draws that are either.

    Args:
        samples: ``[m, n, c, h, w]``.
        one, other: the two futures, ``[n, c, h, w]``.
        share: 0 to 0.25; at 0.25 a draw half-way between both is just one of them.
    """
    apart = frame_squared_error(one, other)
    to_one, to_other = (frame_squared_error(samples, future.expand_as(samples)) for future in (one, other))
    neither = torch.minimum(to_one, to_other) > share * apart
    is_one = (to_one < to_other) & ~neither
    either = (~neither).sum(0).clamp(min=1)
    return is_one.sum(0).to(torch.float64) / either, neither.to(torch.float64).mean(0)


class SampleScores(BaseModel):
    """What `evaluate_samples` measured: means over frames 2 to the last, then over sequences.

    Attributes:
        samples: draws of each prediction.
        energy_score: of whole frames, see `energy_score`.
        first_energy_score: the same of frame 2 alone: no motion has been seen, so it is certain of no world that moves.
        crps: see `continuous_ranked_probability_score`.
        draw_error: squared error of a draw, summed over the pixels of a frame.
        mean_error: the same of the mean of the draws.
        raw_error: the same of the stack's prediction.
        calibration: ``(1 + 1 / samples) * spread / mean_error``; 1 where draws are distributed as what comes, below 1
            where they differ too little from each other.
        blurred: share of pixels of a draw between 0.1 and 0.9.
        blurred_truth: the same of the frames that came.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    energy_score: _SummaryField
    first_energy_score: _SummaryField
    crps: _SummaryField
    draw_error: _SummaryField
    mean_error: _SummaryField
    raw_error: _SummaryField
    calibration: float
    blurred: float
    blurred_truth: float

    def table(self) -> str:
        """Return the scores as a text table, every line at most 120 characters."""
        rows = (
            ("energy score", self.energy_score),
            ("energy score of frame 2 (no motion is known)", self.first_energy_score),
            ("CRPS of a pixel", self.crps),
            ("squared error of a draw", self.draw_error),
            (f"squared error of the mean of {self.samples}", self.mean_error),
            ("squared error of the stack", self.raw_error),
            ("spread / error (calibrated: 1)", f"{self.calibration:.3f}"),
            ("pixels in 0.1..0.9", f"{self.blurred:.3f} (truth {self.blurred_truth:.3f})"),
        )
        lines = [f"{self.samples} draws of each frame that may come, mean ± sd over sequences"]
        return "\n".join([*lines, *(f"{name:<46}{value}" for name, value in rows)])


def evaluate_samples(
    model: Predictor[Any, Any],
    frames: Tensor,
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 50,
    mapped: Mapped = one_by_one,
) -> SampleScores:
    """Let a model draw what may come after each frame of sequences, and score the draws by what came.

    Args:
        model: one whose `predict` takes ``samples`` and ``generator``, such as `torchrsm.VideoPredictor`.
        frames: ``[n, t, c, h, w]`` in 0..1.
        samples: draws of each prediction, >= 2.
        seed: of the draws, 0 to 2^62.
        batch_size: sequences side by side, >= 1. Another size draws other noise.
        mapped: how the batches are worked on.

    Raises:
        ValueError: an argument is out of its range, or the model cannot draw.
    """
    check_sequences(frames)
    if samples < 2:
        raise ValueError(f"samples must be >= 2; got {samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1; got {batch_size}")

    def measure(numbered: tuple[int, Tensor]) -> Tensor:
        number, batch = numbered
        predict: Any = model.predict
        found: list[Tensor] = []
        with torch.inference_mode(), evaluation_mode(model):
            state = model.initial_state((len(batch), *batch.shape[2:]))
            prediction = predict(state)  # of frame 1, which is never scored
            generator = torch.Generator(prediction.frame.device).manual_seed(seed + number)
            for frame in batch.unbind(1):
                if prediction.samples is not None:
                    found.append(_measured(prediction, frame))
                state = model.observe(frame.to(prediction.frame.device, copy=True), prediction, state)
                prediction = predict(state, samples=samples, generator=generator)
        return torch.stack(found, -1)  # [measures, b, t - 1]

    parts = mapped(measure, list(enumerate(frames.split(batch_size))))
    measured = torch.cat(parts, 1)
    energy, crps, draw, mean, raw, variance, blurred, truth = measured.mean(-1)
    return SampleScores(
        samples=samples,
        energy_score=summarise(energy),
        first_energy_score=summarise(measured[0, :, 0]),
        crps=summarise(crps),
        draw_error=summarise(draw),
        mean_error=summarise(mean),
        raw_error=summarise(raw),
        calibration=float((1 + 1 / samples) * variance.mean() / mean.mean()),
        blurred=float(blurred.mean()),
        blurred_truth=float(truth.mean()),
    )


def _measured(prediction: Any, frame: Tensor) -> Tensor:
    """Return all measures of a frame, ``[measures, b]``."""
    draws = prediction.samples.cpu()
    return torch.stack(
        (
            energy_score(draws, frame),
            continuous_ranked_probability_score(draws, frame),
            frame_squared_error(draws, frame.expand_as(draws)).mean(0),
            frame_squared_error(draws.mean(0), frame),
            frame_squared_error(prediction.raw, frame),
            spread(draws),
            _blurred(draws).mean(0),
            _blurred(frame),
        )
    )


def _blurred(frames: Tensor) -> Tensor:
    low, high = _BLURRED
    return ((frames > low) & (frames < high)).to(torch.float64).mean((-3, -2, -1))


def _check_samples(samples: Tensor, frame: Tensor) -> int:
    """Return how many draws there are."""
    if samples.dim() < 4 or len(samples) < 2 or samples.shape[1:] != frame.shape:
        raise ValueError(
            "samples must be [m, ..., channels, height, width] with m >= 2, frames of the shape of the one that came; "
            f"got {list(samples.shape)} and {list(frame.shape)}"
        )
    return len(samples)
