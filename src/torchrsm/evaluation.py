"""Scores any `Predictor` by the frames it predicts, each from all the frames before it and nothing else.

Three windows of frames, numbered from 1, are always scored side by side, because a published error seldom says which
one it covers: ``all_predictable`` (2 to the last), ``after_2`` (3 to the last) and ``after_10`` (11 to the last).
Frame 1 is never scored: nothing has been seen.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict, PlainSerializer
from torch import Tensor

from torchrsm import metrics
from torchrsm.metrics import Summary
from torchrsm.predictor import Predictor
from torchrsm.streams.bouncing_balls import bouncing_ball_sequences

Split = Literal["test", "validation"]

TEST_SEED = 20190528
"""The seed of the test sequences. It is published and never changes; nothing may be trained or chosen on them."""

VALIDATION_SEED = 20190529
"""The seed of the sequences on which a setting may be chosen."""

PERFECT_DECIBELS = 100.0
"""The most decibels a frame counts for: a root mean squared error of 1e-5. Keeps a mean with perfect frames finite."""

_SummaryField = Annotated[Summary, PlainSerializer(lambda summary: summary._asdict())]


class WindowScores(BaseModel):
    """A measure in the three windows, over sequences; None where the sequences are too short for the window."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    all_predictable: _SummaryField
    after_2: _SummaryField | None
    after_10: _SummaryField | None


class NextFrameScores(BaseModel):
    """What `Evaluator.evaluate` measured.

    A sequence's score is its mean over the scored frames; each `Summary` is over the scores of the sequences.

    Attributes:
        model: name of what was evaluated.
        frames_sha256: `frames_sha256` of the sequences.
        sequences: number of sequences.
        frame_squared_error: squared error summed over the pixels of a frame, see `metrics.frame_squared_error`.
        by_frame: mean `frame_squared_error` over sequences at each frame; the first is frame 1, never scored: None.
        peak_signal_noise_ratio: decibels, ``all_predictable``; a frame counts for `PERFECT_DECIBELS` at most.
        structural_similarity: -1..1, ``all_predictable``; None if not asked for.
        batch_size: sequences predicted side by side.
        frames_per_second: frames predicted and observed per second at that batch size; scoring is not counted.
        training: how the model was trained, where that is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    frames_sha256: str
    sequences: int
    frame_squared_error: WindowScores
    by_frame: tuple[float | None, ...]
    peak_signal_noise_ratio: _SummaryField
    structural_similarity: _SummaryField | None
    batch_size: int
    frames_per_second: float
    training: dict[str, str | int | float] | None = None

    def to_json(self) -> str:
        """Return the scores as JSON text; ``NextFrameScores.model_validate_json`` reads it back."""
        return self.model_dump_json(indent=2)

    def table(self) -> str:
        """Return the scores as a text table, every line at most 120 characters."""
        last = len(self.by_frame)
        error = self.frame_squared_error
        rows: list[tuple[str, int, Summary | None]] = [
            ("squared error, all_predictable", 2, error.all_predictable),
            ("squared error, after_2", 3, error.after_2),
            ("squared error, after_10", 11, error.after_10),
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
        return "\n".join(lines)


class PredictedSequences(NamedTuple):
    """What `predict_sequences` returns.

    Attributes:
        frames: ``[n, t, channels, height, width]`` float32, the prediction of each frame from those before it.
        seconds: wall time spent in the predictor.
    """

    frames: Tensor
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
        errors, decibels, similarities = [], [], []
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
        error = torch.stack(errors)  # [n, t - 1], from frame 2
        return NextFrameScores(
            model=type(predictor).__name__ if model is None else model,
            frames_sha256=self.frames_sha256,
            sequences=len(self.frames),
            frame_squared_error=WindowScores(
                all_predictable=metrics.summarise(error.mean(dim=1)),
                after_2=_summarise_from(3, error),
                after_10=_summarise_from(11, error),
            ),
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
            start = _now(frames.device)
            state = predictor.observe(frame, prediction, state)
            seconds += _now(frames.device) - start
    return PredictedSequences(predicted, seconds)


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
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, received {split!r}")
    if sequences < 1:
        raise ValueError(f"sequences must be >= 1, received {sequences}")
    seed = TEST_SEED if split == "test" else VALIDATION_SEED
    return bouncing_ball_sequences(range(sequences), seed=seed).frames


def frames_sha256(frames: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the values as little-endian float32 in C order, without the shape.

    It names the data that a score was measured on: equal for equal values, whatever the device or the strides.
    """
    values = frames.detach().cpu().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


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
