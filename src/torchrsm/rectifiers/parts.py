"""Pieces that the generators share: the border, maps of cells, layers that start at 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rsm.functional import Cells
from torchrsm.rsm.symmetry import Symmetry, turns

LEAKY_SLOPE = 0.2  # of the published networks: the default of the library that they were written in

_CELL_DEVIATION = 0.05

_Layer = TypeVar("_Layer", bound=nn.Module)


def bordered(raw: Tensor, pad: int, value: float) -> Tensor:
    """Put the border that the stack reads around a prediction, and one line more where its size is odd."""
    height, width = raw.shape[-2:]
    return F.pad(raw, (pad, pad + width % 2, pad, pad + height % 2), value=value)


def half(size: int, pad: int) -> int:
    """Return the rows, or columns, at half the resolution of a frame with the border that `bordered` puts around it."""
    return -(-(size + 2 * pad) // 2)


def inside(padded: Tensor, pad: int, raw: Tensor) -> Tensor:
    """Undo `bordered`: cut the border off, down to the size of the prediction."""
    height, width = raw.shape[-2:]
    return padded[:, :, pad : pad + height, pad : pad + width]


class Convolution(nn.Conv2d):
    """A convolution whose result has the type of its input, also where it is computed in bfloat16.

    What follows it, norms and activations, is then exact, and faster than on bfloat16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the map ``[b, out, h', w']`` of a map ``[b, in, h, w]``."""
        return super().forward(input).to(input.dtype)


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution whose result has the type of its input, see `Convolution`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the map ``[b, out, h', w']`` of a map ``[b, in, h, w]``."""
        return super().forward(input, output_size).to(input.dtype)


def convolution(before: int, after: int) -> Convolution:
    """Return a 3x3 convolution that keeps the size of its map."""
    return Convolution(before, after, 3, padding=1)


def from_zero(layer: _Layer) -> _Layer:
    """Set all weights of a layer to 0, so that at first it adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class CellWeights(nn.ParameterList):
    """The weights with which the winners of each layer are added to a map, ``[cells, width]`` for each layer.

    Args:
        layer_cells: cells of a location of each layer that is seen; none for a network that sees no winners.
        width: channels of the map.
        symmetry: of the stack. Where it has one, a coarser grid of cells is enlarged so that no side is preferred.
    """

    def __init__(self, layer_cells: Sequence[int], width: int, symmetry: Symmetry = "none") -> None:
        super().__init__([nn.Parameter(_CELL_DEVIATION * torch.randn(count, width)) for count in layer_cells])
        self._enlarge = "nearest" if symmetry == "none" else "nearest-exact"

    def added_to(self, x: Tensor, cells: Sequence[Cells]) -> Tensor:
        """Return a map ``[b, width, h, w]`` with the winners of each layer added; as it is if none are seen."""
        for weight, layer in zip(self, cells, strict=bool(self)):
            x = x + _project_cells(weight, layer, x.shape[-2:], self._enlarge)
        return x


def check_noise_channels(channels: int, symmetry: Symmetry) -> None:
    """Raise a ValueError unless channels of noise come in blocks, as the cells of a stack with this symmetry do."""
    block = len(turns(symmetry))
    if channels % block:
        raise ValueError(f"symmetry {symmetry!r} needs noise_channels of {block} or a multiple of it; got {channels}")


class NoiseWeights(nn.ParameterList):
    """The weights with which noise is added to a map, ``[channels, width]``; none where there is no noise.

    A value of the noise covers a square of the map, so that what it decides is decided for a place as a whole.

    Args:
        channels: of the noise.
        side: of such a square.
        width: channels of the map.
        symmetry: of the stack, see `CellWeights`.
    """

    def __init__(self, channels: int, side: int, width: int, symmetry: Symmetry = "none") -> None:
        super().__init__([nn.Parameter(_CELL_DEVIATION * torch.randn(channels, width))] if channels else [])
        self._channels, self._side = channels, side
        self._enlarge = "nearest" if symmetry == "none" else "nearest-exact"

    def shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        """Return channels, rows and columns of the noise for a map of this size; None if there is none."""
        return (self._channels, -(-height // self._side), -(-width // self._side)) if self._channels else None

    def added_to(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return a map ``[b, width, h, w]`` with noise ``[b, channels, rows, columns]`` added; None changes nothing."""
        if noise is None:
            return x
        (weight,) = self
        projected = torch.einsum("bnhw,nc->bchw", noise, weight)
        return x + F.interpolate(projected, size=x.shape[-2:], mode=self._enlarge)


def _project_cells(weight: Tensor, cells: Cells, size: Sequence[int], enlarge: str) -> Tensor:
    """Multiply cells ``[b, h, w, k]`` by ``weight [n, channels]``; the result is a map ``[b, channels, *size]``.

    The product with a sparse map of cells is the sum of its winners' rows.
    """
    b, h, w, k = cells.index.shape
    none = cells.index < 0
    index = cells.index.masked_fill(none, 0).view(-1, k)  # an entry that names no cell has the value 0
    rows = F.embedding_bag(index, weight, mode="sum", per_sample_weights=cells.value.reshape(-1, k))
    found = rows.view(b, h, w, -1).permute(0, 3, 1, 2)
    return found if (h, w) == tuple(size) else F.interpolate(found, size=tuple(size), mode=enlarge)
