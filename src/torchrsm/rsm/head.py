"""Names the symbol that comes next from the winners of the layers, and learns from its own error alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.config import Config
from torchrsm.rsm.functional import Cells, Grid


class HeadConfig(Config):
    """Settings of a `SymbolHead`.

    Attributes:
        symbols: how many there are.
        hidden_units: of a hidden layer between winners and symbols; None for none.
        dropout: share of the winners, and of the hidden units, that is dropped in training.
    """

    symbols: int = Field(ge=2)
    hidden_units: int | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class SymbolHead(nn.Module):
    """A classifier on the winners of all layers, which are constant for its gradient.

    Args:
        config: its settings.
        cells: of a location of each layer.
        grids: locations of each layer.
    """

    def __init__(self, config: HeadConfig, cells: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.config = config
        self._cells = tuple(cells)
        self._locations = tuple(grid.height * grid.width for grid in grids)
        inputs = sum(count * places for count, places in zip(self._cells, self._locations, strict=True))
        outputs = config.hidden_units or config.symbols
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.readout = None if config.hidden_units is None else nn.Linear(config.hidden_units, config.symbols)

    def forward(self, cells: Sequence[Cells]) -> Tensor:
        """Return the logarithm of how likely each symbol is, ``[b, symbols]``.

        Args:
            cells: the winners of each layer, ``[b, h, w, k]`` each.
        """
        indices, values, offset = [], [], 0
        for part, count, places in zip(cells, self._cells, self._locations, strict=True):
            index, value = part.index.flatten(1, 2).long(), part.value.detach().flatten(1, 2)
            place = torch.arange(places, device=index.device)[:, None] * count + offset
            indices.append((index.clamp(min=0) + place).flatten(1))  # one that names no cell has the value 0
            values.append(value.flatten(1))
            offset += count * places
        weights = F.dropout(torch.cat(values, 1), self.config.dropout, self.training)
        x = F.embedding_bag(torch.cat(indices, 1), self.weight, per_sample_weights=weights, mode="sum") + self.bias
        if self.readout is not None:
            x = self.readout(F.dropout(F.leaky_relu(x), self.config.dropout, self.training))
        return F.log_softmax(x, -1)


def symbol_loss(log_probabilities: Tensor, symbols: Tensor, learn: Tensor) -> Tensor:
    """Return the mean cross-entropy of the samples that are learned from, a scalar; 0 if none is learned.

    Args:
        log_probabilities: ``[b, symbols]``, of `SymbolHead`.
        symbols: that came, ``[b]`` int64.
        learn: ``[b]`` bool, false for samples to leave out.
    """
    error = -log_probabilities.gather(1, symbols[:, None])[:, 0]
    return torch.where(learn, error, 0.0).sum() / learn.sum().clamp(min=1)


def check_symbols(symbols: Tensor, batch: int, count: int) -> None:
    """Raise a ValueError unless symbols are ``[batch]`` int64 in 0..count - 1.

    The values are looked at on the CPU alone: to look at those of another device would wait for all its work.
    """
    if not isinstance(symbols, Tensor) or symbols.dtype != torch.int64 or symbols.shape != (batch,):
        got = f"{symbols.dtype} {list(symbols.shape)}" if isinstance(symbols, Tensor) else type(symbols).__name__
        raise ValueError(f"symbols must be {torch.int64} [{batch}]; got {got}")
    if symbols.device.type == "cpu" and batch:
        low, high = int(symbols.min()), int(symbols.max())
        if low < 0 or high >= count:
            raise ValueError(f"symbols must be in 0..{count - 1}; got {low if low < 0 else high}")
