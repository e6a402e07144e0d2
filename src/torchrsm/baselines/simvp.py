"""SimVP: convolutions alone, which read the last frames side by side and have no memory.

Zhangyang Gao, Cheng Tan, Lirong Wu, Stan Z. Li, "SimVP: Simpler yet Better Video Prediction", CVPR 2022, arXiv
2206.05099, and the authors' code.

An encoder turns each frame into maps of features, each on its own. A translator takes those of all frames of the
context, stacked as channels, and returns those of the frames to come. A decoder turns these into frames; to see fine
detail it reads the encoder's first maps of the last frame as well. What is older than the context is forgotten.

The published translator is made of Inception blocks. The plain one, of residual blocks with dense kernels of 3 x 3
(Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv
1603.05027), suits a CPU better: it is faster and learns more in the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.sequence_model import (
    BaselineConfig,
    Lesson,
    Predicted,
    SequenceModel,
    Window,
    mean_squared_error,
)

_SLOPE = 0.2  # of the leaky rectifier below 0
_SPATIAL_GROUPS = 2  # of channels, normalised together
_NEAR_BLACK = 0.02


class SimVPConfig(BaselineConfig):
    """Settings of the `SimVP`; the defaults are for two cores, what is published for Moving MNIST stands in brackets.

    Attributes:
        context: frames that it reads [10]. Of bouncing balls 4 tell as much and cost less.
        horizon: frames that it is taught to predict at once [10]. Only the first is used as
            its prediction, and that is best with a horizon of 1.
        spatial_channels: maps of a frame, even [64].
        spatial_blocks: convolutions of the encoder, and of the decoder [4]. Every second one halves the resolution, so
            height and width must be divisible by 2 to the power of their number.
        translator: ``inception``, or ``plain`` [inception].
        temporal_channels: maps within the translator [256].
        temporal_blocks: of the translator; of ``inception`` half lead down and half up [16].
        kernel_sizes: of the parallel convolutions of an ``inception`` block, odd [3, 5, 7, 11].
        groups: of channels, separate in those convolutions [4].
        residual: the decoder says how the next frame differs from the last one (in logits), not what it is [no].
    """

    kind: Literal["simvp"] = "simvp"
    context: int = Field(default=10, gt=0)
    horizon: int = Field(default=1, gt=0)
    spatial_channels: int = Field(default=16, gt=0, multiple_of=_SPATIAL_GROUPS)
    spatial_blocks: int = Field(default=2, gt=0)
    translator: Literal["inception", "plain"] = "plain"
    temporal_channels: int = Field(default=32, gt=0)
    temporal_blocks: int = Field(default=4, gt=0)
    kernel_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(3, 5, 7, 11), min_length=1)
    groups: int = Field(default=4, gt=0)
    residual: bool = True

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List settings of the inception translator where there is none."""
        if self.translator == "plain":
            for name in ("kernel_sizes", "groups"):
                yield name, "the translator is plain"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        divisor = math.prod(self.strides)
        if self.height % divisor or self.width % divisor:
            raise ValueError(
                f"height and width must be divisible by {divisor}, for {self.spatial_blocks} spatial_blocks; "
                f"got {self.height} and {self.width}"
            )
        if self.translator == "inception":
            self._check_inception()
        return self

    def _check_inception(self) -> None:
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd; got {self.kernel_sizes}")
        if self.temporal_blocks % 2:
            raise ValueError(f"temporal_blocks must be even, as many down as up; got {self.temporal_blocks}")
        if self.temporal_channels % (2 * self.groups):
            raise ValueError(
                f"temporal_channels must be divisible by 2 groups; got {self.temporal_channels} and {self.groups}"
            )
        returned = self.horizon * self.spatial_channels
        if returned % self.groups:
            raise ValueError(
                f"horizon times spatial_channels must be divisible by groups; got {returned}, {self.groups}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the encoder's blocks: 1, 2, 1, 2, ..."""
        return tuple(1 + index % 2 for index in range(self.spatial_blocks))


class SimVPState(NamedTuple):
    """What has been seen.

    Attributes:
        history: the last frames, the oldest first, ``[b, context, c, h, w]`` in 0..1; black where there is none.
        seen: ``[b]`` int64, how many of them there are, 0..context.
    """

    history: Tensor
    seen: Tensor


class Block(nn.Module):
    """A convolution with kernels of 3 x 3, group normalisation, leaky rectifier.

    Args:
        below, channels: of the input and the output.
        stride: 1, or 2 to halve the resolution.
        up: double it instead.
    """

    def __init__(self, below: int, channels: int, stride: int, up: bool = False) -> None:
        super().__init__()
        self.convolution: nn.Conv2d | nn.ConvTranspose2d
        if up and stride == 2:
            self.convolution = nn.ConvTranspose2d(below, channels, 3, stride, padding=1, output_padding=1)
        else:
            self.convolution = nn.Conv2d(below, channels, 3, stride, padding=1)
        self.norm = nn.GroupNorm(_SPATIAL_GROUPS, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[n, channels, h', w']`` of ``[n, below, h, w]``."""
        return F.leaky_relu(self.norm(self.convolution(maps)), _SLOPE)


class Encoder(nn.Module):
    """Turns each frame into maps of lower resolution."""

    def __init__(self, config: SimVPConfig) -> None:
        super().__init__()
        channels = config.spatial_channels
        belows = (config.channels, *[channels] * (config.spatial_blocks - 1))
        self.blocks = nn.ModuleList(
            Block(below, channels, stride) for below, stride in zip(belows, config.strides, strict=True)
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of frames ``[n, c, h, w]``, and those of the first block, which has their resolution."""
        maps = first = self.blocks[0](frames)
        for block in self.blocks[1:]:
            maps = block(maps)
        return maps, first


class Decoder(nn.Module):
    """Turns maps into frames, as the `Encoder` reversed; its last block reads the encoder's first maps, too."""

    def __init__(self, config: SimVPConfig) -> None:
        super().__init__()
        channels = config.spatial_channels
        strides = config.strides[::-1]
        belows = (*[channels] * (config.spatial_blocks - 1), 2 * channels)
        self.blocks = nn.ModuleList(
            Block(below, channels, stride, up=True) for below, stride in zip(belows, strides, strict=True)
        )
        self.readout = nn.Conv2d(channels, config.channels, 1)

    def forward(self, maps: Tensor, first: Tensor) -> Tensor:
        """Return logits ``[n, c, h, w]`` of maps of low and of full resolution."""
        for block in self.blocks[:-1]:
            maps = block(maps)
        logits: Tensor = self.readout(self.blocks[-1](torch.cat((maps, first), 1)))
        return logits


class InceptionBlock(nn.Module):
    """Parallel convolutions with kernels of several sizes, summed.

    Args:
        below, inner, channels: of the input, between the two steps, of the output.
        kernel_sizes, groups: see `SimVPConfig`.
    """

    def __init__(self, below: int, inner: int, channels: int, kernel_sizes: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(below, inner, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, channels, size, padding=size // 2, groups=groups),
                nn.GroupNorm(groups, channels),
                nn.LeakyReLU(_SLOPE),
            )
            for size in kernel_sizes
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[n, channels, h, w]`` of ``[n, below, h, w]``."""
        mixed = self.mix(maps)
        return torch.stack([branch(mixed) for branch in self.branches]).sum(0)


class InceptionTranslator(nn.Module):
    """Inception blocks, at one resolution; each of the later half also reads what its opposite in the earlier returned.

    Args:
        config: of the `SimVP`.
    """

    def __init__(self, config: SimVPConfig) -> None:
        super().__init__()
        channels, half = config.temporal_channels, config.temporal_blocks // 2
        belows = [config.context * config.spatial_channels, *[channels] * half, *[2 * channels] * (half - 1)]
        outs = [*[channels] * (2 * half - 1), config.horizon * config.spatial_channels]
        blocks = [
            InceptionBlock(below, channels // 2, out, config.kernel_sizes, config.groups)
            for below, out in zip(belows, outs, strict=True)
        ]
        self.down, self.up = nn.ModuleList(blocks[:half]), nn.ModuleList(blocks[half:])

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[n, horizon * spatial_channels, h, w]`` of ``[n, context * spatial_channels, h, w]``."""
        passed = []
        for block in self.down:
            maps = block(maps)
            passed.append(maps)
        maps = self.up[0](passed.pop())
        for block in self.up[1:]:
            maps = block(torch.cat((maps, passed.pop()), 1))
        return maps


class ResidualBlock(nn.Module):
    """Two convolutions with kernels of 3 x 3, whose result is added to what comes in.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[n, channels, h, w]``."""
        change: Tensor = self.second(F.gelu(self.first(self.norm(maps))))
        return maps + change


class PlainTranslator(nn.Sequential):
    """Residual blocks in a row; ``[n, context * spatial_channels, h, w]`` to ``[n, horizon * spatial_channels, h, w]``.

    Args:
        config: of the `SimVP`.
    """

    def __init__(self, config: SimVPConfig) -> None:
        channels = config.temporal_channels
        super().__init__(
            nn.Conv2d(config.context * config.spatial_channels, channels, 1),
            *[ResidualBlock(channels) for _ in range(config.temporal_blocks)],
            nn.Conv2d(channels, config.horizon * config.spatial_channels, 1),
        )


class SimVP(SequenceModel):
    """The `Predictor`; the state is a `SimVPState`.

    Args:
        config: its settings.
    """

    config: SimVPConfig

    def __init__(self, config: SimVPConfig | None = None) -> None:
        config = config or SimVPConfig()
        super().__init__(config)
        self.encoder = Encoder(config)
        self.translator = InceptionTranslator(config) if config.translator == "inception" else PlainTranslator(config)
        self.decoder = Decoder(config)

    def initial_state(self, shape: tuple[int, int, int, int]) -> SimVPState:
        """Return an empty history."""
        self.check_shape(shape)
        batch, *frame = shape
        history = next(self.parameters()).new_zeros(batch, self.config.context, *frame)
        return SimVPState(history, torch.zeros(batch, dtype=torch.int64, device=history.device))

    def predict(self, state: SimVPState) -> Predicted:
        """Read the history."""
        return Predicted(self.ahead(state)[:, 0])

    def ahead(self, state: SimVPState) -> Tensor:
        """Predict the next frames of each stream at once, ``[b, horizon, c, h, w]``."""
        return self._run(state.history, state.seen[:, None])[:, 0]

    def advance(self, frame: Tensor, prediction: Predicted, state: SimVPState) -> SimVPState:
        """Store the frame and forget the oldest."""
        history = torch.cat((state.history[:, 1:], frame[:, None]), 1)
        return SimVPState(history, (state.seen + 1).clamp(max=self.config.context))

    def learn(self, window: Window, state: SimVPState) -> Lesson:
        """Return the mean squared error of all predictions of the window, which are computed side by side.

        A prediction further ahead counts where its frame is in the window and in the same sequence.
        """
        context = self.config.context
        frames = torch.cat((state.history, window.frames.transpose(0, 1)), 1)
        seen, seen_before = state.seen, []
        for starts in window.starts:
            seen_before.append(seen.masked_fill(starts, 0))
            seen = (seen_before[-1] + 1).clamp(max=context)
        ahead = self._run(frames[:, :-1], torch.stack(seen_before, 1)).transpose(0, 1)  # [time, b, horizon, c, h, w]
        known = scored = ~window.starts
        predicted, truth, counted = [], [], []
        for distance in range(min(self.config.horizon, len(ahead))):
            if distance:
                known = known[:-1] & scored[distance:]
            predicted.append(ahead[: len(known), :, distance])
            truth.append(window.frames[distance:])
            counted.append(known)
        every = torch.cat(counted)
        loss = mean_squared_error(torch.cat(predicted), torch.cat(truth), every)
        history = frames[:, -context:] * self._held(seen)[..., None, None, None]
        return Lesson((loss,), ahead[:, :, 0].detach(), scored, SimVPState(history, seen), every.sum())

    def _held(self, seen: Tensor) -> Tensor:
        """Return which places of histories hold a frame, ``[..., context]`` bool."""
        context = self.config.context
        return torch.arange(context, device=seen.device) >= context - seen[..., None]

    def _run(self, frames: Tensor, seen: Tensor) -> Tensor:
        """Predict what follows each of several histories, which overlap; a frame is encoded once.

        Args:
            frames: ``[b, context - 1 + time, c, h, w]``.
            seen: ``[b, time]``, how many of the ``context`` frames before each prediction may be used. The maps of
                the others are 0.

        Returns:
            ``[b, time, horizon, c, h, w]``.
        """
        context, horizon = self.config.context, self.config.horizon
        held = self._held(seen)[..., None, None, None]  # [b, time, context, 1, 1, 1]
        maps, first = (part.unflatten(0, frames.shape[:2]) for part in self.encoder(2 * frames.flatten(0, 1) - 1))
        time = seen.shape[1]
        stacked = torch.stack([maps[:, index : index + time] for index in range(context)], 2) * held
        ahead = self.translator(stacked.flatten(0, 1).flatten(1, 2))  # [b * time, horizon * maps, h', w']
        first = (first[:, context - 1 :] * held[:, :, -1]).flatten(0, 1).repeat_interleave(horizon, 0)
        logits = self.decoder(ahead.unflatten(1, (horizon, -1)).flatten(0, 1), first)
        logits = logits.unflatten(0, (*seen.shape, horizon))
        if self.config.residual:
            last = frames[:, context - 1 :] * held[:, :, -1]
            logits = logits + torch.logit(last, _NEAR_BLACK)[:, :, None]
        return torch.sigmoid(logits)
