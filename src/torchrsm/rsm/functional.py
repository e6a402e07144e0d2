"""The ten lines of the RSM layer as pure functions of tensors: the definition that every engine is tested against.

Everything is a map with its features last: ``[b, h, w, ...]`` with batch, rows and columns of the map in question, and
``c`` channels, ``g`` groups, ``n`` cells or ``k`` winners of a location. Cell ``j`` of group ``i`` has the index
``j * groups + i``, so ``y.unflatten(-1, (-1, groups))`` gives every group a column of its own. Line numbers refer to
docs/science/algorithm.md.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Normalisation = Literal["sample", "location", "none"]
Activation = Literal["sigmoid", "identity", "softmax"]
Loss = Literal["squared", "cross_entropy"]

EPSILON = 1e-11
"""Added to a divisor that may be 0; a type that cannot hold it adds its own least number."""


class Cells(NamedTuple):
    """A sparse map of cells: the k winners of each location, which are the output and the memory of a layer.

    Attributes:
        index: ``[b, h, w, k]`` int32, the cell; -1 for none.
        value: ``[b, h, w, k]`` float32, its value; 0 where there is none.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    value: Tensor


class Grid(NamedTuple):
    """Rows and columns of a map."""

    height: int
    width: int


def empty_cells(batch: int, grid: Grid, winners: int, like: Tensor | None = None) -> Cells:
    """Return cells that never fired, every index -1, every value 0; of the type and on the device of ``like``."""
    like = torch.empty(0) if like is None else like
    shape = (batch, *grid, winners)
    return Cells(like.new_full(shape, -1, dtype=torch.int32), like.new_zeros(shape))


def to_dense(cells: Cells, count: int) -> Tensor:
    """Write sparse cells as a dense map ``[b, h, w, count]``, 0 where no cell is named."""
    index = cells.index.long()
    # The last column takes the entries that name no cell.
    dense = cells.value.new_zeros(*index.shape[:-1], count + 1)
    return dense.scatter(-1, torch.where(index < 0, count, index), cells.value)[..., :count]


# Geometry: a strided convolution with zeros around ("SAME"), and its adjoint.


