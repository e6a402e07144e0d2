"""Layers in order. Each reads the cells of the layer below, gets feedback from the layer above, and learns alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchrsm.rsm.functional import Cells, Chance, Grid, strided_grid
from torchrsm.rsm.kernels import EngineName
from torchrsm.rsm.layer import LayerConfig, LayerPrediction, LayerState, RSMLayer
from torchrsm.rsm.symmetry import Symmetry


class RSMStack(nn.Module):
    """A bidirectional stack of RSM layers.

    Args:
        layers: settings, from the layer that reads the frames upwards.
        channels: channels of a frame.
        frame_grid: rows and columns of a frame; needed only by layers whose weights depend on them.
        feedback: each layer hears the one above; else the layers hear only what is below them.
        fresh_feedback: layers work from the top down, and each hears what the layer above has just chosen for the same
            step; else, as published, what that layer chose at the last step.
        engine: which implementation computes the step.
        symmetry: of the world, see `torchrsm.rsm.symmetry`.
    """

    layers: Sequence[RSMLayer]

    def __init__(
        self,
        layers: Sequence[LayerConfig],
        channels: int,
        *,
        frame_grid: Grid | None = None,
        feedback: bool = True,
        fresh_feedback: bool = False,
        engine: EngineName = "auto",
        symmetry: Symmetry = "none",
    ) -> None:
        super().__init__()
        self.fresh_feedback = fresh_feedback
        built = []
        grid, pool = frame_grid, 1
        for level, config in enumerate(layers):
            above = layers[level + 1].cells if feedback and level + 1 < len(layers) else None
            built.append(
                RSMLayer(
                    config,
                    channels,
                    input_pool=pool,
                    cells_above=above,
                    input_grid=grid,
                    engine=engine,
                    symmetry=symmetry,
                    reads_cells=level > 0,
                )
            )
            channels, pool = config.cells, config.pool
            grid = None if grid is None else strided_grid(strided_grid(grid, config.stride), pool)
        self.layers = nn.ModuleList(built)  # type: ignore[assignment]

    def grids(self, frame_grid: Grid) -> tuple[Grid, ...]:
        """Return the locations of each layer, for frames of a size."""
        found, grid, pool = [], frame_grid, 1
        for layer in self.layers:
            found.append(strided_grid(strided_grid(grid, pool), layer.config.stride))
            grid, pool = found[-1], layer.config.pool
        return tuple(found)

    def initial_state(self, batch: int, frame_grid: Grid) -> tuple[LayerState, ...]:
        """Return the states of layers that have seen nothing."""
        first = self.layers[0]
        zeros = first.bias.new_zeros(batch, *frame_grid, first.channels)
        states = [first.initial_state(batch, zeros)]
        for layer in self.layers[1:]:
            states.append(layer.initial_state(batch, states[-1].cells))
        return tuple(states)

    def predict(self, states: tuple[LayerState, ...], chance: Chance | None = None) -> tuple[LayerPrediction, ...]:
        """Let every layer predict its next input from what it has seen and from the cells above it.

        Args:
            states: what each layer remembers.
            chance: draw the winners of each.
        """
        predictions: list[LayerPrediction] = []
        above: Cells | None = None
        for layer, state in zip(reversed(self.layers), reversed(states), strict=True):
            predictions.append(layer.predict(state, None if layer.feedback is None else above, chance))
            above = predictions[-1].cells if self.fresh_feedback else state.cells
        return tuple(reversed(predictions))

    def losses(self, predictions: tuple[LayerPrediction, ...], frame: Tensor, learn: Tensor) -> tuple[Tensor, ...]:
        """Return one scalar for each layer, each on a graph of its own.

        Args:
            predictions: what `predict` returned.
            frame: the frame that came, ``[b, h, w, c]``.
            learn: ``[b]`` bool, false for samples to leave out.
        """
        targets: list[Tensor | Cells] = [frame, *(prediction.cells for prediction in predictions[:-1])]
        return tuple(
            layer.loss(prediction, target, learn)
            for layer, prediction, target in zip(self.layers, predictions, targets, strict=True)
        )

    def observe(
        self, frame: Tensor, predictions: tuple[LayerPrediction, ...], states: tuple[LayerState, ...]
    ) -> tuple[LayerState, ...]:
        """Return the states after a frame ``[b, h, w, c]``."""
        inputs: list[Tensor | Cells] = [frame, *(prediction.cells for prediction in predictions[:-1])]
        return tuple(
            layer.observe(input, prediction, state)
            for layer, input, prediction, state in zip(self.layers, inputs, predictions, states, strict=True)
        )
