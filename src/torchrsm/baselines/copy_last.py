"""Predicts that nothing moves: the next frame is the last one ("frame t-1" in the literature's tables)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from torchrsm.baselines.sequence_model import BaselineConfig, Predicted, SequenceModel
from torchrsm.predictor import check_shape


class CopyLastConfig(BaselineConfig):
    """Settings of `CopyLast`, which has none of its own."""

    kind: Literal["copy-last"] = "copy-last"


class CopyLastState(NamedTuple):
    """The last frame seen, ``[batch, channels, height, width]``; zeros before the first."""

    frame: Tensor


class CopyLast(SequenceModel):
    """Repeats the last frame; the floor that a model has to beat. Works on frames of any shape, learns nothing."""

    def __init__(self, config: CopyLastConfig | None = None) -> None:
        super().__init__(config or CopyLastConfig())

    def initial_state(self, shape: tuple[int, int, int, int]) -> CopyLastState:
        """Return black frames: nothing has been seen."""
        return CopyLastState(self.like.new_zeros(check_shape(shape)))

    def predict(self, state: CopyLastState) -> Predicted:
        """Predict the last frame seen."""
        return Predicted(state.frame)

    def advance(self, frame: Tensor, prediction: Predicted, state: CopyLastState) -> CopyLastState:
        """Remember ``frame`` and nothing else."""
        return CopyLastState(frame)
