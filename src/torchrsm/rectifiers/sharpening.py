"""A fixed filter, the baseline of every rectifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig
from torchrsm.rsm.functional import Cells, safe_logit


class SharpeningConfig(RectifierConfig):
    """Settings of a `SharpeningFilter`, the baseline of every rectifier.

    Attributes:
        gain: how much steeper the filter makes a prediction around ``level``; 1 changes nothing.
        level: the value that stays as it is.
    """

    kind: Literal["sharpening"] = "sharpening"
    learns: ClassVar[bool] = False
    gain: float = Field(default=2.0, gt=0)
    level: float = Field(default=0.5, gt=0, lt=1)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the setting that a gain of 1 does not use."""
        if self.gain == 1:
            yield "level", "gain is 1"


class SharpeningFilter(Rectifier):
    """A fixed filter, ``sigmoid(gain * (logit(raw) - logit(level)) + logit(level))``; it learns nothing.

    Args:
        config: its settings.
        sizes: of what it may look at; it looks at the prediction alone, whatever its size.
    """

    level: Tensor

    def __init__(self, config: SharpeningConfig, sizes: InputSizes | None = None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("level", torch.logit(torch.tensor(config.level)), persistent=False)

    def forward(
        self, raw: Tensor, cells: Sequence[Cells] = (), seen: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return the sharpened ``[b, c, h, w]`` in 0..1."""
        return torch.sigmoid(self.config.gain * (safe_logit(raw) - self.level) + self.level)
