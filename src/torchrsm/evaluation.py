"""Scores any `Predictor`: the frames it predicts, each from all before it and nothing else, and those it imagines.

Three windows of frames, numbered from 1, are always scored side by side, because a published error seldom says which
one it covers: ``all_predictable`` (2 to the last), ``after_2`` (3 to the last) and ``after_10`` (11 to the last).
Frame 1 is never scored: nothing has been seen.

Imagined frames are tracked beside the true ones for as long as that means anything, then judged by their physics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PlainSerializer
from torch import Tensor

from torchrsm import metrics
from torchrsm.metrics import Summary
from torchrsm.physics import TRACKED_STEPS, PhysicsSummary, TrackedError, summarise_physics
from torchrsm.predictor import Predictor, rollout
from torchrsm.streams.bouncing_balls import bouncing_ball_sequences, render_balls, simulate_balls

Split = Literal["test", "validation"]

TEST_SEED = 20190528
"""The seed of the test sequences. It is published and never changes; nothing may be trained or chosen on them."""

VALIDATION_SEED = 20190529
"""The seed of the sequences on which a setting may be chosen."""

PERFECT_DECIBELS = 100.0
"""The most decibels a frame counts for: a root mean squared error of 1e-5. Keeps a mean with perfect frames finite."""

FRAMES_IN_A_SEQUENCE = 100
"""Frames of each fixed sequence."""

SIMULATOR_NOISE = 0.03
"""Deviation, px, of the positions that the simulator starts with where it is put beside a dream."""

_SummaryField = Annotated[Summary, PlainSerializer(lambda summary: summary._asdict())]


class WindowScores(BaseModel):
    """A measure in the three windows, over sequences; None where the sequences are too short for the window."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    all_predictable: _SummaryField
    after_2: _SummaryField | None
    after_10: _SummaryField | None


