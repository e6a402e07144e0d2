"""The U-Net of the rectifier without any stack: it reads the last frames side by side and has no memory.

What the rectifier of `torchrsm.rectifiers.unet` can do by itself. A system with that rectifier has to be compared with
it: only what it does better is the stack's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from torchrsm.baselines.sequence_model import BaselineConfig, Predicted, SequenceModel
from torchrsm.rectifiers.contract import InputSizes
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator
from torchrsm.rsm.symmetry import Symmetry, turns

_BORDER = 0.5  # value of the border, neither black nor white


class FramesUNetConfig(BaselineConfig):
    """Settings of a `FramesUNet`.

    Attributes:
        context: frames that it reads.
        pad: rows and columns of border around each frame, which make the walls visible to a convolution.
        features: channels at the frame's own resolution, even.
        inner_features: channels at half of it, even.
        blocks: residual blocks of two convolutions there.
        symmetry: of the world, as of a stack: see `torchrsm.model.ModelConfig`.
    """

    kind: Literal["unet"] = "unet"
    context: int = Field(default=4, gt=1)
    pad: int = Field(default=2, ge=0, le=256)
    features: int = Field(default=16, gt=0, multiple_of=2)
    inner_features: int = Field(default=32, gt=0, multiple_of=2)
    blocks: int = Field(default=4, gt=0)
    symmetry: Symmetry = "none"

    @model_validator(mode="after")
    def _can_be_turned(self) -> Self:
        self.network.check_symmetry(self.symmetry)
        return self

    @property
    def copies(self) -> int:
        """See `Config.copies`."""
        return len(turns(self.symmetry))

    @property
    def network(self) -> UNetConfig:
        """The settings of the network."""
        return UNetConfig(features=self.features, width=self.inner_features, blocks=self.blocks, sees_cells=False)


class FramesUNetState(NamedTuple):
    """What has been seen.

    Attributes:
        history: the last frames with their border, the latest first, ``[b, context, c, h + 2 pad, w + 2 pad]`` in 0..1;
            0, border included, where there is none.
    """

    history: Tensor


class FramesUNet(SequenceModel):
    """The `Predictor`; what the network returns is added to the logit of the last frame, at first nothing.

    Args:
        config: its settings.
    """

    config: FramesUNetConfig

    def __init__(self, config: FramesUNetConfig | None = None) -> None:
        config = config or FramesUNetConfig()
        super().__init__(config)
        before = (config.context - 1) * config.channels
        # The last frame takes the place of the stack's prediction, the frames before it that of the stack's input.
        sizes = InputSizes(config.channels, (), before, config.pad, _BORDER, config.symmetry)
        self.generator = UNetGenerator(config.network, sizes)

    def initial_state(self, shape: tuple[int, int, int, int]) -> FramesUNetState:
        """Return an empty history."""
        self.check_shape(shape)
        batch, channels, height, width = shape
        size = (height + 2 * self.config.pad, width + 2 * self.config.pad)
        return FramesUNetState(self.like.new_zeros(batch, self.config.context, channels, *size))

    def predict(self, state: FramesUNetState) -> Predicted:
        """Read the history."""
        pad, history = self.config.pad, state.history
        height, width = history.shape[-2:]
        last = history[:, 0, :, pad : height - pad, pad : width - pad]
        return Predicted(self.generator(last, (), history[:, 1:].flatten(1, 2)))

    def advance(self, frame: Tensor, prediction: Predicted, state: FramesUNetState) -> FramesUNetState:
        """Store the frame and forget the oldest."""
        latest = F.pad(frame, (self.config.pad,) * 4, value=_BORDER)
        return FramesUNetState(torch.cat((latest[:, None], state.history[:, :-1]), 1))
