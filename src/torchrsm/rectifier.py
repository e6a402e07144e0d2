"""The rectifier: it turns the stack's prediction, the average of all futures, into one sharp frame.

It has no memory; time lives in the stack alone. Its generator is trained to be near the frame that came and, by a
discriminator that sees the generator's input as well (a conditional GAN), to look like a frame.

Source: algorithm.md, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.config import Config
from torchrsm.functional import Cells

_PAPER_SLOPE = 0.2  # of the published ones, the default of the library that they were written in
_CELL_DEVIATION = 0.05
_Layer = TypeVar("_Layer", bound=nn.Module)
_SURE = 1e-3  # a raw value is taken to be at least this far from 0 and 1, where its logit would be infinite


class CompactConfig(Config):
    """Settings of a `CompactGenerator`, the choice for two cores.

    Attributes:
        width: channels of each inner convolution.
        blocks: residual blocks of two convolutions.
        sees_cells: read the winners of every layer beside the prediction.
    """

    kind: Literal["compact"] = "compact"
    width: int = Field(default=32, gt=0)
    blocks: int = Field(default=4, gt=0)
    sees_cells: bool = True


class UNetConfig(Config):
    """Settings of a `UNetGenerator`, which sees what the stack has seen.

    Attributes:
        features: channels at the frame's own resolution.
        width: channels at half of it.
        blocks: residual blocks of two convolutions there.
        changes: what the generator's finding is added to, the stack's prediction (``raw``) or the frame that was seen
            last (``last``). Where most of a picture stands still, the last frame is the better beginning.
        sees_cells: read the winners of every layer, too.
    """

    kind: Literal["unet"] = "unet"
    features: int = Field(default=16, gt=0, multiple_of=2)
    width: int = Field(default=32, gt=0, multiple_of=2)
    blocks: int = Field(default=4, gt=0)
    changes: Literal["raw", "last"] = "raw"
    sees_cells: bool = True


class PaperConfig(Config):
    """Settings of a `PaperGenerator`: none, it is as published."""

    kind: Literal["paper"] = "paper"


class SharpeningConfig(Config):
    """Settings of a `SharpeningFilter`, the baseline of every rectifier.

    Attributes:
        gain: how much steeper the filter makes a prediction around ``level``; 1 changes nothing.
        level: the value that stays as it is.
    """

    kind: Literal["sharpening"] = "sharpening"
    gain: float = Field(default=2.0, gt=0)
    level: float = Field(default=0.5, gt=0, lt=1)


RectifierConfig = CompactConfig | UNetConfig | PaperConfig | SharpeningConfig


class SharpeningFilter(nn.Module):
    """A fixed filter, ``sigmoid(gain * (logit(raw) - logit(level)) + logit(level))``; it learns nothing."""

    def __init__(self, config: SharpeningConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, raw: Tensor, cells: Sequence[Cells] = (), seen: Tensor | None = None) -> Tensor:
        """Return the sharpened ``[b, c, h, w]`` in 0..1."""
        level = torch.logit(torch.tensor(self.config.level, device=raw.device))
        return torch.sigmoid(self.config.gain * (_logit(raw) - level) + level)


class CompactGenerator(nn.Module):
    """A residual convolutional network at half the resolution; what it finds is added to the logit of the prediction.

    The prediction gets the border that the stack reads, so that the walls can be seen, and is folded two by two into
    channels. Every block, and the last layer, starts at 0, which returns the prediction as it is.

    Args:
        config: its settings.
        channels: channels of a frame.
        layer_cells: cells of each layer of the stack.
        pad, pad_value: border of the frames that the stack reads.
    """

    def __init__(
        self, config: CompactConfig, channels: int, layer_cells: Sequence[int], pad: int, pad_value: float
    ) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = pad, pad_value
        width = config.width
        self.head = _convolution(4 * channels, width)
        # A row for each cell: the product with a sparse map of cells is the sum of its winners' rows.
        self.cells = nn.ParameterList(
            [nn.Parameter(_CELL_DEVIATION * torch.randn(count, width)) for count in layer_cells if config.sees_cells]
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), _convolution(width, width), nn.SiLU(), _from_zero(_convolution(width, width)))
            for _ in range(config.blocks)
        )
        self.tail = _from_zero(_convolution(width, 4 * channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor | None = None) -> Tensor:
        """Return the rectified frame.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: not looked at.

        Returns:
            ``[b, c, h, w]`` in 0..1.
        """
        padded = _bordered(raw, self.pad, self.pad_value)
        x = self.head(F.pixel_unshuffle(padded, 2).contiguous(memory_format=torch.channels_last))
        for weight, layer in zip(self.cells, cells, strict=bool(self.cells)):
            x = x + _seen(weight, layer, x.shape[-2:])
        for block in self.blocks:
            x = x + block(x)
        change = F.pixel_shuffle(self.tail(x), 2)
        return torch.sigmoid(_logit(raw) + _inside(change, self.pad, raw))


class _Normed(nn.Module):
    """A 3x3 convolution, group normalisation, leaky rectifier; at stride 2 it halves the resolution, ``up`` doubles."""

    def __init__(self, before: int, after: int, stride: int = 1, up: bool = False) -> None:
        super().__init__()
        self.convolution: nn.Conv2d | nn.ConvTranspose2d = (
            nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=1)
            if up
            else nn.Conv2d(before, after, 3, stride, padding=1)
        )
        self.norm = nn.GroupNorm(2, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), _PAPER_SLOPE)


class UNetGenerator(nn.Module):
    """Reads the prediction, the last frame and its trace at full resolution, works at half of it, and draws at full.

    One level of the U-Net of Olaf Ronneberger, Philipp Fischer, Thomas Brox, MICCAI 2015, arXiv 1505.04597. What it
    finds is added to the logit of the prediction, or of the last frame; the last layer starts at 0, which returns that
    as it is.

    Args:
        config: its settings.
        channels: channels of a frame.
        layer_cells: cells of each layer of the stack.
        seen_channels: channels of the stack's input, the last frame and its trace.
        pad, pad_value: border of the frames that the stack reads.
    """

    def __init__(
        self,
        config: UNetConfig,
        channels: int,
        layer_cells: Sequence[int],
        seen_channels: int,
        pad: int,
        pad_value: float,
    ) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = pad, pad_value
        features, width = config.features, config.width
        self.read = _Normed(channels + seen_channels, features)
        self.down = _Normed(features, width, 2)
        self.cells = nn.ParameterList(
            [nn.Parameter(_CELL_DEVIATION * torch.randn(count, width)) for count in layer_cells if config.sees_cells]
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                _convolution(width, width),
                nn.GELU(),
                _from_zero(_convolution(width, width)),
            )
            for _ in range(config.blocks)
        )
        self.up = _Normed(width, features, up=True)
        self.draw = _Normed(2 * features, features)
        self.tail = _from_zero(nn.Conv2d(features, channels, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor) -> Tensor:
        """Return the rectified frame.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: the stack's last input, ``[b, c', h', w']``, with its border; the frame first, its trace behind.

        Returns:
            ``[b, c, h, w]`` in 0..1.
        """
        padded = _bordered(raw, self.pad, self.pad_value)
        height, width = padded.shape[-2:]
        seen = F.pad(seen, (0, width - seen.shape[-1], 0, height - seen.shape[-2]), value=self.pad_value)
        both = 2 * torch.cat((padded, seen), 1) - 1  # zeros around a convolution are then no black pixels
        first = self.read(both.contiguous(memory_format=torch.channels_last))
        x = self.down(first)
        for weight, layer in zip(self.cells, cells, strict=bool(self.cells)):
            x = x + _seen(weight, layer, x.shape[-2:])
        for block in self.blocks:
            x = x + block(x)
        change = _inside(self.tail(self.draw(torch.cat((self.up(x), first), 1))), self.pad, raw)
        changed = raw if self.config.changes == "raw" else _inside(seen[:, : raw.shape[1]], self.pad, raw)
        return torch.sigmoid(_logit(changed) + change)


class PaperGenerator(nn.Module):
    """The published convolutional autoencoder: 5x5 kernels, 64-128-256 filters (strides 1, 2, 1), then 128-64-1 back.

    Args:
        channels: channels of a frame.
        pad, pad_value: border of the frames that the stack reads; the generator reads the padded prediction.
    """

    def __init__(self, channels: int, pad: int, pad_value: float) -> None:
        super().__init__()
        self.pad, self.pad_value = pad, pad_value
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 5, stride, padding=2)
            for before, after, stride in ((channels, 64, 1), (64, 128, 2), (128, 256, 1))
        )
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 5, stride, padding=2, output_padding=stride - 1)
            for before, after, stride in ((256, 128, 2), (128, 64, 1), (64, channels, 1))
        )

    def forward(self, raw: Tensor, cells: Sequence[Cells] = (), seen: Tensor | None = None) -> Tensor:
        """Return the rectified frame ``[b, c, h, w]`` in 0..1 of a prediction of that shape."""
        x = _bordered(raw, self.pad, self.pad_value)
        for layer in self.encoder:
            x = F.leaky_relu(layer(x), _PAPER_SLOPE)
        for layer in self.decoder[:-1]:
            x = F.leaky_relu(layer(x), _PAPER_SLOPE)
        return _inside(torch.sigmoid(self.decoder[-1](x)), self.pad, raw)


Rectifier = SharpeningFilter | CompactGenerator | UNetGenerator | PaperGenerator


def make_rectifier(
    config: RectifierConfig,
    channels: int,
    layer_cells: Sequence[int],
    seen_channels: int,
    pad: int,
    pad_value: float,
) -> Rectifier:
    """Return the rectifier that the settings name; the arguments are those of `UNetGenerator`."""
    if isinstance(config, CompactConfig):
        return CompactGenerator(config, channels, layer_cells, pad, pad_value)
    if isinstance(config, UNetConfig):
        return UNetGenerator(config, channels, layer_cells, seen_channels, pad, pad_value)
    if isinstance(config, PaperConfig):
        return PaperGenerator(channels, pad, pad_value)
    return SharpeningFilter(config)


class Discriminator(nn.Module):
    """Tells frames that came from frames that were generated, given what they were generated from.

    A fully connected layer of 128 on the frame and one on the condition, side by side, then one unit.

    Args:
        elements: elements of a frame, channels x height x width.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.frame = nn.Linear(elements, 128)
        self.condition = nn.Linear(elements, 128)
        self.unit = nn.Linear(256, 1)

    def forward(self, frame: Tensor, condition: Tensor) -> Tensor:
        """Return the logit of "this frame came", ``[b]``; both arguments are ``[b, c, h, w]``."""
        features = torch.cat((self.frame(frame.flatten(1)), self.condition(condition.flatten(1))), 1)
        return self.unit(F.leaky_relu(features, _PAPER_SLOPE)).squeeze(1)  # type: ignore[no-any-return]