class RolloutScores(BaseModel):
    """What `evaluate_rollouts` measured.

    Attributes:
        prime: true frames observed before the model is left alone.
        steps: frames imagined after them.
        physics: of the imagined frames.
        simulator: tracked error of the world itself, started beside the truth with positions that are off by
            `SIMULATOR_NOISE`; None where the positions are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prime: int
    steps: int
    physics: PhysicsSummary
    simulator: tuple[TrackedError, ...] | None = None

    def table(self) -> str:
        """Return the scores as a text table, every line at most 120 characters."""
        physics, world = self.physics, self.physics.geometry
        windows = physics.windows
        rows: list[tuple[str, str, list[str]]] = [
            ("frames with the right number", "1", [f"{w.right_count:.4f}" for w in windows]),
            ("mass", "1", [f"{w.mass:.3f}" for w in windows]),
            ("kinetic energy, px²", f"{world.energy:.2f}", [_number(w.kinetic_energy) for w in windows]),
            ("balls outside", "0", [_number(w.outside) for w in windows]),
            ("pairs that overlap", "0", [_number(w.overlap) for w in windows]),
            ("pixels in 0.1..0.9", "", [f"{w.sharpness:.3f}" for w in windows]),
            ("bounces in a step", "", [_number(w.bounce_rate) for w in windows]),
            ("reflection error, degrees", "0", [_number(w.reflection_degrees) for w in windows]),
        ]
        spans = "".join(f"{f'{w.first}..{w.last}':>12}" for w in windows)
        lines = [
            f"{physics.sequences} dreams of {self.steps} steps after {self.prime} true frames, by steps",
            f"{'':<32}{'world':>6}{spans}",
        ]
        lines += [f"{name:<32}{truth:>6}{''.join(f'{value:>12}' for value in values)}" for name, truth, values in rows]
        lines.append(
            f"{'lifetime, steps (median)':<32}{'':>6}{physics.lifetime:>12g}   "
            f"({physics.never_ended:.1%} alive at step {self.steps})"
        )
        if physics.tracked:
            lines += ["", f"{'tracked error, px (median)':<38}" + "".join(f"{t.step:>9}" for t in physics.tracked)]
            lines.append(f"{'  of the dream':<38}" + "".join(f"{_number(t.median):>9}" for t in physics.tracked))
        if physics.tracked and self.simulator:
            name = f"  of the world, {SIMULATOR_NOISE} px off at the start"
            lines.append(
                f"{name:<38}" + "".join(f"{_number(t.median):>9}" for t in self.simulator[: len(physics.tracked)])
            )
        return "\n".join(lines)


class NextFrameScores(BaseModel):
    """What `Evaluator.evaluate` measured.

    A sequence's score is its mean over the scored frames; each `Summary` is over the scores of the sequences.

    Attributes:
        model: name of what was evaluated.
        frames_sha256: `frames_sha256` of the sequences.
        sequences: number of sequences.
        frame_squared_error: squared error summed over the pixels of a frame, see `metrics.frame_squared_error`.
        raw_frame_squared_error: the same before the rectifier; None for a predictor that makes its frame in one step.
        by_frame: mean `frame_squared_error` over sequences at each frame; the first is frame 1, never scored: None.
        peak_signal_noise_ratio: decibels, ``all_predictable``; a frame counts for `PERFECT_DECIBELS` at most.
        structural_similarity: -1..1, ``all_predictable``; None if not asked for.
        batch_size: sequences predicted side by side.
        frames_per_second: frames predicted and observed per second at that batch size; scoring is not counted.
        training: how the model was trained, where that is known.
        rollout: what `evaluate_rollouts` measured, if asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    frames_sha256: str
    sequences: int
    frame_squared_error: WindowScores
    raw_frame_squared_error: WindowScores | None = None
    by_frame: tuple[float | None, ...]
    peak_signal_noise_ratio: _SummaryField
    structural_similarity: _SummaryField | None
    batch_size: int
    frames_per_second: float
    training: dict[str, str | int | float] | None = None
    rollout: RolloutScores | None = None

    def to_json(self) -> str:
        """Return the scores as JSON text; ``NextFrameScores.model_validate_json`` reads it back."""
        return self.model_dump_json(indent=2)

    def table(self) -> str:
        """Return the scores as a text table, every line at most 120 characters."""
        last = len(self.by_frame)
        error, raw = self.frame_squared_error, self.raw_frame_squared_error
        rows: list[tuple[str, int, Summary | None]] = [
            ("squared error, all_predictable", 2, error.all_predictable),
            ("squared error, after_2", 3, error.after_2),
            ("squared error, after_10", 11, error.after_10),
            *([("raw squared error", 2, raw.all_predictable)] if raw is not None else []),
            ("peak signal to noise, dB", 2, self.peak_signal_noise_ratio),
            ("structural similarity", 2, self.structural_similarity),
        ]
        lines = [
            f"{self.model}: {self.sequences} sequences of {last} frames, mean ± sd over sequences",
            f"frames sha256 {self.frames_sha256}",
            "",
            f"{'':<32}{'frames':<10}mean ± sd",
        ]
        for name, first, summary in rows:
            window = f"{first}..{last}" if first <= last else "none"
            lines.append(f"{name:<32}{window:<10}{'-' if summary is None else summary}")
        lines += ["", "squared error by frame"]
        for start in range(0, last, 10):
            cells = "".join(f"{'-' if value is None else f'{value:.3f}':>9}" for value in self.by_frame[start:][:10])
            lines.append(f"{f'{start + 1}..{min(start + 10, last)}':<10}{cells}")
        lines += ["", f"{self.frames_per_second:,.0f} frames/s at batch size {self.batch_size}"]
        if self.rollout is not None:
            lines += ["", self.rollout.table()]
        return "\n".join(lines)


class PredictedSequences(NamedTuple):
    """What `predict_sequences` returns.

    Attributes:
        frames: ``[n, t, channels, height, width]`` float32, the prediction of each frame from those before it.
        raw: the same before the rectifier; None for a predictor that makes its frame in one step.
        seconds: wall time spent in the predictor.
    """

    frames: Tensor
    raw: Tensor | None
    seconds: float


