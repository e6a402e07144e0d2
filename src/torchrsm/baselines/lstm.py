"""The LSTM over whole frames: a stack of layers whose last one has a unit for every pixel.

Alberto Cenzato, Alberto Testolin, Marco Zorzi, "On the difficulty of learning and predicting the long-term dynamics of
bouncing objects", 2019, arXiv 1907.13494, and the authors' settings; the unit is that of Sepp Hochreiter, Jürgen
Schmidhuber, "Long short-term memory", Neural Computation 1997, with forget gates.

A frame goes in as one vector with values in -1..1; the output of the last layer, in -1..1 as well, is the prediction.
The network does not know which pixels are neighbours.
"""

from __future__ import annotations

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
from torchrsm.state import detach

UNSEEN = 0.5
"""Value of the frame that stands in before the first one; 0 once frames are scaled to -1..1."""


class LSTMConfig(BaselineConfig):
    """Settings of the `LSTM`; the defaults are the published ones.

    Attributes:
        hidden_units: of each layer below the last, from the frame on.
        readout: ``cell``: a further layer has a unit for each pixel, and its output is the frame. ``linear``: weights
            and a logistic from the last of ``hidden_units`` to the pixels take its place.
        symbols: how many symbols the last layer names, too, by weights and a softmax; None for none.
    """

    kind: Literal["lstm"] = "lstm"
    hidden_units: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(2048, 1024, 1024, 1024), min_length=1)
    readout: Literal["cell", "linear"] = "cell"
    symbols: int | None = Field(default=None, ge=2)


class Memory(NamedTuple):
    """What a layer of units remembers, both ``[b, units, ...]``.

    Attributes:
        hidden: its last output, in -1..1.
        cell: the content of its cells.
    """

    hidden: Tensor
    cell: Tensor


class LSTMState(NamedTuple):
    """What has been seen.

    Attributes:
        frame: the last frame, ``[b, c, h, w]`` in 0..1; `UNSEEN` before the first.
        layers: the memory of each layer after all frames but that one.
    """

    frame: Tensor
    layers: tuple[Memory, ...]


def emptied(memory: Memory, start: Tensor) -> Memory:
    """Return a memory, ``[b, ...]`` each part, with nothing in it for the streams in which a sequence starts, ``[b]``.

    On the CPU it is first asked whether any does; on another device to ask would be to wait for all its work.
    """
    if start.device.type == "cpu" and not start.any():
        return memory
    return Memory(*(part.masked_fill(start.view(-1, *[1] * (part.dim() - 1)), 0) for part in memory))


def remember(gates: Tensor, cell: Tensor) -> Memory:
    """Return the memory after a step of long short-term memory.

    Args:
        gates: ``[b, 4 units, ...]`` logits of the input gate and the forget gate, the new content, the logits of the
            output gate, in the order of `torch.nn.LSTM`.
        cell: ``[b, units, ...]``, before the step.
    """
    write, keep, content, read = gates.chunk(4, 1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(content)
    return Memory(torch.sigmoid(read) * torch.tanh(cell), cell)


def inputs_of(window: Window, last: Tensor) -> Tensor:
    """Return the frame before each frame of a window, ``[time, b, c, h, w]``; `UNSEEN` where a sequence starts.

    Args:
        window: the frames.
        last: ``[b, c, h, w]``, the frame before the first.
    """
    before = torch.cat((last[None], window.frames[:-1]))
    return before.masked_fill(window.starts[..., None, None, None], UNSEEN)


class LSTM(SequenceModel):
    """The `Predictor`; the state is an `LSTMState`.

    Args:
        config: its settings.
    """

    config: LSTMConfig

    def __init__(self, config: LSTMConfig | None = None) -> None:
        config = config or LSTMConfig()
        super().__init__(config)
        pixels = config.channels * config.height * config.width
        self.units = (*config.hidden_units, pixels) if config.readout == "cell" else config.hidden_units
        sizes = (pixels, *self.units)
        self.layers = nn.ModuleList(nn.LSTMCell(below, units) for below, units in zip(sizes, self.units, strict=False))
        self.readout = nn.Linear(self.units[-1], pixels) if config.readout == "linear" else None
        self.names = None if config.symbols is None else nn.Linear(self.units[-1], config.symbols)

    def initial_state(self, shape: tuple[int, int, int, int]) -> LSTMState:
        """Return empty cells and no frame."""
        self.check_shape(shape)
        like = next(self.parameters())
        zeros = [like.new_zeros(shape[0], units) for units in self.units]
        return LSTMState(like.new_full(shape, UNSEEN), tuple(Memory(zero, zero) for zero in zeros))

    def predict(self, state: LSTMState) -> Predicted:
        """Read the last frame."""
        starts = torch.zeros(1, len(state.frame), dtype=torch.bool, device=state.frame.device)
        frames, layers, logs = self._run(state.frame[None], state.layers, starts)
        return Predicted(frames[0], layers, None if logs is None else logs[0])

    def advance(self, frame: Tensor, prediction: Predicted, state: LSTMState) -> LSTMState:
        """Store the frame."""
        return LSTMState(frame, prediction.memory)

    def learn(self, window: Window, state: LSTMState) -> Lesson:
        """Return the mean squared error of the window's next-frame predictions, computed layer by layer.

        Where symbols are named, the cross-entropy of the next one is added.
        """
        frames, layers, logs = self._run(inputs_of(window, state.frame), state.layers, window.starts)
        scored = ~window.starts
        loss = mean_squared_error(frames, window.frames, scored) + symbol_loss(logs, window)
        return Lesson((loss,), frames.detach(), scored, LSTMState(window.frames[-1], detach(layers)))

    def _run(
        self, inputs: Tensor, memories: tuple[Memory, ...], starts: Tensor
    ) -> tuple[Tensor, tuple[Memory, ...], Tensor | None]:
        """Return the frames ``[time, b, c, h, w]`` that follow the inputs, the memory after the last, and the symbols.

        The last are ``[time, b, symbols]``, see `Predicted.symbols`.
        """
        values, after = 2 * inputs.flatten(2) - 1, []
        for layer, memory in zip(self.layers, memories, strict=True):
            assert isinstance(layer, nn.LSTMCell)
            from_below = F.linear(values, layer.weight_ih, layer.bias_ih)
            outputs = []
            for gates, start in zip(from_below, starts, strict=True):
                memory = emptied(memory, start)
                memory = remember(gates + F.linear(memory.hidden, layer.weight_hh, layer.bias_hh), memory.cell)
                outputs.append(memory.hidden)
            values = torch.stack(outputs)
            after.append(memory)
        pixels = (values + 1) / 2 if self.readout is None else torch.sigmoid(self.readout(values))
        logs = None if self.names is None else F.log_softmax(self.names(values), -1)
        return pixels.view_as(inputs), tuple(after), logs
