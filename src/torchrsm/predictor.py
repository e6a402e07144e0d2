"""The contract that every system of the result table obeys: predict, then observe.

The signatures carry the guarantees. `predict` takes no frame, so a prediction cannot see the frame it predicts; a state
is a value without a gradient graph, so no history can be carried; free running is not a mode but
``observe(prediction.frame, prediction, state)``.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


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
        """Return the state after the true (or fed back) frame ``[batch, channels, height, width]`` in 0..1."""
        ...


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
    if not bool(starts.any()):
        return state
    return _where(starts, fresh, state)  # type: ignore[no-any-return]


def _where(starts: Tensor, fresh: Any, state: Any) -> Any:
    if state is None:
        return None
    if isinstance(state, Tensor):
        return torch.where(starts.view(-1, *[1] * (state.dim() - 1)), fresh, state)
    parts = [_where(starts, f, s) for f, s in zip(fresh, state, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
