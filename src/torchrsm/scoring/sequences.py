"""Shows whole sequences to a predictor, which predicts each frame from those before it or imagines how they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from torchrsm.devices import wait_for
from torchrsm.predictor import Predictor, evaluation_mode, filled, rollout

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class PredictedSequences(NamedTuple):
    """What `predict_sequences` returns.

    Attributes:
        frames: ``[n, t, channels, height, width]`` float32, the prediction of each frame from those before it, on the
            device of the frames that were given.
        raw: the same before the rectifier; None for a predictor that makes its frame in one step.
        seconds: wall time spent in the predictor.
    """

    frames: Tensor
    raw: Tensor | None
    seconds: float


def predict_sequences(predictor: Predictor[Any, Any], frames: Tensor, seen: Tensor | None = None) -> PredictedSequences:
    """Predict each frame of sequences that start with their first frame, all side by side, without learning.

    The predictor is given a frame only after its prediction of that frame has been copied away. Frames are moved to its
    device one by one.

    Args:
        predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
        frames: ``[n, t, channels, height, width]`` in 0..1, on any device.
        seen: ``[n, t, 1, height, width]`` bool, true where a frame shows something; elsewhere the predictor observes
            its own prediction. None where all frames do everywhere.

    Raises:
        ValueError: a prediction has another shape than the frame, or holds NaN or infinity.
    """
    predicted = torch.empty_like(frames, dtype=torch.float32)
    raw: Tensor | None = None
    n, _, channels, height, width = frames.shape
    seconds = 0.0
    with torch.inference_mode(), evaluation_mode(predictor):
        state = predictor.initial_state((n, channels, height, width))
        for index in range(frames.shape[1]):
            start = time.perf_counter()  # all work that came before is done
            prediction = predictor.predict(state)
            device = prediction.frame.device
            seconds += _now(device) - start
            # A copy, so the predictor can neither change the sequences nor hold a view of the frames to come.
            frame = frames[:, index].to(device, copy=True)
            _check_prediction(prediction.frame, frame, index + 1)
            predicted[:, index] = prediction.frame
            before = getattr(prediction, "raw", None)
            if before is not None and before is not prediction.frame:
                raw = torch.empty_like(predicted) if raw is None else raw
                raw[:, index] = before
            if seen is not None:
                frame = filled(frame, prediction.frame, seen[:, index].to(device))
            start = _now(device)
            state = predictor.observe(frame, prediction, state)
            seconds += _now(device) - start
    return PredictedSequences(predicted, raw, seconds)


class Mapped(Protocol):
    """Applies a function to each of several items and returns the results in their order, as a list of `map` is.

    Several processes may share the items.
    """

    def __call__(self, function: Callable[[_Item], _T], items: Sequence[_Item], /) -> list[_T]:
        """Return ``function`` of each item, in their order."""
        ...


def one_by_one(function: Callable[[_Item], _T], items: Sequence[_Item]) -> list[_T]:
    """Apply a function to each item in turn; a `Mapped`."""
    return [function(item) for item in items]


def imagine(
    predictor: Predictor[Any, Any], frames: Tensor, steps: int, batch_size: int = 50, mapped: Mapped = one_by_one
) -> Tensor:
    """Let a predictor observe sequences from their first frame, then imagine how they go on.

    Args:
        predictor: the system; a `torch.nn.Module` is put in evaluation mode meanwhile.
        frames: the true frames that prime it, ``[n, t, channels, height, width]`` in 0..1, on any device.
        steps: frames to imagine, >= 1.
        batch_size: sequences side by side, >= 1. Changes speed and memory only.
        mapped: how the batches are worked on.

    Returns:
        The imagined frames alone, ``[n, steps, channels, height, width]``, on the device of the given ones.

    Raises:
        ValueError: an argument is out of its range, or the predictor cannot work on frames of this shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1; got {batch_size}")

    def dream(batch: Tensor) -> Tensor:
        with torch.inference_mode(), evaluation_mode(predictor):
            state = predictor.initial_state((len(batch), *batch.shape[2:]))
            for frame in batch.unbind(dim=1):
                prediction = predictor.predict(state)
                state = predictor.observe(frame.to(prediction.frame.device, copy=True), prediction, state)
            return rollout(predictor, state, steps)[0].to(frames.device)

    return torch.cat(mapped(dream, frames.split(batch_size)))


def check_sequences(frames: Tensor) -> None:
    """Raise a ValueError unless frames are ``[sequences, time, channels, height, width]`` in 0..1, time 2 or more."""
    if not isinstance(frames, Tensor):
        raise ValueError(f"frames must be a torch.Tensor; got {type(frames).__name__}")
    shape = list(frames.shape)
    if len(shape) != 5 or 0 in shape:
        raise ValueError(f"frames must have the shape [sequences, time, channels, height, width]; got {shape}")
    if shape[1] < 2:
        raise ValueError(f"sequences must have >= 2 frames, because frame 1 is never scored; got {shape[1]}")
    if not frames.is_floating_point():
        raise ValueError(f"frames must be floating point in 0..1; got {frames.dtype}")
    low, high = (float(value) for value in frames.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails, too
        raise ValueError(f"frames must lie in 0..1 and be finite; got values from {low:g} to {high:g}")


def _check_prediction(prediction: Tensor, frame: Tensor, index: int) -> None:
    expected, received = list(frame.shape), list(prediction.shape)
    if received != expected:
        raise ValueError(f"the prediction of frame {index} must have the shape {expected} of the frame; got {received}")
    bad = int((~prediction.isfinite()).sum())
    if bad:
        raise ValueError(
            f"the prediction of frame {index} must be finite; got {bad} NaN or infinite values "
            f"among the {prediction.numel()} of shape {received}"
        )


def _now(device: torch.device) -> float:
    """Return the wall time in seconds when all work given to ``device`` is done."""
    wait_for(device)
    return time.perf_counter()