def discriminator_loss(real: Tensor, generated: Tensor, real_label: float = 0.9) -> Tensor:
    """Return the discriminator's mean cross-entropy, nats, a scalar.

    Args:
        real: logits ``[b]`` for frames that came; their label is smoothed to ``real_label``, in 0..1.
        generated: logits ``[b]`` for generated frames, of label 0.
    """
    labels = torch.full_like(real, real_label)
    return F.binary_cross_entropy_with_logits(real, labels) + F.binary_cross_entropy_with_logits(
        generated, torch.zeros_like(generated)
    )


def adversarial_loss(generated: Tensor) -> Tensor:
    """Return the generator's mean cross-entropy, nats, a scalar: small where the discriminator takes it for real."""
    return F.binary_cross_entropy_with_logits(generated, torch.ones_like(generated))


def _bordered(raw: Tensor, pad: int, value: float) -> Tensor:
    """Put the border that the stack reads around a prediction, and one line more where its size is odd."""
    height, width = raw.shape[-2:]
    return F.pad(raw, (pad, pad + width % 2, pad, pad + height % 2), value=value)


def _inside(padded: Tensor, pad: int, raw: Tensor) -> Tensor:
    """Undo `_bordered`: cut the border off, down to the size of the prediction."""
    height, width = raw.shape[-2:]
    return padded[:, :, pad : pad + height, pad : pad + width]


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _from_zero(layer: _Layer) -> _Layer:
    """Let a layer start as if it were not there."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _seen(weight: Tensor, cells: Cells, size: Sequence[int]) -> Tensor:
    """Multiply cells ``[b, h, w, k]`` by ``weight [n, channels]``; the result is a map ``[b, channels, *size]``."""
    b, h, w, k = cells.index.shape
    none = cells.index < 0
    index = cells.index.masked_fill(none, 0).view(-1, k)  # an entry that names no cell has the value 0
    rows = F.embedding_bag(index, weight, mode="sum", per_sample_weights=cells.value.reshape(-1, k))
    found = rows.view(b, h, w, -1).permute(0, 3, 1, 2)
    return found if (h, w) == tuple(size) else F.interpolate(found, size=tuple(size), mode="nearest")


def _logit(raw: Tensor) -> Tensor:
    return torch.logit(raw.clamp(_SURE, 1 - _SURE))
