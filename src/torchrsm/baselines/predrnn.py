"""PredRNN: convolutional memories that also pass upwards through the layers and back to the lowest at the next step.

Yunbo Wang, Mingsheng Long, Jianmin Wang, Zhifeng Gao, Philip S. Yu, "PredRNN: Recurrent Neural Networks for Predictive
Learning using Spatiotemporal LSTMs", NIPS 2017; with the loss that keeps the two memories apart, Yunbo Wang and others,
"PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning", 2021, arXiv 2103.09504.

Each layer has cells of its own, as a convolutional LSTM, and writes to a second memory that all layers share: the
lowest layer gets it from the highest one of the step before, each other layer from the one below. Frames are folded
(space to depth) as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.lstm import UNSEEN, inputs_of
from torchrsm.baselines.sequence_model import (
    BaselineConfig,
    Lesson,
    Predicted,
    SequenceModel,
    Window,
    mean_squared_error,
)
from torchrsm.predictor import restart
from torchrsm.state import detach

_NEAR_BLACK = 0.02
_TINY = 1e-12


class PredRNNConfig(BaselineConfig):
    """Settings of the `PredRNN`; the defaults are for two cores, the published ones stand in brackets.

    Attributes:
        hidden_channels: of each layer and of the shared memory, one number since that passes through all [128].
        layers: [4].
        kernel_size: odd [5].
        patch: side of the squares of pixels that are folded into channels; divides height and width [4].
        forget_bias: added to the logits of the forget gates [1].
        residual: the readout says how the next frame differs from the last one (in logits), not what it is [no].
        decoupling_weight: of the mean absolute cosine between what a layer writes to its two memories [0; 0.05 to 0.1
            in the second version].
    """

    kind: Literal["predrnn"] = "predrnn"
    hidden_channels: Annotated[int, Field(gt=0)] = 32
    layers: int = Field(default=2, gt=0)
    kernel_size: int = Field(default=3, gt=0)
    patch: int = Field(default=2, gt=0)
    forget_bias: float = 1.0
    residual: bool = True
    decoupling_weight: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {self.kernel_size}")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch must divide height {self.height} and width {self.width}; got {self.patch}")
        return self


class LayerMemory(NamedTuple):
    """What a layer remembers, both ``[b, hidden_channels, h, w]``: its last output and the content of its cells."""

    hidden: Tensor
    cell: Tensor


class PredRNNState(NamedTuple):
    """What has been seen.

    Attributes:
        frame: the last frame, ``[b, c, h, w]`` in 0..1; `torchrsm.baselines.lstm.UNSEEN` before the first.
        layers: the memory of each layer after all frames but that one.
        shared: the memory that the highest layer passed on then, ``[b, hidden_channels, h, w]``.
    """

    frame: Tensor
    layers: tuple[LayerMemory, ...]
    shared: Tensor


class Written(NamedTuple):
    """What a layer adds to its cells and to the shared memory in a step, both ``[b, hidden_channels, h, w]``."""

    cell: Tensor
    shared: Tensor


class SpatiotemporalLSTM(nn.Module):
    """A layer of the network.

    Args:
        below: channels of the input.
        channels: of the layer and of the shared memory.
        kernel_size: odd.
        forget_bias: see `PredRNNConfig`.
    """

    def __init__(self, below: int, channels: int, kernel_size: int, forget_bias: float) -> None:
        super().__init__()
        self.channels, self.forget_bias = channels, forget_bias
        padding = kernel_size // 2
        self.from_below = nn.Conv2d(below, 7 * channels, kernel_size, padding=padding)
        self.from_itself = nn.Conv2d(channels, 4 * channels, kernel_size, padding=padding, bias=False)
        self.from_shared = nn.Conv2d(channels, 3 * channels, kernel_size, padding=padding, bias=False)
        self.output_gate = nn.Conv2d(2 * channels, channels, kernel_size, padding=padding, bias=False)
        self.merge = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, inputs: Tensor, memory: LayerMemory, shared: Tensor) -> tuple[LayerMemory, Tensor, Written]:
        """Take a step.

        Args:
            inputs: ``[b, below, h, w]``.
            memory: of the layer.
            shared: the shared memory as the layer below, or the highest at the last step, left it.

        Returns:
            The memory and the shared memory after the step, and what was added to the two.
        """
        n, bias = self.channels, self.forget_bias
        own, spatial, read = self.from_below(inputs).split((3 * n, 3 * n, n), 1)
        recurrent, read_hidden = self.from_itself(memory.hidden).split((3 * n, n), 1)
        write, keep, content = (own + recurrent).chunk(3, 1)
        cell_written = torch.sigmoid(write) * torch.tanh(content)
        cell = torch.sigmoid(keep + bias) * memory.cell + cell_written
        write, keep, content = (spatial + self.from_shared(shared)).chunk(3, 1)
        shared_written = torch.sigmoid(write) * torch.tanh(content)
        shared = torch.sigmoid(keep + bias) * shared + shared_written
        both = torch.cat((cell, shared), 1)
        gate = torch.sigmoid(read + read_hidden + self.output_gate(both))
        return LayerMemory(gate * torch.tanh(self.merge(both)), cell), shared, Written(cell_written, shared_written)


def decoupling(cell: Tensor, shared: Tensor) -> Tensor:
    """Return how alike the two are, a scalar in 0..1: the mean over maps of their absolute cosine.

    Args:
        cell, shared: ``[b, channels, h, w]``.
    """
    return F.cosine_similarity(cell.flatten(2), shared.flatten(2), dim=2, eps=_TINY).abs().mean()


class PredRNN(SequenceModel):
    """The `Predictor`; the state is a `PredRNNState`.

    Args:
        config: its settings.
    """

    config: PredRNNConfig

    def __init__(self, config: PredRNNConfig | None = None) -> None:
        config = config or PredRNNConfig()
        super().__init__(config)
        channels, folded = config.hidden_channels, config.channels * config.patch**2
        self.layers = nn.ModuleList(
            SpatiotemporalLSTM(below, channels, config.kernel_size, config.forget_bias)
            for below in (folded, *[channels] * (config.layers - 1))
        )
        self.apart: nn.Conv2d | None = None
        if config.decoupling_weight:
            self.apart = nn.Conv2d(channels, channels, 1, bias=False)
        self.readout = nn.Conv2d(channels, folded, 1)

    def initial_state(self, shape: tuple[int, int, int, int]) -> PredRNNState:
        """Return empty memories and no frame."""
        self.check_shape(shape)
        config, like = self.config, self.readout.weight
        zero = like.new_zeros(shape[0], config.hidden_channels, shape[2] // config.patch, shape[3] // config.patch)
        return PredRNNState(like.new_full(shape, UNSEEN), (LayerMemory(zero, zero),) * config.layers, zero)

    def predict(self, state: PredRNNState) -> Predicted:
        """Read the last frame."""
        after, top, _ = self._step(self._folded(state.frame), state.layers, state.shared)
        return Predicted(torch.sigmoid(self._logits(top, state.frame)), after)

    def advance(self, frame: Tensor, prediction: Predicted, state: PredRNNState) -> PredRNNState:
        """Store the frame."""
        return PredRNNState(frame, *prediction.memory)

    def learn(self, window: Window, state: PredRNNState) -> Lesson:
        """Return the mean squared error of the window's next-frame predictions, and the decoupling loss, weighted."""
        inputs = inputs_of(window, state.frame)
        _, batch, channels, height, width = window.frames.shape
        fresh = self.initial_state((batch, channels, height, width))
        memories, empty = (state.layers, state.shared), (fresh.layers, fresh.shared)
        tops, alike = [], []
        for folded, starts in zip(self._folded(inputs.flatten(0, 1)).chunk(len(inputs)), window.starts, strict=True):
            memories = restart(memories, empty, starts)
            memories, top, written = self._step(folded, *memories)
            tops.append(top)
            alike += written
        frames = torch.sigmoid(self._logits(torch.cat(tops), inputs.flatten(0, 1))).view_as(inputs)
        scored = ~window.starts
        loss = mean_squared_error(frames, window.frames, scored)
        if self.apart is not None:
            loss = (
                loss
                + self.config.decoupling_weight
                * torch.stack([decoupling(self.apart(cell), self.apart(shared)) for cell, shared in alike]).mean()
            )
        return Lesson((loss,), frames.detach(), scored, PredRNNState(window.frames[-1], *detach(memories)))

    def _folded(self, frames: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(2 * frames - 1, self.config.patch)
        return folded.contiguous(memory_format=torch.channels_last)

    def _step(
        self, inputs: Tensor, layers: tuple[LayerMemory, ...], shared: Tensor
    ) -> tuple[tuple[tuple[LayerMemory, ...], Tensor], Tensor, list[Written]]:
        """Return the memories after a step, the highest layer's output, and what each layer wrote."""
        after, written = [], []
        for layer, memory in zip(self.layers, layers, strict=True):
            memory, shared, wrote = layer(inputs, memory, shared)
            inputs = memory.hidden
            after.append(memory)
            written.append(wrote)
        return (tuple(after), shared), inputs, written

    def _logits(self, top: Tensor, last: Tensor) -> Tensor:
        logits = F.pixel_shuffle(self.readout(top), self.config.patch)
        return logits + torch.logit(last, _NEAR_BLACK) if self.config.residual else logits
