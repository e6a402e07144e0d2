"""Models that are cut in one way after they have learned, to see what of them carries their result.

Each function returns a copy of a model, which predicts, dreams and is scored as any other; the model stays as it is. A
copy can be cut again, in another way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from torchrsm.model import VideoPredictor
from torchrsm.rectifiers import Rectifier
from torchrsm.rectifiers.contract import Sees
from torchrsm.rsm.functional import Cells

Among = Literal["locations", "cells"]
"""What is permuted: the locations of a layer, each with its winners, or the names of its cells."""


def without_memory(model: VideoPredictor) -> VideoPredictor:
    """Return a model whose layers do not hear their own past: all recurrent weights are 0.

    What layers read of the past in other ways stays: frames side by side, their trace, feedback, inhibition.
    """
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for layer in cut.stack.layers:
            layer.recurrent.zero_()
    return cut


def without_feedback(model: VideoPredictor) -> VideoPredictor:
    """Return a model in which no layer hears the one above: all feedback weights are 0.

    Raises:
        ValueError: there is no feedback in the model.
    """
    cut = copy.deepcopy(model)
    heard = [layer.feedback for layer in cut.stack.layers if layer.feedback is not None]
    if not heard:
        raise ValueError(f"model must have feedback; got one of {len(model.stack.layers)} layer(s) without it")
    with torch.no_grad():
        for weights in heard:
            weights.zero_()
    return cut


def with_shuffled_winners(model: VideoPredictor, among: Among = "locations", seed: int = 0) -> VideoPredictor:
    """Return a model whose rectifier sees the winners in the wrong places, or under wrong names; its stack is the same.

    One permutation for each layer, the same for every sample and step.

    Args:
        model: its rectifier sees the winners.
        among: ``locations`` of a layer's map, or ``cells`` of a location.
        seed: of the permutations.

    Raises:
        ValueError: the rectifier does not see the winners, or ``among`` is something else.
    """
    if among not in get_args(Among):
        raise ValueError(f"among must be one of {', '.join(get_args(Among))}; got {among!r}")
    sees = () if model.rectifier is None else model.rectifier.sees
    if "cells" not in sees:
        raise ValueError(f"rectifier must see the winners (cells); got one that sees {', '.join(sees) or 'nothing'}")
    cut = copy.deepcopy(model)
    assert cut.rectifier is not None
    cut.rectifier = _Shuffling(cut.rectifier, tuple(layer.cells for layer in cut.config.layers), among, seed)
    return cut


class _Shuffling(Rectifier):
    """Shows a rectifier the winners of each layer in another order."""

    def __init__(self, rectifier: Rectifier, layer_cells: tuple[int, ...], among: Among, seed: int) -> None:
        super().__init__()
        self.rectifier = rectifier
        self._layer_cells = layer_cells
        self._among = among
        self._seed = seed

    @property
    def sees(self) -> tuple[Sees, ...]:
        return self.rectifier.sees

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int] | None:
        return self.rectifier.noise_shape(height, width)

    def forward(self, raw: Tensor, cells: Sequence[Cells], seen: Tensor, noise: Tensor | None = None) -> Tensor:
        shuffle = self._among_locations if self._among == "locations" else self._among_cells
        shuffled = [shuffle(level, layer) for level, layer in enumerate(cells)]
        frame: Tensor = self.rectifier(raw, shuffled, seen, noise)
        return frame

    def _among_locations(self, level: int, cells: Cells) -> Cells:
        height, width = cells.index.shape[1:3]
        order = self._permutation(level, height * width, cells)
        return Cells(*(part.flatten(1, 2)[:, order].unflatten(1, (height, width)) for part in cells))

    def _among_cells(self, level: int, cells: Cells) -> Cells:
        names = self._permutation(level, self._layer_cells[level], cells).to(cells.index.dtype)
        none = cells.index < 0
        return cells._replace(index=torch.where(none, cells.index, names[cells.index.masked_fill(none, 0).long()]))

    def _permutation(self, level: int, count: int, cells: Cells) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + level)
        return torch.randperm(count, generator=generator).to(cells.index.device)
