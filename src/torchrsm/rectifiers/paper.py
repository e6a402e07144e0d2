"""The published generator, which sees the stack's prediction alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig
from torchrsm.rectifiers.parts import LEAKY_SLOPE, Convolution, TransposedConvolution, bordered, inside
from torchrsm.rsm.functional import Cells


class PaperConfig(RectifierConfig):
    """Settings of a `PaperGenerator`: none, it is as published."""

    kind: Literal["paper"] = "paper"


class PaperGenerator(Rectifier):
    """The published convolutional autoencoder: 5x5 kernels, 64-128-256 filters (strides 1, 2, 1), then 128-64-1 back.

    It reads the prediction with the border that the stack's frames have.

    Args:
        config: its settings.
        sizes: of what it may look at.
    """

    def __init__(self, config: PaperConfig, sizes: InputSizes) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = sizes.pad, sizes.pad_value
        channels = sizes.channels
        self.encoder = nn.ModuleList(
            Convolution(before, after, 5, stride, padding=2)
            for before, after, stride in ((channels, 64, 1), (64, 128, 2), (128, 256, 1))
        )
        self.decoder = nn.ModuleList(
            TransposedConvolution(before, after, 5, stride, padding=2, output_padding=stride - 1)
            for before, after, stride in ((256, 128, 2), (128, 64, 1), (64, channels, 1))
        )

    def forward(
        self, raw: Tensor, cells: Sequence[Cells] = (), seen: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return the rectified frame ``[b, c, h, w]`` in 0..1 of a prediction of that shape."""
        x = bordered(raw, self.pad, self.pad_value)
        for layer in self.encoder:
            x = F.leaky_relu(layer(x), LEAKY_SLOPE)
        for layer in self.decoder[:-1]:
            x = F.leaky_relu(layer(x), LEAKY_SLOPE)
        return inside(torch.sigmoid(self.decoder[-1](x)), self.pad, raw)
