"""Predicts that nothing moves: the next frame is the last one ("frame t-1" in the literature's tables)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CopyLastState(NamedTuple):
    """The last frame seen, ``[batch, channels, height, width]``; zeros before the first."""

    frame: Tensor


class CopyLastPrediction(NamedTuple):
    """The predicted frame, ``[batch, channels, height, width]``."""

    frame: Tensor


class CopyLast:
    """The `Predictor` that repeats the last frame; the floor that a model has to beat. Works on frames of any shape."""

    def initial_state(self, shape: tuple[int, int, int, int]) -> CopyLastState:
        """Return black frames: nothing has been seen."""
        return CopyLastState(torch.zeros(shape))

    def predict(self, state: CopyLastState) -> CopyLastPrediction:
        """Predict the last frame seen."""
        return CopyLastPrediction(state.frame)

    def observe(self, frame: Tensor, prediction: CopyLastPrediction, state: CopyLastState) -> CopyLastState:
        """Remember ``frame`` and nothing else."""
        return CopyLastState(frame.detach())