class Evaluator:
    """Scores predictors on fixed sequences.

    Results depend neither on the batch size (beyond the predictor's own rounding) nor on the order of evaluations.
    """

    def __init__(self, frames: Tensor, batch_size: int = 50, similarity: bool = True) -> None:
        """Check and keep the sequences.

        Args:
            frames: ``[n, t, channels, height, width]`` floating point in 0..1, t >= 2, on the predictor's device.
            batch_size: sequences predicted side by side, >= 1. Changes speed and memory only.
            similarity: also measure `metrics.structural_similarity`, for which a frame needs 11x11 pixels.

        Raises:
            ValueError: an argument is out of its range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, received {batch_size}")
        _check_frames(frames)
        if similarity:
            metrics.check_similarity_window(*frames.shape[-2:])
        self.frames = frames.detach().to(torch.float32).contiguous()
        self.batch_size = min(batch_size, len(frames))
        self.similarity = similarity
        self.frames_sha256 = frames_sha256(self.frames)

    def evaluate(self, predictor: Predictor[Any, Any], model: str | None = None) -> NextFrameScores:
        """Predict every frame of every sequence and score the predictions.

        Args:
            predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
            model: its name in the scores; the name of its class if None.

        Raises:
            ValueError: a prediction has another shape than the frame, or holds NaN or infinity; or the predictor
                cannot work on frames of this shape.
        """
        predict_sequences(predictor, self.frames[: self.batch_size, :2])  # compiles what is compiled on first use
        seconds = 0.0
        errors, raw_errors, decibels, similarities = [], [], [], []
        for start in range(0, len(self.frames), self.batch_size):
            batch = self.frames[start : start + self.batch_size]
            predicted = predict_sequences(predictor, batch)
            seconds += predicted.seconds
            # One sequence at a time: sums of the same shape, hence the same bits, at any batch size.
            for prediction, truth in zip(predicted.frames[:, 1:], batch[:, 1:], strict=True):
                errors.append(metrics.frame_squared_error(prediction, truth))
                decibels.append(metrics.peak_signal_noise_ratio(prediction, truth).clamp(max=PERFECT_DECIBELS))
                if self.similarity:
                    similarities.append(metrics.structural_similarity(prediction, truth))
            if predicted.raw is not None:
                pairs = zip(predicted.raw[:, 1:], batch[:, 1:], strict=True)
                raw_errors += [metrics.frame_squared_error(prediction, truth) for prediction, truth in pairs]
        error = torch.stack(errors)  # [n, t - 1], from frame 2
        return NextFrameScores(
            model=type(predictor).__name__ if model is None else model,
            frames_sha256=self.frames_sha256,
            sequences=len(self.frames),
            frame_squared_error=_windows(error),
            raw_frame_squared_error=_windows(torch.stack(raw_errors)) if raw_errors else None,
            by_frame=(None, *error.mean(dim=0).tolist()),
            peak_signal_noise_ratio=metrics.summarise(torch.stack(decibels).mean(dim=1)),
            structural_similarity=metrics.summarise(torch.stack(similarities).mean(dim=1)) if similarities else None,
            batch_size=self.batch_size,
            frames_per_second=self.frames.shape[0] * self.frames.shape[1] / seconds,
        )


def predict_sequences(predictor: Predictor[Any, Any], frames: Tensor) -> PredictedSequences:
    """Predict each frame of sequences that start with their first frame, all side by side, without learning.

    The predictor is given a frame only after its prediction of that frame has been copied away.

    Args:
        predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
        frames: ``[n, t, channels, height, width]`` in 0..1.

    Raises:
        ValueError: a prediction has another shape than the frame, or holds NaN or infinity.
    """
    predicted = torch.empty_like(frames, dtype=torch.float32)
    raw: Tensor | None = None
    n, _, channels, height, width = frames.shape
    seconds = 0.0
    with torch.inference_mode(), _evaluation_mode(predictor):
        state = predictor.initial_state((n, channels, height, width))
        for index in range(frames.shape[1]):
            # A copy: neither can the predictor change the sequences, nor does it hold a view of the frames to come.
            frame = frames[:, index].clone()
            start = _now(frames.device)
            prediction = predictor.predict(state)
            seconds += _now(frames.device) - start
            _check_prediction(prediction.frame, frame, index + 1)
            predicted[:, index] = prediction.frame
            before = getattr(prediction, "raw", None)
            if before is not None and before is not prediction.frame:
                raw = torch.empty_like(predicted) if raw is None else raw
                raw[:, index] = before
            start = _now(frames.device)
            state = predictor.observe(frame, prediction, state)
            seconds += _now(frames.device) - start
    return PredictedSequences(predicted, raw, seconds)


def imagine(predictor: Predictor[Any, Any], frames: Tensor, steps: int, batch_size: int = 50) -> Tensor:
    """Let a predictor observe sequences from their first frame, then imagine how they go on.

    Args:
        predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
        frames: the true frames that prime it, ``[n, t, channels, height, width]`` in 0..1.
        steps: frames to imagine, >= 1.
        batch_size: sequences side by side, >= 1. Changes speed and memory only.

    Returns:
        The imagined frames alone, ``[n, steps, channels, height, width]``.

    Raises:
        ValueError: an argument is out of its range, or the predictor cannot work on frames of this shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, received {batch_size}")
    dreams = []
    with torch.inference_mode(), _evaluation_mode(predictor):
        for batch in frames.split(batch_size):
            state = predictor.initial_state((len(batch), *batch.shape[2:]))
            for frame in batch.unbind(dim=1):
                state = predictor.observe(frame.clone(), predictor.predict(state), state)
            dreams.append(rollout(predictor, state, steps)[0])
    return torch.cat(dreams)


