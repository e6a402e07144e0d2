"""What one layer's step needs, in the same form for every engine."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

from torch import Tensor

from torchrsm.rsm.functional import Activation, Cells, Grid, Loss, padding_before, strided_grid


class Step(NamedTuple):
    """The sizes of one layer's step on inputs of one size, as plain integers, which compiled code can read.

    `Step.of` makes one.

    Attributes:
        groups, cells_per_group, active_groups: cells of a location, and how many groups win.
        kernel_size, stride: of the feed-forward convolution.
        recurrent_kernel_size: side of the neighbourhood whose last cells a location sees.
        decoder_kernel_size: of the transposed convolution; 0 for a fully connected decoder.
        input_height, input_width, channels: the map that the layer reads and predicts.
        input_pool: side of the windows in which the cells of the layer below are pooled first.
        sigmoid: whether that is the activation of the output; else the identity.
        cross_entropy: whether that is the loss; else the squared error.
        margin: rows and columns along each edge of the input that are seen but not predicted.
        height, width: rows and columns of the layer's own locations.
        top, left: zeros before the first row and column of the input.
        decoder_top, decoder_left: rows and columns of a decoded map that lie before the input's first.
    """

    groups: int
    cells_per_group: int
    active_groups: int
    kernel_size: int
    stride: int
    recurrent_kernel_size: int
    decoder_kernel_size: int
    input_height: int
    input_width: int
    channels: int
    input_pool: int
    sigmoid: bool
    cross_entropy: bool
    margin: int
    height: int
    width: int
    top: int
    left: int
    decoder_top: int
    decoder_left: int

    @classmethod
    def of(
        cls,
        *,
        groups: int,
        cells_per_group: int,
        active_groups: int,
        kernel_size: int,
        stride: int,
        recurrent_kernel_size: int,
        decoder_kernel_size: int,
        input_grid: Grid,
        channels: int,
        input_pool: int,
        activation: Activation,
        margin: int,
        loss: Loss = "squared",
    ) -> Self:
        """Return the step of a layer on inputs of a size, with the sizes that follow from the others."""
        grid = strided_grid(input_grid, stride)
        top, left = (padding_before(size, kernel_size, stride) for size in input_grid)
        decoder_top, decoder_left = (
            padding_before(size, decoder_kernel_size, stride) if decoder_kernel_size else 0 for size in input_grid
        )
        return cls(
            groups=groups,
            cells_per_group=cells_per_group,
            active_groups=active_groups,
            kernel_size=kernel_size,
            stride=stride,
            recurrent_kernel_size=recurrent_kernel_size,
            decoder_kernel_size=decoder_kernel_size,
            input_height=input_grid.height,
            input_width=input_grid.width,
            channels=channels,
            input_pool=input_pool,
            sigmoid=activation == "sigmoid",
            cross_entropy=loss == "cross_entropy",
            margin=margin,
            height=grid.height,
            width=grid.width,
            top=top,
            left=left,
            decoder_top=decoder_top,
            decoder_left=decoder_left,
        )

    @property
    def input_grid(self) -> Grid:
        """Rows and columns of the input."""
        return Grid(self.input_height, self.input_width)

    @property
    def grid(self) -> Grid:
        """The layer's own locations."""
        return Grid(self.height, self.width)

    @property
    def cells(self) -> int:
        """Cells of a location."""
        return self.groups * self.cells_per_group

    @property
    def activation(self) -> Activation:
        """Of the output."""
        return "sigmoid" if self.sigmoid else "identity"


class Weights(NamedTuple):
    """The parameters of one layer.

    Attributes:
        feedforward: ``[kernel_size ** 2 * channels, groups]`` (and the channels of an input trace, if there is one).
        recurrent: ``[recurrent_kernel_size ** 2 * cells, cells]``, a row for each source.
        feedback: ``[cells above, cells]`` or None.
        bias: ``[cells]``.
        decoder: ``[groups, decoder_kernel_size ** 2 * channels]``, or ``[locations * groups, height * width *
            channels]`` where it is fully connected.
        output_bias: ``[height, width, channels]`` or ``[1, 1, channels]``.
    """

    feedforward: Tensor
    recurrent: Tensor
    feedback: Tensor | None
    bias: Tensor
    decoder: Tensor
    output_bias: Tensor


class Context(NamedTuple):
    """All that a layer reads at one step; constants, so no gradient crosses a layer or a step.

    Attributes:
        input: the last input ``[b, h, w, c]`` or the cells of the layer below, before they are pooled.
        memory: the layer's own past, normalised, as cells or as a dense map ``[b, h, w, n]``.
        feedback: the last cells of the layer above, or None.
        refractory: ``[b, h, w, k]`` int32, cells that cannot win at this step, or None.
        inhibition: ``[b, h, w, n]`` in 0..1, or None.
        boost: ``[n]`` factors of the rank, or None.
    """

    input: Tensor | Cells
    memory: Cells | Tensor
    feedback: Cells | None = None
    refractory: Tensor | None = None
    inhibition: Tensor | None = None
    boost: Tensor | None = None


class Engine(Protocol):
    """One implementation of the layer's step. All engines choose the same winners and compute the same values."""

    def select(self, step: Step, weights: Weights, context: Context) -> tuple[Tensor, Tensor]:
        """Return the winners ``[b, h, w, k]`` int32 and their drive ``[b, h, w, k]``, which carries the gradient."""
        ...

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor, base: Tensor | None = None) -> Tensor:
        """Return the predicted input ``[b, h, w, c]``, with a gradient for ``z``, the decoder and the output's bias.

        Args:
            step: sizes.
            weights: of the layer.
            index: the winners ``[b, h, w, k]``.
            z: ``[b, h, w, k]``, the values of their groups.
            base: ``[b, h, w, c]``, a constant that is added before the activation; None for 0.
        """
        ...

    def loss(
        self,
        step: Step,
        weights: Weights,
        index: Tensor,
        z: Tensor,
        target: Tensor | Cells,
        learn: Tensor,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return a scalar, `functional.prediction_loss` or `cross_entropy_loss` of the prediction and the new input.

        ``base`` is that of `decode`, ``learn`` says which samples count.
        """
        ...
