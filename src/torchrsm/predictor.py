"""The contract that every system keeps: predict, then observe.

The signatures carry the guarantees. `predict` takes no frame, so a prediction cannot see the frame it predicts; a state
is a value without a gradient graph, so no history can be carried; free running is not a mode but
``observe(prediction.frame, prediction, state)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from torchrsm.state import where


class HasFrame(Protocol):
    """What a prediction must offer: the predicted frame."""

    @property
    def frame(self) -> Tensor:
        """The predicted frames, ``[batch, channels, height, width]``, the values that are fed back in free running."""
        ...


PredictionT = TypeVar("PredictionT", bound=HasFrame)
StateT = TypeVar("StateT")


class Predictor(Protocol[PredictionT, StateT]):
    """A system that predicts the next frame of each stream of a batch.

    The caller owns the loop::

        state = predictor.initial_state(frames.shape)
        prediction = predictor.predict(state)
        state = predictor.observe(frames, prediction, state)

    A state is a (nested) tuple of tensors whose first dimension is the batch.
    """

    def initial_state(self, shape: tuple[int, int, int, int]) -> StateT:
        """Return the state of streams of which nothing has been seen.

        Args:
            shape: batch, channels, height and width of the frames to come.

        Raises:
            ValueError: the predictor cannot work on frames of this shape.
        """
        ...

    def predict(self, state: StateT) -> PredictionT:
        """Predict the next frame of each stream from all that the state has seen."""
        ...

    def observe(self, frame: Tensor, prediction: PredictionT, state: StateT) -> StateT:
        """Return the state after the true (or fed back) frame ``[batch, channels, height, width]`` in 0..1.

        Raises:
            ValueError: the frame is not of the shape, type or device of the predicted one, or not in 0..1.
        """
        ...


def filled(frame: Tensor, predicted: Tensor, seen: Tensor | None) -> Tensor:
    """Return a frame in which a predictor's own prediction stands where nothing was seen: imagination as memory.

    Args:
        frame: what came, ``[batch, channels, height, width]``.
        predicted: what was predicted, the same shape.
        seen: ``[batch, 1, height, width]`` bool, true where the frame shows something; None where it does everywhere.

    Raises:
        ValueError: ``seen`` is of another shape, type or device.
    """
    if seen is None:
        return frame
    shape = (len(frame), 1, *frame.shape[2:])
    if seen.dtype != torch.bool or seen.shape != shape or seen.device != frame.device:
        raise ValueError(
            f"seen must be {torch.bool} {list(shape)} on {frame.device}, as the frame; "
            f"got {seen.dtype} {list(seen.shape)} on {seen.device}"
        )
    return torch.where(seen, frame, predicted)


@torch.no_grad()
def rollout(predictor: Predictor[Any, StateT], state: StateT, steps: int) -> tuple[Tensor, StateT]:
    """Let a predictor imagine what comes next: each predicted frame is observed as if it had come.

    Args:
        predictor: the system.
        state: what its streams have seen.
        steps: frames to imagine, >= 1.

    Returns:
        The frames, ``[batch, steps, channels, height, width]``, and the state after them.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1; got {steps}")
    frames = []
    for _ in range(steps):
        prediction = predictor.predict(state)
        frames.append(prediction.frame)
        state = predictor.observe(prediction.frame, prediction, state)
    return torch.stack(frames, 1), state


def restart(state: StateT, fresh: StateT, starts: Tensor) -> StateT:
    """Replace the states of the streams in which a new sequence starts.

    Args:
        state: the states of the batch, a (nested) tuple of tensors with the batch first.
        fresh: what `Predictor.initial_state` returns for the same batch.
        starts: ``[batch]`` bool, true where the next frame is the first of its sequence.

    Returns:
        ``fresh`` where ``starts``, ``state`` elsewhere. ``state`` itself when nothing starts.
    """
    # Reading a tensor of another device would wait for all its work, so there every state is chosen anew.
    if starts.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(starts.any()):
        return state
    return where(starts, fresh, state)


Shape = tuple[int, int, int, int]
"""Batch, channels, height and width of frames."""


def check_shape(shape: Any) -> Shape:
    """Return the shape of frames as four numbers.

    Raises:
        ValueError: it is no sequence of four numbers above 0.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if len(sizes) != 4 or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(
            "shape must be the four numbers batch, channels, height and width of the frames, each > 0; "
            f"got {_brief(shape)}"
        )
    return sizes


def check_frame(frame: Any, like: Tensor) -> Tensor:
    """Return a frame that a predictor can observe.

    The values are looked at in one pass, on the CPU alone: to look at those of another device would wait for all its
    work, and there frames were checked before they came.

    Args:
        frame: ``[batch, channels, height, width]`` in 0..1.
        like: the predicted frame, whose shape, type and device the frame must have.

    Raises:
        ValueError: it is no tensor, or of another shape, type or device, or has a value that is not in 0..1.
    """
    if not isinstance(frame, Tensor):
        raise ValueError(f"frame must be a torch.Tensor; got {_brief(frame)}")
    if frame.shape != like.shape:
        raise ValueError(
            "frame must be [batch, channels, height, width] = "
            f"{list(like.shape)} as the state that it follows; got {list(frame.shape)}"
        )
    if frame.dtype != like.dtype:
        hint = "; divide by 255 first" if frame.dtype == torch.uint8 else ""
        raise ValueError(f"frame must be {like.dtype} in 0..1; got {frame.dtype}{hint}")
    if frame.device != like.device:
        raise ValueError(f"frame must be on the device {like.device} of the model; got {frame.device}")
    if frame.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(bound) for bound in frame.detach().aminmax())
        if not (low >= 0 and high <= 1):  # written so that NaN fails
            raise ValueError(f"frame must be finite and in 0..1; got values from {low:g} to {high:g}")
    return frame


def _brief(value: Any) -> str:
    """Describe a value in one line: a tensor or an array by its kind and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{type(value).__module__}.{type(value).__name__} of shape {list(value.shape)}, {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def evaluation_mode(predictor: Any) -> Iterator[None]:
    """Put a module and all its parts in evaluation mode, then each part back as it was (some may have been frozen)."""
    if not isinstance(predictor, torch.nn.Module):
        yield
        return
    parts = list(predictor.modules())
    before = [part.training for part in parts]
    try:
        predictor.eval()
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training


def predict_next(predictor: Predictor[Any, Any], frames: Tensor) -> Tensor:
    """Let a predictor observe sequences from their first frame, and predict the frame after each.

    Args:
        predictor: the system.
        frames: ``[batch, time, channels, height, width]`` in 0..1, time 1 or more.

    Returns:
        The same shape: entry t is predicted from the frames 0 to t, so the last one has not come yet.

    Raises:
        ValueError: frames of another form.
    """
    if not isinstance(frames, Tensor) or frames.dim() != 5 or 0 in frames.shape:
        raise ValueError(f"frames must be [batch, time, channels, height, width], none of them 0; got {_brief(frames)}")
    batch, _, channels, height, width = frames.shape
    state = predictor.initial_state((batch, channels, height, width))
    prediction, predicted = predictor.predict(state), []
    for frame in frames.unbind(1):
        state = predictor.observe(frame, prediction, state)
        prediction = predictor.predict(state)
        predicted.append(prediction.frame)
    return torch.stack(predicted, 1)
