"""A network of fully connected layers that sees the last frames and nothing else."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.sequence_model import (
    BaselineConfig,
    Lesson,
    Predicted,
    SequenceModel,
    Window,
    mean_squared_error,
    symbol_loss,
)
from torchrsm.predictor import restart


class WindowNetworkConfig(BaselineConfig):
    """Settings of the `WindowNetwork`.

    Attributes:
        context: frames that it sees.
        hidden_units: of each hidden layer.
        symbols: how many symbols it names, too, by weights and a softmax; None for none.
    """

    kind: Literal["window-network"] = "window-network"
    context: int = Field(default=4, gt=0)
    hidden_units: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(512, 512), min_length=1)
    symbols: int | None = Field(default=None, ge=2)


class WindowNetworkState(NamedTuple):
    """What has been seen.

    Attributes:
        frames: the last frames, the latest last, ``[b, context, c, h, w]``; 0 where there was none.
        known: which of them there were, ``[b, context]``, 1 or 0.
    """

    frames: Tensor
    known: Tensor


class WindowNetwork(SequenceModel):
    """The `Predictor`; the state is a `WindowNetworkState`.

    Args:
        config: its settings.
    """

    config: WindowNetworkConfig

    def __init__(self, config: WindowNetworkConfig | None = None) -> None:
        config = config or WindowNetworkConfig()
        super().__init__(config)
        pixels = config.channels * config.height * config.width
        sizes = (config.context * (pixels + 1), *config.hidden_units)
        self.layers = nn.ModuleList(nn.Linear(below, units) for below, units in itertools.pairwise(sizes))
        self.readout = nn.Linear(sizes[-1], pixels)
        self.names = None if config.symbols is None else nn.Linear(sizes[-1], config.symbols)

    def initial_state(self, shape: tuple[int, int, int, int]) -> WindowNetworkState:
        """Return no frames."""
        self.check_shape(shape)
        batch, *frame = shape
        like = next(self.parameters())
        return WindowNetworkState(
            like.new_zeros(batch, self.config.context, *frame), like.new_zeros(batch, self.config.context)
        )

    def predict(self, state: WindowNetworkState) -> Predicted:
        """Read the last frames."""
        x = torch.cat((state.frames.flatten(1), state.known), 1)
        for layer in self.layers:
            x = F.gelu(layer(x))
        frame = torch.sigmoid(self.readout(x)).view_as(state.frames[:, 0])
        return Predicted(frame, symbols=None if self.names is None else F.log_softmax(self.names(x), -1))

    def advance(self, frame: Tensor, prediction: Predicted, state: WindowNetworkState) -> WindowNetworkState:
        """Store the frame."""
        return WindowNetworkState(
            torch.cat((state.frames[:, 1:], frame[:, None]), 1),
            torch.cat((state.known[:, 1:], torch.ones_like(state.known[:, :1])), 1),
        )

    def learn(self, window: Window, state: WindowNetworkState) -> Lesson:
        """Return the mean squared error of the window's predictions; where symbols are named, with their cross-entropy.

        All are made at once: none depends on another one.
        """
        _, batch, *frame = window.frames.shape
        fresh = self.initial_state((batch, *frame))  # type: ignore[arg-type]
        states = []
        for came, starts in zip(window.frames, window.starts, strict=True):
            state = restart(state, fresh, starts)
            states.append(state)
            state = self.advance(came, None, state)  # type: ignore[arg-type]
        together = WindowNetworkState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
        predicted = self.predict(together)
        frames = predicted.frame.view_as(window.frames)
        logs = None if predicted.symbols is None else predicted.symbols.view(*window.starts.shape, -1)
        scored = ~window.starts
        loss = mean_squared_error(frames, window.frames, scored) + symbol_loss(logs, window)
        return Lesson((loss,), frames.detach(), scored, state)