def evaluate_rollouts(
    predictor: Predictor[Any, Any],
    frames: Tensor,
    *,
    prime: int = 50,
    steps: int = 150,
    batch_size: int = 50,
    simulator: tuple[TrackedError, ...] | None = None,
) -> RolloutScores:
    """Let a predictor dream of bouncing balls and judge the physics of its dreams.

    Args:
        predictor: the system.
        frames: true sequences ``[n, t, 1, 30, 30]``; the dream is tracked as far as they go on after the priming.
        prime: true frames observed first, 1 to t.
        steps: frames to imagine, >= 1.
        batch_size: sequences side by side, >= 1.
        simulator: what to put beside the tracked error, see `simulator_tracked_error`.

    Raises:
        ValueError: an argument is out of its range, or the predictor cannot work on frames of this shape.
    """
    _check_frames(frames)
    if not 1 <= prime <= frames.shape[1]:
        raise ValueError(f"prime must be in 1..{frames.shape[1]}, the frames of a sequence; received {prime}")
    return judge_dreams(imagine(predictor, frames[:, :prime], steps, batch_size), frames, prime, simulator)


def judge_dreams(
    dream: Tensor, frames: Tensor, prime: int, simulator: tuple[TrackedError, ...] | None = None
) -> RolloutScores:
    """Judge dreams ``[n, steps, 1, 30, 30]`` that are there; the rest as `evaluate_rollouts`, which makes them."""
    before, truth = frames[:, :prime], frames[:, prime:]
    physics = summarise_physics(dream, truth if truth.shape[1] else None, before)
    return RolloutScores(prime=prime, steps=dream.shape[1], physics=physics, simulator=simulator)


def simulator_tracked_error(split: Split, sequences: int = 200, *, prime: int = 50) -> tuple[TrackedError, ...]:
    """Return how fast the world itself loses the fixed sequences when its balls start `SIMULATOR_NOISE` off.

    Each coordinate of each ball of the last frame of the priming gets Gaussian noise of that deviation (fixed seed);
    velocities are right. What comes out is judged from its pixels as a dream is.

    Raises:
        ValueError: an argument is out of its range.
    """
    seed = _seed(split, sequences)
    if not 1 <= prime < FRAMES_IN_A_SEQUENCE:
        raise ValueError(f"prime must be in 1..{FRAMES_IN_A_SEQUENCE - 1}, received {prime}")
    world = bouncing_ball_sequences(range(sequences), seed=seed)
    steps = max(TRACKED_STEPS)
    side = world.frames.shape[-1]
    noise = np.random.default_rng(0).normal(0, SIMULATOR_NOISE * 10 / side, world.positions[:, prime - 1].shape)
    positions, _ = simulate_balls(
        world.positions[:, prime - 1].numpy() + noise, world.velocities[:, prime - 1].numpy(), steps + 1
    )
    frames = render_balls(positions[:, 1:], resolution=side)
    return summarise_physics(frames, world.frames[:, prime : prime + steps], world.frames[:, :prime]).tracked


