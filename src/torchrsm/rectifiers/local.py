"""A row of stages that each predict the frame and learn from their own error alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig, Sees, WeightGroup, kernels_of
from torchrsm.rectifiers.parts import (
    CellWeights,
    NoiseWeights,
    bordered,
    check_noise_channels,
    convolution,
    from_zero,
    half,
    inside,
)
from torchrsm.rsm.functional import Cells, safe_logit
from torchrsm.rsm.symmetry import Axis, Symmetry, TiedWeights, turns


class LocalConfig(RectifierConfig):
    """Settings of `LocalStages`.

    Attributes:
        stages: how many there are.
        width: channels of a hidden map of a stage, at half the resolution of the frame.
        hidden_layers: hidden maps of a stage, one after the other. With 1 no gradient crosses any hidden layer; with
            more it crosses those of the same stage. It never crosses a stage.
        sees_cells: let each stage read the winners of every layer of the stack, too.
        noise_channels: of the noise by which the row draws one of several futures, at half the resolution; each stage
            reads the same noise. 0 for none.
        noise_side: rows and columns of that map for which one value of the noise stands.
    """

    kind: Literal["local"] = "local"
    stages: int = Field(default=5, gt=0)
    width: int = Field(default=48, gt=0)
    hidden_layers: int = Field(default=2, gt=0)
    sees_cells: bool = True
    noise_channels: int = Field(default=0, ge=0)
    noise_side: int = Field(default=4, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the setting of noise where there is none."""
        if self.noise_channels == 0:
            yield "noise_side", "noise_channels is 0"

    def check_symmetry(self, symmetry: Symmetry) -> None:
        """See `RectifierConfig.check_symmetry`."""
        block = len(turns(symmetry))
        if self.width % block:
            raise ValueError(f"symmetry {symmetry!r} needs a width of {block} or a multiple of it; got {self.width}")
        check_noise_channels(self.noise_channels, symmetry)


class _Stage(nn.Module):
    """Reads a prediction, the winners and a map of the stage below, and returns a change of the prediction's logit.

    Its last layer starts at 0, so at first it changes nothing.

    Args:
        config: of the row.
        sizes: of what it may look at.
        first: whether no stage is below.
    """

    def __init__(self, config: LocalConfig, sizes: InputSizes, first: bool) -> None:
        super().__init__()
        width = config.width
        self.read = convolution(4 * sizes.channels, width)
        self.below = None if first else convolution(width, width)
        self.cells = CellWeights(sizes.layer_cells if config.sees_cells else (), width, sizes.symmetry)
        self.noise = NoiseWeights(config.noise_channels, config.noise_side, width, sizes.symmetry)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(config.hidden_layers))
        self.hidden = nn.ModuleList(convolution(width, width) for _ in range(config.hidden_layers - 1))
        self.tail = from_zero(convolution(width, 4 * sizes.channels))
        self.tied = TiedWeights(self, self._axes(width, sizes.channels), sizes.symmetry)

    def _axes(self, width: int, channels: int) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Yield the weights that a symmetry ties, and what their axes count."""
        own, kernel, folded = Axis(width, "cells"), Axis(9, "window"), (Axis(channels, "fixed"), Axis(4, "window"))
        for name, weight in self.named_parameters():
            part = name.partition(".")[0]
            if part in ("cells", "noise"):
                yield name, (Axis(len(weight), "cells"), own)
            elif name.endswith("bias") or part == "norms":
                yield name, folded if part == "tail" else (own,)
            else:
                yield (
                    name,
                    {"read": (own, *folded, kernel), "tail": (*folded, own, kernel)}.get(part, (own, own, kernel)),
                )

    def forward(
        self, folded: Tensor, cells: Sequence[Cells], below: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the change, folded two by two into channels, and the last hidden map.

        Args:
            folded: the prediction so far with its border, -1..1, folded likewise, ``[b, 4 c, h, w]``.
            cells: the winners of each layer of the stack.
            below: the hidden map of the stage below, ``[b, width, h, w]``; None for the first stage.
            noise: see `Rectifier.forward`.
        """
        x = self.noise.added_to(self.cells.added_to(self.read(folded), cells), noise)
        if self.below is not None:
            x = x + self.below(below)
        first, *others = self.norms
        x = F.gelu(first(x))
        for layer, norm in zip(self.hidden, others, strict=True):
            x = F.gelu(norm(layer(x)))
        return self.tail(x), x


class LocalStages(Rectifier):
    """Stages in a row; each reads the frame of the stage below and makes a better one.

    What a stage reads, the prediction so far, the winners of the stack and the hidden map of the stage below, is
    constant for its gradient. It learns from its own squared error, with optimisers of its own. So no gradient crosses
    a stage, as none crosses a layer of the stack. Where the stack has a symmetry, the channels come in blocks as its
    cells do, and the weights are tied likewise.

    Args:
        config: its settings.
        sizes: of what it may look at.
    """

    def __init__(self, config: LocalConfig, sizes: InputSizes) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = sizes.pad, sizes.pad_value
        self.row = nn.ModuleList(_Stage(config, sizes, first=number == 0) for number in range(config.stages))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def sees(self) -> tuple[Sees, ...]:
        """The prediction and, if its settings say so, the winners."""
        return ("prediction", "cells") if self.config.sees_cells else ("prediction",)

    @property
    def stage_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The number of each stage, from 1."""
        return tuple(f"of stage {number}" for number in range(1, self.config.stages + 1))

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        """See `Rectifier.noise_shape`."""
        first: _Stage = self.row[0]  # type: ignore[assignment]
        return first.noise.shape(half(height, self.pad), half(width, self.pad))

    def forward(
        self, raw: Tensor, cells: Sequence[Cells], seen: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return the rectified frame, that of the last stage.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: not looked at.
            noise: see `Rectifier.forward`.

        Returns:
            ``[b, c, h, w]`` in 0..1.
        """
        return self.stages(raw, cells, seen, noise)[-1]

    def stages(
        self, raw: Tensor, cells: Sequence[Cells], seen: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the frame ``[b, c, h, w]`` that each stage makes; see `Rectifier.stages`."""
        made: list[Tensor] = []
        frame, below = raw, None
        for stage in self.row:
            padded = 2 * bordered(frame.detach(), self.pad, self.pad_value) - 1
            folded = F.pixel_unshuffle(padded, 2).contiguous(memory_format=torch.channels_last)
            change, hidden = stage(folded, cells, below, noise)
            frame = torch.sigmoid(safe_logit(frame.detach()) + inside(F.pixel_shuffle(change, 2), self.pad, raw))
            below = hidden.detach()
            made.append(frame)
        return tuple(made)

    def weight_groups(self) -> tuple[WeightGroup, ...]:
        """Return the weights of each stage."""
        return tuple(WeightGroup(list(stage.parameters()), kernels_of(stage)) for stage in self.row)
