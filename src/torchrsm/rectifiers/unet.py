"""A U-Net that sees the stack's prediction and, if told so, its winners and the frames that the stack reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig, Sees
from torchrsm.rectifiers.parts import (
    LEAKY_SLOPE,
    CellWeights,
    Convolution,
    NoiseWeights,
    TransposedConvolution,
    bordered,
    check_noise_channels,
    convolution,
    from_zero,
    half,
    inside,
)
from torchrsm.rsm.functional import Cells, safe_logit
from torchrsm.rsm.symmetry import Axis, Symmetry, TiedWeights, turns


class UNetConfig(RectifierConfig):
    """Settings of a `UNetGenerator`.

    Attributes:
        features: channels at the frame's own resolution.
        width: channels at half of it.
        blocks: residual blocks of two convolutions there.
        changes: what the generator's output is added to: the stack's prediction (``raw``) or the frame that was seen
            last (``last``), which is the better start where most of a picture stands still.
        sees_cells: read the winners of every layer, too.
        sees_frames: read the frames that the stack has read, too. Without them the rectifier has no memory of any kind:
            all that it knows it hears from the stack.
        noise_channels: of the noise by which it draws one of several futures, at half the resolution; 0 for none.
        noise_side: rows and columns of that map for which one value of the noise stands.
    """

    kind: Literal["unet"] = "unet"
    features: int = Field(default=16, gt=0, multiple_of=2)
    width: int = Field(default=32, gt=0, multiple_of=2)
    blocks: int = Field(default=4, gt=0)
    changes: Literal["raw", "last"] = "raw"
    sees_cells: bool = True
    sees_frames: bool = True
    noise_channels: int = Field(default=0, ge=0)
    noise_side: int = Field(default=4, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the setting of noise where there is none."""
        if self.noise_channels == 0:
            yield "noise_side", "noise_channels is 0"

    @model_validator(mode="after")
    def _sees_what_it_changes(self) -> Self:
        if self.changes == "last" and not self.sees_frames:
            raise ValueError("changes must be 'raw' where sees_frames is false; got 'last'")
        return self

    def check_symmetry(self, symmetry: Symmetry) -> None:
        """See `RectifierConfig.check_symmetry`."""
        block = len(turns(symmetry))
        for name in ("features", "width"):
            if getattr(self, name) % (2 * block if block > 1 else 1):
                raise ValueError(
                    f"symmetry {symmetry!r} needs {name}, which are normalised in two halves, of {2 * block} or a "
                    f"multiple of it; got {getattr(self, name)}"
                )
        check_noise_channels(self.noise_channels, symmetry)

    def for_still_pictures(self) -> Self:
        """Return settings that change the last frame instead of the stack's prediction, where frames are seen."""
        return self.replace(changes="last") if self.sees_frames else self


class _Normed(nn.Module):
    """A 3x3 convolution, group normalisation, leaky rectifier. Stride 2 halves the resolution, ``up`` doubles it.

    With ``even`` a window that halves or doubles is 4x4: it covers an even map alike from both sides.
    """

    def __init__(self, before: int, after: int, stride: int = 1, up: bool = False, even: bool = False) -> None:
        super().__init__()
        size = 4 if even else 3
        self.convolution: Convolution | TransposedConvolution = (
            TransposedConvolution(before, after, size, 2, padding=1, output_padding=0 if even else 1)
            if up
            else Convolution(before, after, size, stride, padding=1)
        )
        self.norm = nn.GroupNorm(2, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), LEAKY_SLOPE)


class UNetGenerator(Rectifier):
    """Reads the prediction and the stack's input at full resolution, works at half of it, and draws at full.

    One level of the U-Net of Olaf Ronneberger, Philipp Fischer, Thomas Brox, MICCAI 2015, arXiv 1505.04597. Its
    output is added to the logit of the prediction, or of the last frame. The last layer starts at 0, so at first it
    returns that frame unchanged. Where the stack has a symmetry, the channels come in blocks as its cells do, and its
    weights are tied likewise.

    Args:
        config: its settings.
        sizes: of what it may look at.
    """

    def __init__(self, config: UNetConfig, sizes: InputSizes) -> None:
        super().__init__()
        self.config = config
        self.pad, self.pad_value = sizes.pad, sizes.pad_value
        features, width, even = config.features, config.width, sizes.symmetry != "none"
        self.read = _Normed(sizes.channels + sizes.seen_channels * config.sees_frames, features)
        self.down = _Normed(features, width, 2, even=even)
        self.cells = CellWeights(sizes.layer_cells if config.sees_cells else (), width, sizes.symmetry)
        self.noise = NoiseWeights(config.noise_channels, config.noise_side, width, sizes.symmetry)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                convolution(width, width),
                nn.GELU(),
                from_zero(convolution(width, width)),
            )
            for _ in range(config.blocks)
        )
        self.up = _Normed(width, features, up=True, even=even)
        self.draw = _Normed(2 * features, features)
        self.tail = from_zero(Convolution(features, sizes.channels, 1))
        self.tied = TiedWeights(self, self._axes(), sizes.symmetry)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _axes(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Yield the weights that a symmetry ties, and what their axes count."""
        for name, weights in (("cells", self.cells), ("noise", self.noise)):
            for number, weight in enumerate(weights):
                yield f"{name}.{number}", (Axis(len(weight), "cells"), Axis(weight.shape[1], "cells"))
        for name, weight in self.named_parameters():
            if weight.dim() == 4:
                frames = {"read.convolution.weight": 1, "tail.weight": 0}.get(name)  # the axis of a frame's channels
                channels = [Axis(weight.shape[axis], "fixed" if axis == frames else "cells") for axis in (0, 1)]
                yield name, (*channels, Axis(weight[0, 0].numel(), "window"))
            elif weight.dim() == 1 and name != "tail.bias":
                yield name, (Axis(len(weight), "cells"),)

    @property
    def sees(self) -> tuple[Sees, ...]:
        """The prediction and, if its settings say so, the winners and the frames that the stack read."""
        cells: tuple[Sees, ...] = ("cells",) if self.config.sees_cells else ()
        frames: tuple[Sees, ...] = ("frames",) if self.config.sees_frames else ()
        return ("prediction", *cells, *frames)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        """See `Rectifier.noise_shape`."""
        return self.noise.shape(half(height, self.pad), half(width, self.pad))

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the rectified frame.

        Args:
            raw: prediction of the stack, ``[b, c, h, w]`` in 0..1.
            cells: the winners of each layer that made it.
            seen: what the stack has read, ``[b, c', h', w']``, with its border: see `torchrsm.model.Prediction`.
            noise: see `Rectifier.forward`.

        Returns:
            ``[b, c, h, w]`` in 0..1.
        """
        padded = bordered(raw, self.pad, self.pad_value)
        height, width = padded.shape[-2:]
        read = [padded]
        if self.config.sees_frames:
            seen = F.pad(seen, (0, width - seen.shape[-1], 0, height - seen.shape[-2]), value=self.pad_value)
            read.append(seen)
        both = 2 * torch.cat(read, 1) - 1  # so the zeros around a convolution differ from black pixels
        first = self.read(both.contiguous(memory_format=torch.channels_last))
        x = self.noise.added_to(self.cells.added_to(self.down(first), cells), noise)
        for block in self.blocks:
            x = x + block(x)
        change = inside(self.tail(self.draw(torch.cat((self.up(x), first), 1))), self.pad, raw)
        changed = raw if self.config.changes == "raw" else inside(seen[:, : raw.shape[1]], self.pad, raw)
        return torch.sigmoid(safe_logit(changed) + change)
