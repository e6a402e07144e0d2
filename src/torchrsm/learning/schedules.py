"""How a learning rate changes while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from torchrsm.config import Config


class ScheduleConfig(Config):
    """How a learning rate changes through a phase of a run.

    Attributes:
        schedule: ``constant``, or ``cosine``: linear warm-up, then down to ``final_share`` of the rate.
        warmup_share: share of the phase that is warm-up.
        final_share: share of the rate that is left at the end.
    """

    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: float = Field(default=0.02, ge=0, lt=1)
    final_share: float = Field(default=0.02, ge=0, le=1)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings that a constant rate does not use."""
        if self.schedule == "constant":
            for name in ("warmup_share", "final_share"):
                yield name, "the schedule is constant"

    def rate_factor(self, progress: float) -> float:
        """Return the share of the learning rates in force at this ``progress`` through the phase, in 0..1."""
        if self.schedule == "constant":
            return 1.0
        if progress < self.warmup_share:
            return max(progress / self.warmup_share, 1e-3)
        done = (progress - self.warmup_share) / (1 - self.warmup_share)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
