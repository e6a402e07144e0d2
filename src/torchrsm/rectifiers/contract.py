"""The contract that every rectifier keeps; each has a file of its own.

A rectifier has one stage or several. Each stage turns the stack's prediction into an output, and has its own loss and
its own weights. The output of the last stage is the rectified frame. Stages share no graph: a stage that reads the
output of another detaches it. Most rectifiers have one stage and define `Rectifier.forward` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from torchrsm.config import Config
from torchrsm.rsm.functional import Cells
from torchrsm.rsm.symmetry import Symmetry

Sees = Literal["prediction", "cells", "frames"]
"""What a rectifier may look at: the stack's prediction, the winners that made it, the frames that the stack read."""


class RectifierConfig(Config):
    """Base of the settings of all rectifiers; its own class adds ``kind``, its name, and the rest."""

    kind: str
    learns: ClassVar[bool] = True
    """Whether such a rectifier has weights, so that a run must say how they learn."""

    def check_symmetry(self, symmetry: Symmetry) -> None:
        """Refuse settings that do not fit the symmetry of the stack.

        Raises:
            ValueError: a number of channels is no multiple of the number of turns.
        """

    def for_still_pictures(self) -> Self:
        """Return settings for films, in which most of a picture stands still. The default is no change."""
        return self


class InputSizes(NamedTuple):
    """Sizes of what a rectifier may look at.

    Attributes:
        channels: of a frame.
        layer_cells: cells of a location of each layer of the stack.
        seen_channels: channels of the frames that the stack reads, those before the last and the trace included.
        pad: rows and columns of border around the frames that the stack reads.
        pad_value: value of the border, in 0..1.
        symmetry: of the stack.
    """

    channels: int
    layer_cells: tuple[int, ...]
    seen_channels: int
    pad: int = 0
    pad_value: float = 0.5
    symmetry: Symmetry = "none"


Score = Callable[[Tensor, Tensor], Tensor]
"""From frames that a stage makes, ``[b, c, h, w]`` or several draws of each, and those that came to numbers ``[b]``."""


class WeightGroup(NamedTuple):
    """The weights that one loss changes.

    Attributes:
        weights: all of them.
        kernels: those that are kernels of convolutions ``[out, in, h, w]`` larger than a point, and whether each is of
            a transposed one, ``[in, out, h, w]``.
    """

    weights: list[nn.Parameter]
    kernels: list[tuple[Tensor, bool]]


class Rectifier(nn.Module):
    """Base of all rectifiers; made from its settings and `InputSizes`."""

    stage_names: ClassVar[tuple[str, ...]] = ("",)
    """A name for each stage, which stands behind that of its loss; the only one needs none."""

    @property
    def sees(self) -> tuple[Sees, ...]:
        """What `forward` looks at."""
        return ("prediction",)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        """Return channels, rows and columns of the noise for a frame of this size; None if it takes no noise."""
        return None

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the rectified frame ``[b, c, h, w]`` in 0..1.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: the frames that the stack has read, ``[b, c', h', w']`` with their border; the last one first, those
                before it and the trace behind.
            noise: standard normal, ``[b, *noise_shape]``: another one draws another frame. None for none, which is
                noise of 0.
        """
        raise NotImplementedError

    def stages(
        self, raw: Tensor, cells: Sequence[Cells], seen: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return what each stage makes, ``[b, ...]``, on graphs that share nothing; the last is the rectified frame."""
        return (self(raw, cells, seen, noise),)

    def losses(self, made: tuple[Tensor, ...], frame: Tensor, learn: Tensor, score: Score) -> tuple[Tensor, ...]:
        """Return one scalar for each stage: of a stage that makes a frame, its mean score.

        Args:
            made: what `stages` returned.
            frame: the frame that came, ``[b, c, h, w]``.
            learn: ``[b]`` bool, false for streams that teach nothing. The loss is 0 if none teaches.
            score: how far a stage's frames are from those that came.
        """
        return tuple(mean_over(score(one, frame), learn) for one in made)

    def weight_groups(self) -> tuple[WeightGroup, ...]:
        """Return the weights that each loss changes; no weight is in two groups."""
        return (WeightGroup(list(self.parameters()), kernels_of(self)),)


def mean_squared_error(made: Tensor, frame: Tensor) -> Tensor:
    """Return the mean squared error of each frame ``[b, c, h, w]``, ``[b]``; a `Score`."""
    return (made - frame).square().flatten(1).mean(1)


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen ones of ``values [b]``, a scalar; 0 if none is. ``chosen`` is ``[b]`` bool.

    The sizes do not depend on how many are chosen, so nothing waits for the device.
    """
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


def kernels_of(module: nn.Module) -> list[tuple[Tensor, bool]]:
    """Return the kernels of a module's convolutions that are larger than a point, and whether each is transposed."""
    return [
        (part.weight, isinstance(part, nn.ConvTranspose2d))
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight[0, 0].numel() > 1
    ]