def _seed(split: Split, sequences: int) -> int:
    """Return the seed of the fixed sequences, after a check of both."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, received {split!r}")
    if sequences < 1:
        raise ValueError(f"sequences must be >= 1, received {sequences}")
    return TEST_SEED if split == "test" else VALIDATION_SEED


def bouncing_ball_frames(split: Split, sequences: int = 200) -> Tensor:
    """Return the fixed bouncing-balls sequences that scores are quoted on.

    Args:
        split: "test" for figures to publish, "validation" for every choice before that.
        sequences: how many, >= 1; the first ones are the same whatever their number. Figures are quoted on 200.

    Returns:
        ``[sequences, 100, 1, 30, 30]`` float32 in 0..1.

    Raises:
        ValueError: the split is unknown, or there is no sequence.
    """
    return bouncing_ball_sequences(range(sequences), seed=_seed(split, sequences)).frames


def frames_sha256(frames: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the values as little-endian float32 in C order, without the shape.

    It names the data that a score was measured on: equal for equal values, whatever the device or the strides.
    """
    values = frames.detach().cpu().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


def _windows(error: Tensor) -> WindowScores:
    """Summarise ``[n, t - 1]`` errors, the first of frame 2."""
    return WindowScores(
        all_predictable=metrics.summarise(error.mean(dim=1)),
        after_2=_summarise_from(3, error),
        after_10=_summarise_from(11, error),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _summarise_from(first: int, error: Tensor) -> Summary | None:
    """Summarise the sequences' mean error from frame ``first`` (>= 2), given ``[n, t - 1]`` from frame 2."""
    scored = error[:, first - 2 :]
    return metrics.summarise(scored.mean(dim=1)) if scored.shape[1] else None


def _check_frames(frames: Tensor) -> None:
    shape = list(frames.shape)
    if len(shape) != 5 or 0 in shape:
        raise ValueError(f"frames must have the shape [sequences, time, channels, height, width], received {shape}")
    if shape[1] < 2:
        raise ValueError(f"sequences must have >= 2 frames, because frame 1 is never scored, received {shape[1]}")
    if not frames.is_floating_point():
        raise ValueError(f"frames must be floating point in 0..1, received {frames.dtype}")
    low, high = (float(value) for value in frames.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(f"frames must lie in 0..1 and be finite, received values from {low:g} to {high:g}")


def _check_prediction(prediction: Tensor, frame: Tensor, index: int) -> None:
    expected, received = list(frame.shape), list(prediction.shape)
    if received != expected:
        raise ValueError(
            f"the prediction of frame {index} must have the shape {expected} of the frame, received {received}"
        )
    bad = int((~prediction.isfinite()).sum())
    if bad:
        raise ValueError(
            f"the prediction of frame {index} must be finite, received {bad} NaN or infinite values "
            f"among the {prediction.numel()} of shape {received}"
        )


@contextmanager
def _evaluation_mode(predictor: Predictor[Any, Any]) -> Iterator[None]:
    """Put a module and all its parts in evaluation mode, then each part back as it was (some may have been frozen)."""
    parts = list(predictor.modules()) if isinstance(predictor, torch.nn.Module) else []
    before = [part.training for part in parts]
    try:
        if isinstance(predictor, torch.nn.Module):
            predictor.eval()
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training


def _now(device: torch.device) -> float:
    """Return the wall time in seconds when all work given to ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
