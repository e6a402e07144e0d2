"""What the baselines have in common: a `Predictor` that learns from windows of the streams, and its folder on disk.

A window holds the next frames of every stream of the batch. The gradient goes back through the window and no further:
a window begins with the state of the last one, without its graph (truncated backpropagation through time). So a
baseline sees the same frames as RSM, in the same order, and its memory grows with the window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrsm.config import Config
from torchrsm.predictor import check_frame, check_shape, filled, predict_next, restart, rollout
from torchrsm.state import detach
from torchrsm.storage.folders import save_model, save_weights


class BaselineConfig(Config):
    """Settings that every baseline has; its own class adds ``kind``, its name, and the rest.

    Attributes:
        channels, height, width: of the frames.
    """

    kind: str
    channels: int = Field(default=1, gt=0)
    height: int = Field(default=30, gt=0)
    width: int = Field(default=30, gt=0)


class Window(NamedTuple):
    """The next frames of every stream of a batch.

    Attributes:
        frames: ``[time, b, c, h, w]`` in 0..1.
        starts: ``[time, b]`` bool, true where a frame is the first of a sequence; nothing before it may be used.
        symbols: ``[time, b]`` int64, which the frames show; None where they are no symbols.
    """

    frames: Tensor
    starts: Tensor
    symbols: Tensor | None = None


class Lesson(NamedTuple):
    """What a window teaches.

    Attributes:
        losses: scalars with their graphs, one for each entry of `SequenceModel.loss_names`. A loss changes the weights
            that `SequenceModel.weight_groups` lists for it and no others, whatever its graph reaches.
        frames: ``[time, b, c, h, w]``, the next-frame predictions made on the way, detached: entry t predicts frame t
            from those before it.
        scored: ``[time, b]`` bool, true where ``frames`` holds such a prediction.
        state: after the window, detached.
        counted: a scalar, how many predictions the losses are means over, by which several processes weigh them; None
            for as many as are scored.
    """

    losses: tuple[Tensor, ...]
    frames: Tensor
    scored: Tensor
    state: Any
    counted: Tensor | None = None


class Predicted(NamedTuple):
    """A predicted frame.

    Attributes:
        frame: ``[b, c, h, w]`` in 0..1.
        memory: what `SequenceModel.observe` takes over into the next state; (nested) tuples of tensors, or None.
        symbols: ``[b, symbols]``, the logarithm of how likely each symbol is; None from a model that names none.
    """

    frame: Tensor
    memory: Any = None
    symbols: Tensor | None = None


class SequenceModel(nn.Module):
    """Base of the baselines; see `torchrsm.predictor.Predictor` for the three calls.

    Each defines `initial_state`, `predict` and `advance`, the work of `observe`.

    While a baseline learns, its state carries the graph of the window. Elsewhere the callers switch graphs off.

    Args:
        config: its settings.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("squared error",)

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        # Weights say where a model is, but some have none; no file holds it.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the model, for states to be made from."""
        return self.get_buffer("_place")

    def initial_state(self, shape: tuple[int, int, int, int]) -> Any:
        """Return the state of streams of which nothing has been seen; ``shape`` is that of the frames to come.

        Raises:
            ValueError: frames of another shape than the settings say.
        """
        raise NotImplementedError

    def predict(self, state: Any) -> Any:
        """Predict the next frame of each stream."""
        raise NotImplementedError

    def observe(self, frame: Tensor, prediction: Any, state: Any, seen: Tensor | None = None) -> Any:
        """Return the state after a frame ``[b, c, h, w]`` in 0..1, true or fed back.

        Args:
            frame: what came.
            prediction: of it, by this model.
            state: before it.
            seen: ``[b, 1, h, w]`` bool, true where the frame shows something. Elsewhere the model's own prediction
                takes its place. None where it does everywhere.

        Raises:
            ValueError: the frame is not of the shape, type or device of the predicted one, or not in 0..1; or ``seen``
                does not fit it.
        """
        frame = filled(check_frame(frame, prediction.frame), prediction.frame, seen)
        return self.advance(frame, prediction, state)

    def advance(self, frame: Tensor, prediction: Any, state: Any) -> Any:
        """Return the state after a frame that is known to be good; what `observe` does, for a system to define."""
        raise NotImplementedError

    def forward(self, frames: Tensor) -> Tensor:
        """Predict the frame after each of ``frames [b, t, c, h, w]``; see `torchrsm.predictor.predict_next`."""
        return predict_next(self, frames)

    @property
    def asks_for_values(self) -> bool:
        """Whether the host reads a value in `learn`, so that no update can be recorded and replayed."""
        return False

    @property
    def shortest_window(self) -> int:
        """The fewest frames of a window that teach something."""
        return 1

    def check_shape(self, shape: tuple[int, int, int, int]) -> None:
        """Refuse frames of another shape than ``[b, *config]``, with a ValueError."""
        shape = check_shape(shape)
        expected = (self.config.channels, self.config.height, self.config.width)
        if tuple(shape[1:]) != expected:
            raise ValueError(f"this model reads frames of {_times(expected)}; got {_times(shape[1:])}")

    def weight_groups(self) -> tuple[list[nn.Parameter], ...]:
        """Return the weights that each loss changes; no weight is in two groups."""
        return (list(self.parameters()),)

    def learn(self, window: Window, state: Any) -> Lesson:
        """Return what a window teaches: the mean squared error of its next-frame predictions, through time.

        Args:
            window: the next frames.
            state: after the frames before them, detached.
        """
        _, batch, channels, height, width = window.frames.shape
        fresh = self.initial_state((batch, channels, height, width))
        predicted = []
        for frame, starts in zip(window.frames, window.starts, strict=True):
            state = restart(state, fresh, starts)
            prediction = self.predict(state)
            predicted.append(prediction.frame)
            state = self.advance(frame, prediction, state)
        frames, scored = torch.stack(predicted), ~window.starts
        loss = mean_squared_error(frames, window.frames, scored)
        return Lesson((loss,), frames.detach(), scored, detach(state))

    def rollout(self, state: Any, steps: int) -> tuple[Tensor, Any]:
        """Imagine what comes next; return the frames ``[b, steps, c, h, w]`` and the state after them.

        Raises:
            ValueError: ``steps`` is below 1.
        """
        return rollout(self, state, steps)

    def save(self, folder: Path | str) -> None:
        """Write settings and weights to a folder, which is made if need be; `torchrsm.load` reads them.

        Raises:
            OSError: the folder cannot be made or written.
        """
        save_model(self, self.config, Path(folder))

    def save_weights(self, folder: Path) -> None:
        """Write the weights alone, atomically."""
        save_weights(self, folder)


def mean_squared_error(frames: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
    """Return the mean squared error of the pixels of the scored frames, a scalar.

    Args:
        frames, truth: ``[time, b, c, h, w]``.
        scored: ``[time, b]`` bool.
    """
    error = (frames - truth).square().mean((2, 3, 4)) * scored
    return error.sum() / scored.sum().clamp(min=1)


def symbol_loss(logs: Tensor | None, window: Window) -> Tensor:
    """Return the mean cross-entropy of the symbols of a window, a scalar; 0 where none are named or none are shown.

    Args:
        logs: ``[time, b, symbols]``, the logarithm of how likely each symbol was thought to be.
        window: what came.
    """
    if logs is None or window.symbols is None:
        return window.frames.new_zeros(())
    error = -logs.gather(2, window.symbols[..., None])[..., 0]
    scored = ~window.starts
    return (error * scored).sum() / scored.sum().clamp(min=1)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
