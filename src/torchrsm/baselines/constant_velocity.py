"""Moves each ball on in a straight line: what a flight without bounces explains of the next frame.

It knows what a ball looks like and how many there are, but neither walls nor bounces, and it has nothing to learn. The
balls of the last two frames are found in the pixels and matched (`torchrsm.physics`); each goes on by the displacement
between them, and the picture is drawn anew.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from torchrsm.baselines.sequence_model import BaselineConfig, Predicted, SequenceModel
from torchrsm.scoring.physics import WorldGeometry, detect_balls, match_balls
from torchrsm.streams.bouncing_balls import BOX, render_balls


class ConstantVelocityConfig(BaselineConfig):
    """Settings of `ConstantVelocity`: the world that it sees.

    Attributes:
        balls: in the box.
        radius: of each ball, world units (the box has a side of 10).
    """

    kind: Literal["constant-velocity"] = "constant-velocity"
    height: int = Field(default=30, ge=4)
    width: int = Field(default=30, ge=4)
    balls: int = Field(default=3, gt=0)
    radius: float = Field(default=1.2, gt=0, lt=5)

    @model_validator(mode="after")
    def _is_a_box(self) -> Self:
        if self.channels != 1:
            raise ValueError(f"channels must be 1, for balls have no colour; got {self.channels}")
        if self.height != self.width:
            raise ValueError(f"height and width must be equal; got {self.height} and {self.width}")
        return self


class ConstantVelocityState(NamedTuple):
    """The last two frames, both ``[b, 1, h, w]`` in 0..1; black where there is none.

    Attributes:
        before: the last but one.
        frame: the last.
    """

    before: Tensor
    frame: Tensor


class ConstantVelocity(SequenceModel):
    """The `Predictor`; the state is a `ConstantVelocityState`.

    It needs to find all balls of the world in a picture. If it does not in the last one, it repeats that picture. If it
    does not in the one before (or there is none), the balls stay where they are. In a dream the balls fly straight on;
    once a ball is half outside the box it is not found any more, and the picture stands still.

    Args:
        config: its settings.
    """

    config: ConstantVelocityConfig

    def __init__(self, config: ConstantVelocityConfig | None = None) -> None:
        config = config or ConstantVelocityConfig()
        super().__init__(config)
        self.pixels_per_unit = config.height / BOX
        self.geometry = WorldGeometry(
            balls=config.balls, radius=config.radius * self.pixels_per_unit, side=config.height
        )

    def initial_state(self, shape: tuple[int, int, int, int]) -> ConstantVelocityState:
        """Return black frames: no ball has been seen."""
        self.check_shape(shape)
        return ConstantVelocityState(self.like.new_zeros(shape), self.like.new_zeros(shape))

    def predict(self, state: ConstantVelocityState) -> Predicted:
        """Move the balls of the last frame on by as much as they moved before it."""
        detections = detect_balls(torch.stack(tuple(state), 1), self.geometry)
        before, last = match_balls(detections, self.geometry).swapaxes(0, 1)  # each [b, balls, 2] px
        after = last + np.nan_to_num(last - before)
        found = np.isfinite(after).all((1, 2))
        frame = state.frame.clone()
        if found.any():
            moved = render_balls(
                after[found] / self.pixels_per_unit, radius=self.config.radius, resolution=self.config.height
            )
            frame[torch.from_numpy(found)] = moved.to(frame)
        return Predicted(frame)

    def advance(self, frame: Tensor, prediction: Predicted, state: ConstantVelocityState) -> ConstantVelocityState:
        """Store the frame."""
        return ConstantVelocityState(state.frame, frame)