def strided_grid(grid: Grid, stride: int) -> Grid:
    """Return the grid of a convolution with this stride: one location for each started stride."""
    return Grid(-(-grid.height // stride), -(-grid.width // stride))


def padding_before(size: int, kernel_size: int, stride: int) -> int:
    """Return how many zeros stand before the first row, half (rounded down) of all that the convolution needs."""
    return _padding(size, kernel_size, stride)[0]


def _padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    reach = (-(-size // stride) - 1) * stride + kernel_size  # from the first row of the first window to the last's end
    before = max(reach - size, 0) // 2
    return before, reach - size - before  # rows behind the last window are cut off: a negative number


def encode(x: Tensor, weight: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Apply the feed-forward weights, a strided convolution: ``W_A * x`` of line 4.

    Args:
        x: ``[b, h, w, c]``.
        weight: ``[kernel_size * kernel_size * c, g]``, rows ordered row, column, channel.

    Returns:
        ``[b, h, w, g]``.
    """
    _, h, w, c = x.shape
    top, bottom = _padding(h, kernel_size, stride)
    left, right = _padding(w, kernel_size, stride)
    kernel = weight.view(kernel_size, kernel_size, c, -1).permute(3, 2, 0, 1).contiguous()
    padded = F.pad(_channels_first(x), (left, right, top, bottom))
    return _channels_last(F.conv2d(padded, kernel, stride=stride))


def max_pool(y: Tensor, pool: int) -> Tensor:
    """Pool cells ``[b, h, w, n]`` to ``[b, h / pool, w / pool, n]`` (rounded up), the largest of each window."""
    return _channels_last(F.max_pool2d(_channels_first(y), pool, ceil_mode=True))


def resize(x: Tensor, target: Grid) -> Tensor:
    """Resize a map ``[b, h, w, n]`` to another grid, bilinear between the centres of locations."""
    return _channels_last(F.interpolate(_channels_first(x), tuple(target), mode="bilinear", align_corners=False))


def neighbours(s: Tensor, kernel_size: int) -> Tensor:
    """Collect the cells of the square neighbourhood of each location, zeros outside of the grid.

    Returns:
        ``[b, h, w, kernel_size ** 2 * n]``, the neighbours in row-major order.
    """
    if kernel_size == 1:
        return s
    b, h, w, n = s.shape
    patches = F.unfold(_channels_first(s), kernel_size, padding=kernel_size // 2)
    return patches.view(b, n, kernel_size**2, h, w).permute(0, 3, 4, 2, 1).flatten(3)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


# Lines 1 to 3: what a layer remembers of its own last cells. These three work on dense cells and on lists of winners.


def update_trace(trace: Tensor, y: Tensor, decay: float) -> Tensor:
    """Let the recurrent memory fade and take up the last cells, ``max(decay * trace, y)`` (line 1)."""
    return torch.maximum(decay * trace, y)


def normalise(s: Tensor, over: Normalisation) -> Tensor:
    """Scale the recurrent memory ``[b, h, w, ...]`` (line 2).

    ``sample`` divides by the sum over the whole sample, as published: the more locations, the smaller each value.
    ``location`` divides by the sum of absolute values of each location, which does not depend on the frame's size.
    """
    epsilon = max(EPSILON, torch.finfo(s.dtype).tiny)
    if over == "sample":
        return s / (s.sum((1, 2, 3), keepdim=True) + epsilon)
    if over == "location":
        return s / (s.abs().sum(-1, keepdim=True) + epsilon)
    return s


# Lines 4 to 8: drive, rank, winners, cells, inhibition.


def drive(feedforward: Tensor, recurrent: Tensor, feedback: Tensor | None, bias: Tensor) -> Tensor:
    """Add what reaches each cell (line 4).

    Args:
        feedforward: ``[b, h, w, g]``, shared by all the cells of a group.
        recurrent: ``[b, h, w, n]``, already multiplied by its weights; ``feedback`` likewise, on this layer's grid.
        bias: ``[n]``.
    """
    cells_per_group = recurrent.shape[-1] // feedforward.shape[-1]
    total = feedforward.repeat(1, 1, 1, cells_per_group) + recurrent + bias
    return total if feedback is None else total + feedback


def rank(a: Tensor, inhibition: Tensor | None) -> Tensor:
    """Order the cells of a sample, ``(a - min(a) + 1) * (1 - inhibition)`` (line 5).

    Args:
        a: drive ``[b, h, w, n]``; the minimum is over the whole sample.
        inhibition: ``[b, h, w, n]`` in 0..1, or None for the plain drive.
    """
    if inhibition is None:
        return a
    return (a - a.amin((1, 2, 3), keepdim=True) + 1) * (1 - inhibition)


def rank_refractory(a: Tensor, last: Tensor) -> Tensor:
    """Order the cells where the last winners ``last [b, h, w, n]`` bool cannot win (line 5 with inhibition 0 or 1).

    The order is that of `rank`, whose offset does not matter here; leaving it out keeps all the digits of the drive.
    """
    return a.masked_fill(last, torch.finfo(a.dtype).min)


def boost_factor(duty: Tensor, strength: float, winners: int) -> Tensor:
    """Return ``exp(strength * (k / n - duty))``, by which rarely used cells are lifted (line 5, boosted variant).

    Args:
        duty: ``[n]`` running frequency of each cell.
    """
    return torch.exp(strength * (winners / duty.numel() - duty))


def select_winners(r: Tensor, groups: int, winners: int) -> Tensor:
    """Choose the best cell of each of the best groups of a location (line 6); ties go to the lowest index.

    Args:
        r: rank ``[b, h, w, n]``.

    Returns:
        Cell index ``[b, h, w, winners]`` int32, best first. Carries no gradient.
    """
    best, cell = r.detach().unflatten(-1, (-1, groups)).max(-2)
    group = best.sort(dim=-1, descending=True, stable=True).indices[..., :winners]
    index: Tensor = cell.gather(-1, group) * groups + group
    return index.to(torch.int32)


class Chance(NamedTuple):
    """How winners are drawn in place of chosen.

    Attributes:
        temperature: above 0; of the Gumbel noise on the ranks. The higher, the more cells have a chance.
        generator: of the random numbers, on the device of the layer; None for torch's own.
    """

    temperature: float
    generator: torch.Generator | None = None


def rank_by_chance(r: Tensor, chance: Chance) -> Tensor:
    """Add Gumbel noise to ranks ``[b, h, w, n]``, times the temperature.

    The largest are then drawn one after another without replacement, each cell in proportion to
    ``exp(rank / temperature)`` among those that are left (Wouter Kool, Herke van Hoof, Max Welling, ICML 2019).
    """
    waiting = torch.empty_like(r).exponential_(generator=chance.generator)  # less its logarithm is Gumbel noise
    return r - chance.temperature * waiting.log()


def update_inhibition(inhibition: Tensor, winners: Tensor, decay: float) -> Tensor:
    """Refresh the refractory signal, ``max(winners, decay * inhibition)`` (line 8).

    A winner is fully inhibited (1) at the next step, the others recover by ``decay`` (gamma) a step. With ``decay = 0``
    only the last winners are inhibited, for exactly one step: 0 is not "off".
    """
    return torch.maximum(winners.to(inhibition.dtype), decay * inhibition)


# Lines 9 and 10: decode, loss.


def group_values(y: Tensor, cells_per_group: int) -> Tensor:
    """Return the value of each winner's group, ``z[i] = max_j y[i, j]`` (line 9).

    All cells of a group but its winner are 0, so the largest is the winner's value, or 0 where that is negative and the
    group has other cells.

    Args:
        y: values of the winners, ``[b, h, w, k]``.
        cells_per_group: cells of a group.
    """
    return y if cells_per_group == 1 else torch.relu(y)


def decode_convolutional(z: Tensor, weight: Tensor, target: Grid, kernel_size: int, stride: int) -> Tensor:
    """Spread the groups over the input, a transposed convolution: ``W_D z`` of line 9.

    Args:
        z: ``[b, h, w, g]``.
        weight: ``[g, kernel_size * kernel_size * c]``, columns ordered row, column, channel.

    Returns:
        ``[b, h, w, c]`` on the grid ``target``.
    """
    kernel = weight.view(weight.shape[0], kernel_size, kernel_size, -1).permute(0, 3, 1, 2)
    full = F.conv_transpose2d(_channels_first(z), kernel, stride=stride)
    top, left = (padding_before(size, kernel_size, stride) for size in target)
    bottom, right = top + target.height, left + target.width
    full = F.pad(full, (0, max(0, right - full.shape[3]), 0, max(0, bottom - full.shape[2])))
    return _channels_last(full[:, :, top:bottom, left:right])


def decode_fully_connected(z: Tensor, weight: Tensor, target: Grid) -> Tensor:
    """Predict each input element from all groups of all locations; weight ``[locations * g, h * w * c]`` (line 9)."""
    flat: Tensor = z.flatten(1) @ weight
    return flat.view(z.shape[0], *target, -1)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the output function of line 9; a softmax is over the channels of each element."""
    if activation == "softmax":
        return torch.softmax(x, -1)
    return torch.sigmoid(x) if activation == "sigmoid" else x


def safe_logit(x: Tensor, sure: float = 1e-3) -> Tensor:
    """Return the logit of values in 0..1, finite at 0 and at 1, from which it keeps the distance ``sure``."""
    return torch.logit(x.clamp(sure, 1 - sure))


def prediction_loss(prediction: Tensor, target: Tensor, learn: Tensor, margin: int) -> Tensor:
    """Return the mean squared error of the samples that are learned from (line 10).

    Args:
        prediction: ``[b, h, w, c]``.
        target: the same shape.
        learn: ``[b]`` bool, false where a sequence begins.
        margin: rows and columns along each edge that are not part of the loss.

    Returns:
        A scalar, the mean over learned samples and over the elements inside of the margin; 0 if none is learned.
    """
    return _mean_of_learned((prediction - target).square(), learn, margin)


def cross_entropy_loss(x: Tensor, target: Tensor, learn: Tensor, margin: int) -> Tensor:
    """Return the mean binary cross-entropy of ``sigmoid(x)`` where `prediction_loss` has the squared error (line 10).

    It is least at the same prediction, the mean of what comes, but its gradient does not vanish where the prediction is
    almost 0 or 1 and wrong.

    Args:
        x: ``[b, h, w, c]``, before the sigmoid.
        target: the same shape, in 0..1.
        learn, margin: as in `prediction_loss`.
    """
    return _mean_of_learned(F.softplus(x) - x * target, learn, margin)


def categorical_loss(x: Tensor, target: Tensor, learn: Tensor, margin: int) -> Tensor:
    """Return the mean cross-entropy of ``softmax(x)`` over the channels, one for each element of the map (line 10).

    Args:
        x: ``[b, h, w, c]``, before the softmax.
        target: the same shape, how likely each channel is: in 0..1, of sum 1.
        learn, margin: as in `prediction_loss`.
    """
    error = x.logsumexp(-1, keepdim=True) * target.sum(-1, keepdim=True) - (x * target).sum(-1, keepdim=True)
    return _mean_of_learned(error, learn, margin)


def _mean_of_learned(error: Tensor, learn: Tensor, margin: int) -> Tensor:
    if margin:
        error = error[:, margin:-margin, margin:-margin]
    samples = error.flatten(1).mean(1)
    return torch.where(learn, samples, 0.0).sum() / learn.sum().clamp(min=1)
