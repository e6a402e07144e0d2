"""Local updates: one optimiser for each layer, one update for each frame."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from torchrsm.config import Config
from torchrsm.model import Prediction, VideoPredictor

_Decay = Annotated[float, Field(ge=0, lt=1)]


class LearningConfig(Config):
    """How the layers learn.

    Attributes:
        learning_rates: one for each layer, from below; a single one serves all.
        schedule: ``constant``, or ``cosine``: linear warm-up, then down to ``final_share`` of the rate.
        warmup_share: share of the run that is warm-up.
        final_share: share of the rate that is left at the end.
        betas: decay of Adam's two averages.
        epsilon: Adam's constant in the divisor.
    """

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(5e-4,), min_length=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: float = Field(default=0.02, ge=0, lt=1)
    final_share: float = Field(default=0.02, ge=0, le=1)
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)

    def rate_factor(self, progress: float) -> float:
        """Return the share of the learning rates in force at this ``progress`` through the run, in 0..1."""
        if self.schedule == "constant":
            return 1.0
        if progress < self.warmup_share:
            return max(progress / self.warmup_share, 1e-3)
        done = (progress - self.warmup_share) / (1 - self.warmup_share)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class LocalLearning:
    """One Adam for each layer of a model; a layer's weights follow that layer's error only."""

    def __init__(self, model: VideoPredictor, config: LearningConfig) -> None:
        layers = model.stack.layers
        rates = config.learning_rates * len(layers) if len(config.learning_rates) == 1 else config.learning_rates
        if len(rates) != len(layers):
            raise ValueError(f"learning_rates must have 1 or {len(layers)} entries, one a layer; got {len(rates)}")
        self.model = model
        self.config = config
        self.learning_rates = rates
        self.optimisers = [
            torch.optim.Adam(layer.parameters(), rate, betas=config.betas, eps=config.epsilon, fused=True)
            for layer, rate in zip(layers, rates, strict=True)
        ]

    def step(self, losses: tuple[Tensor, ...], prediction: Prediction, progress: float) -> None:
        """Take one step on the errors of one frame; ``progress`` through the run is in 0..1."""
        factor = self.config.rate_factor(progress)
        for layer, optimiser, loss, rate, part in zip(
            self.model.stack.layers, self.optimisers, losses, self.learning_rates, prediction.layers, strict=True
        ):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            layer.update_duty(part.cells)
