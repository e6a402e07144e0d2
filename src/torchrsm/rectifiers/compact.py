"""A residual network that sees the stack's prediction and its winners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig, Sees
from torchrsm.rectifiers.parts import (
    CellWeights,
    bordered,
    convolution,
    from_zero,
    inside,
)
from torchrsm.rsm.functional import Cells, safe_logit


class CompactConfig(RectifierConfig):
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


class CompactGenerator(Rectifier):
    """A residual convolutional network at half the resolution, whose output is added to the logit of the prediction.

    The prediction gets the border that the stack reads, so that the walls can be seen, and is folded two by two into
    channels. Every block and the last layer start at 0, so at first it returns the prediction unchanged.

    Args:
        config: its settings.
        sizes: of what it may look at.
    """

    def __init__(self, config: CompactConfig, sizes: InputSizes) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = sizes.pad, sizes.pad_value
        channels, width = sizes.channels, config.width
        self.head = convolution(4 * channels, width)
        self.cells = CellWeights(sizes.layer_cells if config.sees_cells else (), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), convolution(width, width), nn.SiLU(), from_zero(convolution(width, width)))
            for _ in range(config.blocks)
        )
        self.tail = from_zero(convolution(width, 4 * channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def sees(self) -> tuple[Sees, ...]:
        """The prediction and, if its settings say so, the winners."""
        return ("prediction", "cells") if self.config.sees_cells else ("prediction",)

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor | None = None) -> Tensor:
        """Return the rectified frame.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: not looked at.

        Returns:
            ``[b, c, h, w]`` in 0..1.
        """
        padded = bordered(raw, self.pad, self.pad_value)
        x = self.head(F.pixel_unshuffle(padded, 2).contiguous(memory_format=torch.channels_last))
        x = self.cells.added_to(x, cells)
        for block in self.blocks:
            x = x + block(x)
        change = F.pixel_shuffle(self.tail(x), 2)
        return torch.sigmoid(safe_logit(raw) + inside(change, self.pad, raw))
