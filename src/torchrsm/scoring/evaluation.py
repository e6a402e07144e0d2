"""Scores the next-frame predictions of any `Predictor`: each frame is predicted from the frames before it alone.

Three windows of frames, numbered from 1, are always scored side by side, because a published error seldom says which
one it covers: ``all_predictable`` (2 to the last), ``after_2`` (3 to the last) and ``after_10`` (11 to the last).
Frame 1 is never scored: nothing has been seen.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from torchrsm.predictor import Predictor
from torchrsm.scoring import metrics
from torchrsm.scoring.metrics import Summary
from torchrsm.scoring.rollouts import RolloutScores
from torchrsm.scoring.samples import SampleScores
from torchrsm.scoring.sequences import Mapped, check_sequences, one_by_one, predict_sequences
from torchrsm.streams.disturbed import Shown
from torchrsm.streams.splits import frames_sha256

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
        raw_frame_squared_error: the same before the rectifier; None for a predictor that makes its frame in one step.
        by_frame: mean `frame_squared_error` over sequences at each frame; the first is frame 1, never scored: None.
        frame_scores: the measures of `metrics.FRAME_SCORES`, ``all_predictable``, by their name; None for one that
            frames of this size do not allow. In JSON they stand beside the other fields, under their own names.
        batch_size: sequences predicted side by side.
        frames_per_second: frames predicted and observed per second at that batch size; scoring is not counted.
        training: how the model was trained, where that is known.
        rollout: what `evaluate_rollouts` measured, if asked for.
        samples: what `evaluate_samples` measured, if asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    frames_sha256: str
    sequences: int
    frame_squared_error: WindowScores
    raw_frame_squared_error: WindowScores | None = None
    by_frame: tuple[float | None, ...]
    frame_scores: dict[str, _SummaryField | None]
    batch_size: int
    frames_per_second: float
    training: dict[str, str | int | float] | None = None
    rollout: RolloutScores | None = None
    samples: SampleScores | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather_frame_scores(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "frame_scores" in given:
            return given
        found = {name: given[name] for name in metrics.FRAME_SCORES if name in given}
        return {name: value for name, value in given.items() if name not in found} | {"frame_scores": found}

    @model_serializer(mode="wrap")
    def _spread_frame_scores(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        spread: dict[str, Any] = {}
        for name, value in handler(self).items():
            spread |= value if name == "frame_scores" else {name: value}
        return spread

    @property
    def peak_signal_noise_ratio(self) -> Summary:
        """Decibels, ``all_predictable``; a frame counts for `metrics.PERFECT_DECIBELS` at most."""
        decibels = self.frame_scores["peak_signal_noise_ratio"]
        assert decibels is not None  # frames of any size allow it
        return decibels

    @property
    def structural_similarity(self) -> Summary | None:
        """From -1 to 1, ``all_predictable``; None for frames below 11 x 11 pixels, or if it was not asked for."""
        return self.frame_scores.get("structural_similarity")

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
            *((metrics.FRAME_SCORES[name].title, 2, summary) for name, summary in self.frame_scores.items()),
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
        if self.samples is not None:
            lines += ["", self.samples.table()]
        if self.rollout is not None:
            lines += ["", self.rollout.table()]
        return "\n".join(lines)


class _Measured(NamedTuple):
    """What a batch of sequences scored.

    Attributes:
        seconds: spent in the predictor.
        errors: of each sequence, ``[t - 1]``, from frame 2.
        raw_errors: the same before the rectifier; none for a predictor that makes its frame in one step.
        others: of each sequence, ``[t - 1]``, by the name of the measure.
    """

    seconds: float
    errors: list[Tensor]
    raw_errors: list[Tensor]
    others: dict[str, list[Tensor]]


class Evaluator:
    """Scores predictors on fixed sequences.

    Results depend neither on the batch size (beyond the predictor's own rounding) nor on the order of evaluations.
    """

    def __init__(
        self, frames: Tensor, batch_size: int = 50, similarity: bool = True, shown: Shown | None = None
    ) -> None:
        """Check and keep the sequences.

        Args:
            frames: ``[n, t, channels, height, width]`` floating point in 0..1, t >= 2, on any device.
            batch_size: sequences predicted side by side, >= 1. Changes speed and memory only.
            similarity: also measure `metrics.structural_similarity`, which is slow and needs frames of 11 x 11 pixels.
            shown: what a predictor observes of these frames, which are what it is scored on
                (`torchrsm.streams.disturbed_sequences`); None for the frames themselves.

        Raises:
            ValueError: an argument is out of its range, or what is shown does not fit the frames.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1; got {batch_size}")
        check_sequences(frames)
        if similarity:
            metrics.check_similarity_window(*frames.shape[-2:])
        self.frames = frames.detach().to(torch.float32).contiguous()
        self.batch_size = min(batch_size, len(frames))
        self.similarity = similarity
        self.frames_sha256 = frames_sha256(self.frames)
        shown = Shown(self.frames, None) if shown is None else shown
        if shown.frames.shape != frames.shape:
            raise ValueError(
                f"shown must have frames of the shape {list(frames.shape)} that are scored; "
                f"got {list(shown.frames.shape)}"
            )
        check_sequences(shown.frames)
        self.shown = shown._replace(frames=shown.frames.detach().to(torch.float32))

    def evaluate(
        self, predictor: Predictor[Any, Any], model: str | None = None, mapped: Mapped = one_by_one
    ) -> NextFrameScores:
        """Predict every frame of every sequence and score the predictions.

        Args:
            predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
            model: its name in the scores; the name of its class if None.
            mapped: how the batches are worked on.

        Raises:
            ValueError: a prediction has another shape than the frame, or holds NaN or infinity; or the predictor
                cannot work on frames of this shape.
        """
        predict_sequences(predictor, self.frames[: self.batch_size, :2])  # the first prediction may compile kernels
        batches = range(0, len(self.frames), self.batch_size)
        measured = mapped(lambda first: self._measure(predictor, first), batches)
        seconds = sum(batch.seconds for batch in measured)
        errors = [error for batch in measured for error in batch.errors]
        raw_errors = [error for batch in measured for error in batch.raw_errors]
        others = {name: [value for batch in measured for value in batch.others[name]] for name in self._measured()}
        error = torch.stack(errors)  # [n, t - 1], from frame 2
        return NextFrameScores(
            model=type(predictor).__name__ if model is None else model,
            frames_sha256=self.frames_sha256,
            sequences=len(self.frames),
            frame_squared_error=_windows(error),
            raw_frame_squared_error=_windows(torch.stack(raw_errors)) if raw_errors else None,
            by_frame=(None, *error.mean(dim=0).tolist()),
            frame_scores={
                name: metrics.summarise(torch.stack(others[name]).mean(dim=1)) if name in others else None
                for name in metrics.FRAME_SCORES
            },
            batch_size=self.batch_size,
            frames_per_second=self.frames.shape[0] * self.frames.shape[1] / seconds,
        )

    def _measure(self, predictor: Predictor[Any, Any], first: int) -> _Measured:
        """Score the batch of sequences whose first has this number."""
        part = slice(first, first + self.batch_size)
        batch, (observed, seen) = self.frames[part], self.shown
        predicted = predict_sequences(predictor, observed[part], None if seen is None else seen[part])
        errors, raw_errors = [], []
        others: dict[str, list[Tensor]] = {name: [] for name in self._measured()}
        # One sequence at a time: sums of the same shape, hence the same bits, at any batch size.
        for prediction, truth in zip(predicted.frames[:, 1:], batch[:, 1:], strict=True):
            errors.append(metrics.frame_squared_error(prediction, truth))
            for name, values in others.items():
                values.append(metrics.FRAME_SCORES[name].measure(prediction, truth))
        if predicted.raw is not None:
            pairs = zip(predicted.raw[:, 1:], batch[:, 1:], strict=True)
            raw_errors = [metrics.frame_squared_error(prediction, truth) for prediction, truth in pairs]
        return _Measured(predicted.seconds, errors, raw_errors, others)

    def _measured(self) -> list[str]:
        """Return the names of the measures that these frames allow and that were asked for."""
        side = min(self.frames.shape[-2:])
        asked = [name for name in metrics.FRAME_SCORES if self.similarity or name != "structural_similarity"]
        return [name for name in asked if side >= metrics.FRAME_SCORES[name].smallest_side]


def _windows(error: Tensor) -> WindowScores:
    """Summarise ``[n, t - 1]`` errors, the first of frame 2."""
    return WindowScores(
        all_predictable=metrics.summarise(error.mean(dim=1)),
        after_2=_summarise_from(3, error),
        after_10=_summarise_from(11, error),
    )


def _summarise_from(first: int, error: Tensor) -> Summary | None:
    """Summarise the sequences' mean error from frame ``first`` (>= 2), given ``[n, t - 1]`` from frame 2."""
    scored = error[:, first - 2 :]
    return metrics.summarise(scored.mean(dim=1)) if scored.shape[1] else None
