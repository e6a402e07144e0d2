"""A residual network that sees the stack's prediction and its winners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig, Sees
from torchrsm.rectifiers.parts import (
    CellWeights,
    Convolution,
    bordered,
    convolution,
    from_zero,
    inside,
)
from torchrsm.rsm.functional import Cells, safe_logit
from torchrsm.rsm.symmetry import Axis, Symmetry, TiedWeights, turns


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

    def check_symmetry(self, symmetry: Symmetry) -> None:
        """See `RectifierConfig.check_symmetry`."""
        block = len(turns(symmetry))
        if self.width % block:
            raise ValueError(f"symmetry {symmetry!r} needs a width of {block} or a multiple of it; got {self.width}")


class CompactGenerator(Rectifier):
    """A residual convolutional network at half the resolution, whose output is added to the logit of the prediction.

    The prediction gets the border that the stack reads, so that the walls can be seen, and is folded two by two into
    channels. Every block and the last layer start at 0, so at first it returns the prediction unchanged. Where the
    stack has a symmetry, the channels come in blocks as its cells do, and its weights are tied likewise.

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
        self.cells = CellWeights(sizes.layer_cells if config.sees_cells else (), width, sizes.symmetry)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), convolution(width, width), nn.SiLU(), from_zero(convolution(width, width)))
            for _ in range(config.blocks)
        )
        self.tail = from_zero(convolution(width, 4 * channels))
        self.tied = TiedWeights(self, self._axes(), sizes.symmetry)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _axes(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Yield the weights that a symmetry ties, and what their axes count."""
        own, kernel = Axis(self.config.width, "cells"), Axis(9, "window")
        folded = Axis(len(self.tail.weight) // 4, "fixed"), Axis(4, "window")
        yield from (("head.weight", (own, *folded, kernel)), ("head.bias", (own,)))
        yield from (("tail.weight", (*folded, own, kernel)), ("tail.bias", folded))
        for number, weight in enumerate(self.cells):
            yield f"cells.{number}", (Axis(len(weight), "cells"), own)
        for name, part in self.blocks.named_modules(prefix="blocks"):
            if isinstance(part, Convolution):
                yield from ((f"{name}.weight", (own, own, kernel)), (f"{name}.bias", (own,)))

    @property
    def sees(self) -> tuple[Sees, ...]:
        """The prediction and, if its settings say so, the winners."""
        return ("prediction", "cells") if self.config.sees_cells else ("prediction",)

    def forward(
        self, raw: Tensor, cells: Sequence[Cells], seen: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return the rectified frame.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen, noise: not looked at.

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
