"""A fixed filter, the baseline of every rectifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrsm.config import Config
from torchrsm.rectifiers.parts import (
    safe_logit,
)
from torchrsm.rsm.functional import Cells


class SharpeningConfig(Config):
    """Settings of a `SharpeningFilter`, the baseline of every rectifier.

    Attributes:
        gain: how much steeper the filter makes a prediction around ``level``; 1 changes nothing.
        level: the value that stays as it is.
    """

    kind: Literal["sharpening"] = "sharpening"
    gain: float = Field(default=2.0, gt=0)
    level: float = Field(default=0.5, gt=0, lt=1)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List what a gain of 1 does not use."""
        if self.gain == 1:
            yield "level", "gain is 1"


class SharpeningFilter(nn.Module):
    """A fixed filter, ``sigmoid(gain * (logit(raw) - logit(level)) + logit(level))``; it learns nothing."""

    def __init__(self, config: SharpeningConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, raw: Tensor, cells: Sequence[Cells] = (), seen: Tensor | None = None) -> Tensor:
        """Return the sharpened ``[b, c, h, w]`` in 0..1."""
        level = torch.logit(torch.tensor(self.config.level, device=raw.device))
        return torch.sigmoid(self.config.gain * (safe_logit(raw) - level) + level)
