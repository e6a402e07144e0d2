"""The structured RTRBM: an RTRBM that learns which parts of the picture have to do with each other.

Roni Mittelman, Benjamin Kuipers, Silvio Savarese, Honglak Lee, "Structured Recurrent Temporal Restricted Boltzmann
Machines", ICML 2014. Pixels and hidden units belong to the nodes of a graph, here to tiles of the picture. Each block
of weights between two nodes is multiplied by a gate in 0..1, the logistic of a number that is learned, and a penalty
on the gates keeps the graph sparse. One graph gates W, between hidden units and pixels, another U, between the hidden
units of two steps.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchrsm.baselines.rtrbm import RTRBM, BoltzmannConfig


class SRTRBMConfig(BoltzmannConfig):
    """Settings of the `SRTRBM`, and those of `BoltzmannConfig`.

    Attributes:
        tile: side of the tiles, pixels; divides height and width, and their number divides ``hidden_units``.
        initial_gate: logit of all gates before they learn.
        sparsity: weight of the mean gate in the loss.
    """

    kind: Literal["srtrbm"] = "srtrbm"
    tile: int = Field(default=6, gt=0)
    initial_gate: float = 2.0
    sparsity: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.height % self.tile or self.width % self.tile:
            raise ValueError(f"tile must divide height {self.height} and width {self.width}; got {self.tile}")
        if self.hidden_units % self.nodes:
            raise ValueError(f"hidden_units must be divisible by the {self.nodes} tiles; got {self.hidden_units}")
        return self

    @property
    def nodes(self) -> int:
        """Of the graph."""
        return (self.height // self.tile) * (self.width // self.tile)


class SRTRBM(RTRBM):
    """An `RTRBM` with gated weights.

    Args:
        config: its settings.
    """

    config: SRTRBMConfig

    def __init__(self, config: SRTRBMConfig | None = None) -> None:
        config = config or SRTRBMConfig()
        super().__init__(config)
        nodes = config.nodes
        self.visible_gates = nn.Parameter(torch.full((nodes, nodes), config.initial_gate))
        self.recurrent_gates = nn.Parameter(torch.full((nodes, nodes), config.initial_gate))
        tiles = torch.arange(nodes).view(config.height // config.tile, config.width // config.tile)
        pixels = tiles.repeat_interleave(config.tile, 0).repeat_interleave(config.tile, 1)
        self.node_of_pixel: Tensor
        self.node_of_unit: Tensor
        self.register_buffer("node_of_pixel", pixels.expand(config.channels, -1, -1).flatten(), persistent=False)
        units = torch.arange(nodes).repeat_interleave(config.hidden_units // nodes)
        self.register_buffer("node_of_unit", units, persistent=False)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return W and U, gated block by block."""
        rows = self.node_of_unit
        visible = torch.sigmoid(self.visible_gates)[rows][:, self.node_of_pixel]
        recurrent = torch.sigmoid(self.recurrent_gates)[rows][:, rows]
        return self.weights * visible, self.recurrent * recurrent

    def regulariser(self) -> Tensor:
        """Return the penalty on the gates."""
        gates = torch.sigmoid(self.visible_gates).mean() + torch.sigmoid(self.recurrent_gates).mean()
        return self.config.sparsity * gates
