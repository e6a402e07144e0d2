"""The predictive generative network: a convolutional encoder, an LSTM over time, a decoder that draws the next frame.

William Lotter, Gabriel Kreiman, David Cox, "Unsupervised Learning of Visual Structure using Predictive Generative
Networks", 2015, arXiv 1511.06380. It learns from the squared error, and with ``adversarial_weight`` also from a
discriminator, which sees the frames before as well as the one that came or was drawn (Ian Goodfellow et al.,
"Generative Adversarial Networks", NIPS 2014, made recurrent and conditional).

All that it knows of the past goes through one vector, the LSTM's, which has no places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.lstm import UNSEEN, Memory, emptied, inputs_of, remember
from torchrsm.baselines.sequence_model import (
    BaselineConfig,
    Lesson,
    Predicted,
    SequenceModel,
    Window,
    mean_squared_error,
)
from torchrsm.state import detach


class PGNConfig(BaselineConfig):
    """Settings of the `PGN`.

    Attributes:
        filters: of the encoder's convolutions, each of which halves the resolution; the decoder has them in reverse.
        kernel_size: of all convolutions, odd.
        hidden_units: of the LSTM.
        adversarial_weight: of the adversarial loss beside the squared error; at 0 there is no discriminator.
        discriminator_units: of each of its two hidden layers.
    """

    kind: Literal["pgn"] = "pgn"
    filters: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(16, 32), min_length=1)
    kernel_size: int = Field(default=3, gt=0)
    hidden_units: int = Field(default=512, gt=0)
    adversarial_weight: float = Field(default=0.0, ge=0)
    discriminator_units: int = Field(default=256, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List settings of the discriminator where there is none."""
        if self.adversarial_weight == 0:
            yield "discriminator_units", "adversarial_weight is 0"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {self.kernel_size}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the encoder's last maps; a frame whose size does not divide gets a border."""
        divisor = 2 ** len(self.filters)
        return -(-self.height // divisor), -(-self.width // divisor)


class PGNState(NamedTuple):
    """What has been seen.

    Attributes:
        frame: the last frame, ``[b, c, h, w]`` in 0..1; `torchrsm.baselines.lstm.UNSEEN` before the first.
        memory: of the LSTM after all frames but that one, ``[b, hidden_units]``.
    """

    frame: Tensor
    memory: Memory


class Encoder(nn.Module):
    """Turns frames into vectors, ``[n, c, h, w]`` into ``[n, size]``."""

    def __init__(self, config: PGNConfig) -> None:
        super().__init__()
        belows = (config.channels, *config.filters[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(below, count, config.kernel_size, padding=config.kernel_size // 2)
            for below, count in zip(belows, config.filters, strict=True)
        )
        (height, width), factor = config.grid, 2 ** len(config.filters)
        self.border = (0, width * factor - config.width, 0, height * factor - config.height)
        self.size = config.filters[-1] * height * width

    def forward(self, frames: Tensor) -> Tensor:
        """Return ``[n, size]``."""
        maps = F.pad(2 * frames - 1, self.border)
        for convolution in self.convolutions:
            maps = F.max_pool2d(F.relu(convolution(maps)), 2)
        return maps.flatten(1)


class Decoder(nn.Module):
    """Draws frames from vectors, ``[n, hidden_units]`` into ``[n, c, h, w]`` in 0..1."""

    def __init__(self, config: PGNConfig) -> None:
        super().__init__()
        self.shape = (config.filters[-1], *config.grid)
        self.frame = (config.height, config.width)
        self.maps = nn.Linear(config.hidden_units, config.filters[-1] * config.grid[0] * config.grid[1])
        aboves = (*config.filters[-2::-1], config.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(below, above, config.kernel_size, padding=config.kernel_size // 2)
            for below, above in zip(config.filters[::-1], aboves, strict=True)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the frames."""
        maps = self.maps(hidden).view(-1, *self.shape)
        for convolution in self.convolutions:
            maps = convolution(F.interpolate(F.relu(maps), scale_factor=2))
        height, width = self.frame
        return torch.sigmoid(maps[:, :, :height, :width])


class Recurrence(nn.Module):
    """An LSTM over the encoder's vectors, started anew where a sequence starts."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.cell = nn.LSTMCell(size, units)

    def empty(self, batch: int) -> Memory:
        """Return a memory of zeros."""
        zero = self.cell.weight_hh.new_zeros(batch, self.units)
        return Memory(zero, zero)

    def run(self, vectors: Tensor, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """Return the outputs ``[time, b, units]`` after each vector ``[time, b, size]``, and the memory after the last.

        Args:
            vectors: what comes in.
            memory: before it.
            starts: ``[time, b]`` bool, true where the memory is emptied first.
        """
        cell, outputs = self.cell, []
        for gates, start in zip(F.linear(vectors, cell.weight_ih, cell.bias_ih), starts, strict=True):
            memory = emptied(memory, start)
            memory = remember(gates + F.linear(memory.hidden, cell.weight_hh, cell.bias_hh), memory.cell)
            outputs.append(memory.hidden)
        return torch.stack(outputs), memory


class FrameDiscriminator(nn.Module):
    """Tells whether a frame came after the frames before it or was drawn; has an encoder and an LSTM of its own."""

    def __init__(self, config: PGNConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.past = Recurrence(self.encoder.size, config.discriminator_units)
        units = config.discriminator_units
        self.judge = nn.Sequential(
            nn.Linear(units + self.encoder.size, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU()
        )
        self.logit = nn.Linear(units, 1)

    def context(self, inputs: Tensor, starts: Tensor) -> Tensor:
        """Return what the frames before say, ``[time, b, units]``; it knows nothing from before the window."""
        vectors = self.encoder(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        outputs, _ = self.past.run(vectors, self.past.empty(inputs.shape[1]), starts)
        return outputs

    def forward(self, context: Tensor, frames: Tensor) -> Tensor:
        """Return logits ``[time, b]``, high for a frame that came."""
        vectors = self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        logits: Tensor = self.logit(self.judge(torch.cat((context, vectors), 2)))
        return logits.flatten(1)


class PGN(SequenceModel):
    """The `Predictor`; the state is a `PGNState`.

    Args:
        config: its settings.
    """

    config: PGNConfig

    def __init__(self, config: PGNConfig | None = None) -> None:
        config = config or PGNConfig()
        super().__init__(config)
        self.encoder = Encoder(config)
        self.recurrence = Recurrence(self.encoder.size, config.hidden_units)
        self.decoder = Decoder(config)
        self.discriminator: FrameDiscriminator | None = None
        if config.adversarial_weight:
            self.discriminator = FrameDiscriminator(config)

    @property
    def loss_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The prediction's loss and, where there is a discriminator, the discriminator's."""
        return ("prediction loss",) if self.discriminator is None else ("prediction loss", "discriminator's loss")

    def weight_groups(self) -> tuple[list[nn.Parameter], ...]:
        """Return those of the generator, then the discriminator's."""
        judges = [] if self.discriminator is None else list(self.discriminator.parameters())
        known = {id(weight) for weight in judges}
        generator = [weight for weight in self.parameters() if id(weight) not in known]
        return (generator, judges) if judges else (generator,)

    def initial_state(self, shape: tuple[int, int, int, int]) -> PGNState:
        """Return an empty memory and no frame."""
        self.check_shape(shape)
        like = self.decoder.maps.weight
        return PGNState(like.new_full(shape, UNSEEN), self.recurrence.empty(shape[0]))

    def predict(self, state: PGNState) -> Predicted:
        """Read the last frame."""
        starts = torch.zeros(1, len(state.frame), dtype=torch.bool, device=state.frame.device)
        frames, memory = self._run(state.frame[None], state.memory, starts)
        return Predicted(frames[0], memory)

    def advance(self, frame: Tensor, prediction: Predicted, state: PGNState) -> PGNState:
        """Store the frame."""
        return PGNState(frame, prediction.memory)

    def learn(self, window: Window, state: PGNState) -> Lesson:
        """Return the loss of the predictions and, where there is a discriminator, the mean loss of its two verdicts."""
        inputs, scored = inputs_of(window, state.frame), ~window.starts
        frames, memory = self._run(inputs, state.memory, window.starts)
        losses = (mean_squared_error(frames, window.frames, scored),)
        if self.discriminator is not None:
            context = self.discriminator.context(inputs, window.starts)
            drawn = _verdict(self.discriminator(context, frames), True, scored)
            real = _verdict(self.discriminator(context, window.frames), True, scored)
            unreal = _verdict(self.discriminator(context, frames.detach()), False, scored)
            losses = (losses[0] + self.config.adversarial_weight * drawn, (real + unreal) / 2)  # type: ignore[assignment]
        return Lesson(losses, frames.detach(), scored, PGNState(window.frames[-1], detach(memory)))

    def _run(self, inputs: Tensor, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """Return the frames ``[time, b, c, h, w]`` that follow the inputs, and the memory after the last."""
        vectors = self.encoder(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        hidden, memory = self.recurrence.run(vectors, memory, starts)
        return self.decoder(hidden.flatten(0, 1)).view_as(inputs), memory


def _verdict(logits: Tensor, came: bool, scored: Tensor) -> Tensor:
    """Return the mean cross-entropy of a verdict on the scored frames, in nats; log 2 for a guess."""
    entropy = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(came)), reduction="none")
    return (entropy * scored).sum() / scored.sum().clamp(min=1)
