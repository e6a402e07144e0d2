"""Recurrent Sparse Memory in plain NumPy: float64, one sample and one location at a time, slow on purpose.

Written from lines 1 to 10 of docs/science/algorithm.md and from the layouts that the package documents; shares no code
with it.
`settings` is any object with the attributes of `LayerConfig`, `weights` maps the names of a layer's parameters to
arrays. Maps are ``[h, w, features]``; cell j of group i has the index ``j * groups + i``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]


# Geometry


def locations(size: int, stride: int) -> int:
    """How many windows start along one side, one for each started stride."""
    return math.ceil(size / stride)


def zeros_before(size: int, kernel: int, stride: int) -> int:
    """SAME padding: the windows cover the side, and the smaller half of the zeros that they need stands before it."""
    needed = max((locations(size, stride) - 1) * stride + kernel - size, 0)
    return needed // 2


def window(x: Floats, top: int, left: int, kernel: int) -> Floats:
    """The values ``[kernel, kernel, c]`` from row ``top`` and column ``left`` on, zeros outside of the map."""
    out = np.zeros((kernel, kernel, x.shape[2]))
    for i in range(kernel):
        for j in range(kernel):
            if 0 <= top + i < x.shape[0] and 0 <= left + j < x.shape[1]:
                out[i, j] = x[top + i, left + j]
    return out


def encode(x: Floats, weight: Floats, kernel: int, stride: int) -> Floats:
    """W_A * x, a strided convolution."""
    h, w, _ = x.shape
    out = np.zeros((locations(h, stride), locations(w, stride), weight.shape[1]))
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            top, left = p * stride - zeros_before(h, kernel, stride), q * stride - zeros_before(w, kernel, stride)
            out[p, q] = window(x, top, left, kernel).ravel() @ weight
    return out


def recur(s: Floats, weight: Floats, kernel: int) -> Floats:
    """W_B s, from the cells of the square neighbourhood of each location."""
    out = np.zeros((*s.shape[:2], weight.shape[1]))
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            out[p, q] = window(s, p - kernel // 2, q - kernel // 2, kernel).ravel() @ weight
    return out


def decode(z: Floats, weight: Floats, grid: Grid, kernel: int, stride: int) -> Floats:
    """W_D z, a transposed convolution: every location adds to the window that it would read."""
    h, w = grid
    channels = weight.shape[1] // kernel**2
    out = np.zeros((h, w, channels))
    for p in range(z.shape[0]):
        for q in range(z.shape[1]):
            patch = (z[p, q] @ weight).reshape(kernel, kernel, channels)
            top, left = p * stride - zeros_before(h, kernel, stride), q * stride - zeros_before(w, kernel, stride)
            for i in range(kernel):
                for j in range(kernel):
                    if 0 <= top + i < h and 0 <= left + j < w:
                        out[top + i, left + j] += patch[i, j]
    return out


def resize(x: Floats, grid: Grid) -> Floats:
    """Bilinear between the centres of locations, constant beyond the outermost centres."""
    out = np.zeros((*grid, x.shape[2]))
    for p in range(grid[0]):
        for q in range(grid[1]):
            for i in range(x.shape[0]):
                for j in range(x.shape[1]):
                    share = hat(p, i, grid[0], x.shape[0]) * hat(q, j, grid[1], x.shape[1])
                    out[p, q] += share * x[i, j]
    return out


def hat(position: int, source: int, size: int, sources: int) -> float:
    """The weight of one source position in one resized position, along one side."""
    centre = min(max((position + 0.5) * sources / size - 0.5, 0.0), sources - 1.0)
    return max(0.0, 1.0 - abs(centre - source))


def max_pool(y: Floats, pool: int) -> Floats:
    """The largest of each window; windows at the far edges may be smaller."""
    out = np.zeros((math.ceil(y.shape[0] / pool), math.ceil(y.shape[1] / pool), y.shape[2]))
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            out[p, q] = y[p * pool : (p + 1) * pool, q * pool : (q + 1) * pool].max((0, 1))
    return out


# The layer


@dataclass(frozen=True)
class Memory:
    """What a layer knows of the past: inputs, the last first, and their trace, cells, recurrent trace, inhibition."""

    x: Floats
    earlier: tuple[Floats, ...]
    x_trace: Floats
    y: Floats
    s: Floats
    phi: Floats


@dataclass(frozen=True)
class Predicted:
    """What a layer says: winners ``[h, w, k]`` best first, all cells, the predicted input.

    ``gap`` is the smallest difference of ranks that decided anything: with less than the rounding error of another
    implementation, that one may rightly choose other winners.
    """

    winners: Ints
    y: Floats
    x_hat: Floats
    gap: float


def fresh(settings: Any, grid: Grid, channels: int) -> Memory:
    """A layer that has seen nothing."""
    x = np.zeros((*grid, channels))
    cells = settings.groups * settings.cells_per_group
    y = np.zeros((locations(grid[0], settings.stride), locations(grid[1], settings.stride), cells))
    return Memory(x, (x,) * (settings.input_frames - 1), x, y, y, y)


def normalise(s: Floats, over: str) -> Floats:
    """Line 2."""
    total: Floats = np.ones(1)
    if over == "sample":
        total = s.sum(keepdims=True) + 1e-11
    if over == "location":
        total = np.abs(s).sum(2, keepdims=True) + 1e-11
    return s / total


def drive(settings: Any, weights: Mapping[str, Floats], memory: Memory, above: Floats | None) -> Floats:
    """Line 4."""
    trace = () if settings.input_decay is None else (memory.x_trace,)
    x = np.concatenate((memory.x, *memory.earlier, *trace), 2)
    if settings.input_threshold > 0:
        x = np.where(x < settings.input_threshold, 0, x)
    feedforward = encode(x, weights["feedforward"], settings.kernel_size, settings.stride)
    s = normalise(memory.s, settings.normalisation)
    recurrent = recur(s, weights["recurrent"], settings.recurrent_kernel_size)
    a = np.zeros_like(recurrent)
    for i in range(settings.groups):
        for j in range(settings.cells_per_group):
            cell = j * settings.groups + i
            a[:, :, cell] = feedforward[:, :, i] + recurrent[:, :, cell] + weights["bias"][cell]
    return a if above is None else a + resize(above, a.shape[:2]) @ weights["feedback"]


def rank(settings: Any, weights: Mapping[str, Floats], a: Floats, phi: Floats) -> Floats:
    """Line 5, the published variant, the boosted one or none."""
    r = a
    if settings.boost > 0:
        r = a * np.exp(settings.boost * (settings.active_groups / a.shape[2] - weights["duty"]))
    if settings.inhibition_decay is not None:
        r = (a - a.min() + 1) * (1 - phi)
    return r


def choose(r: Floats, groups: int, k: int) -> tuple[list[int], float]:
    """Line 6 at one location: the winners, best first, and the gap to what nearly won."""
    cells_per_group = len(r) // groups
    by_group = []
    gaps = []
    for i in range(groups):
        cells = sorted((j * groups + i for j in range(cells_per_group)), key=lambda cell: (-r[cell], cell))
        by_group.append(cells)
    order = sorted(range(groups), key=lambda i: (-r[by_group[i][0]], i))
    for i, after in zip(order[:k], order[1 : k + 1], strict=False):
        gaps.append(r[by_group[i][0]] - r[by_group[after][0]])
    for i in order[:k]:
        if cells_per_group > 1:
            gaps.append(r[by_group[i][0]] - r[by_group[i][1]])
    # Equal ranks are decided by the index, in every precision: a cell that is fully inhibited has rank 0.
    return [by_group[i][0] for i in order[:k]], min((gap for gap in gaps if gap > 0), default=math.inf)


def predict(
    settings: Any,
    weights: Mapping[str, Floats],
    memory: Memory,
    above: Floats | None = None,
    winners: Ints | None = None,
) -> Predicted:
    """Lines 2 to 9; given ``winners`` stand for those of line 6."""
    a = drive(settings, weights, memory, above)
    gap = math.inf
    if winners is None:
        r = rank(settings, weights, a, memory.phi)
        winners = np.zeros((*a.shape[:2], settings.active_groups), np.int64)
        for p in range(a.shape[0]):
            for q in range(a.shape[1]):
                winners[p, q], decided_by = choose(r[p, q], settings.groups, settings.active_groups)
                gap = min(gap, decided_by)
    y = np.zeros_like(a)
    z = np.zeros((*a.shape[:2], settings.groups))
    for p in range(a.shape[0]):
        for q in range(a.shape[1]):
            for cell in winners[p, q]:
                y[p, q, cell] = math.tanh(a[p, q, cell])
            for i in range(settings.groups):
                z[p, q, i] = max(y[p, q, j * settings.groups + i] for j in range(settings.cells_per_group))
    grid = memory.x.shape[:2]
    if settings.decoder == "fully_connected":
        x_hat = (z.ravel() @ weights["decoder"]).reshape(memory.x.shape)
    else:
        kernel = settings.decoder_kernel_size or settings.kernel_size
        x_hat = decode(z, weights["decoder"], grid, kernel, settings.stride)
    x_hat = x_hat + weights["output_bias"]
    if settings.changes == "last":
        last = memory.x[..., : x_hat.shape[-1]]
        sure = np.clip(last, 0.01, 0.99)
        x_hat = x_hat + (np.log(sure / (1 - sure)) if settings.activation == "sigmoid" else last)
    return Predicted(winners, y, 1 / (1 + np.exp(-x_hat)) if settings.activation == "sigmoid" else x_hat, gap)


def loss(settings: Any, x_hat: Floats, x: Floats) -> float:
    """Line 10, without the ``margin`` rows and columns along each edge."""
    m, (h, w, _) = settings.margin, x.shape
    x_hat, x = x_hat[m : h - m, m : w - m], x[m : h - m, m : w - m]
    if settings.loss == "cross_entropy":
        return float(-(x * np.log(x_hat) + (1 - x) * np.log(1 - x_hat)).mean())
    return float(((x_hat - x) ** 2).mean())


def observe(settings: Any, memory: Memory, predicted: Predicted, x: Floats) -> Memory:
    """Lines 1 and 8, the last inputs and their trace."""
    won = np.zeros_like(memory.phi)
    for p in range(won.shape[0]):
        for q in range(won.shape[1]):
            won[p, q, predicted.winners[p, q]] = 1
    eps, gamma = settings.recurrent_decay, settings.inhibition_decay
    return Memory(
        x=x,
        earlier=(memory.x, *memory.earlier)[: settings.input_frames - 1],
        x_trace=np.maximum((settings.input_decay or 0) * memory.x_trace, x),
        y=predicted.y,
        s=predicted.y if eps == 0 else np.maximum(eps * memory.s, predicted.y),
        phi=memory.phi if gamma is None else np.maximum(won, gamma * memory.phi),
    )


# The stack


def fresh_stack(layers: Sequence[Any], grid: Grid, channels: int) -> list[Memory]:
    """A stack that has seen nothing; layer l + 1 reads the pooled cells of layer l."""
    memories: list[Memory] = []
    for settings in layers:
        memories.append(fresh(settings, grid, channels))
        y = max_pool(memories[-1].y, settings.pool)
        grid, channels = y.shape[:2], y.shape[2]
    return memories


def predict_stack(
    layers: Sequence[Any],
    weights: Sequence[Mapping[str, Floats]],
    memories: Sequence[Memory],
    fresh_feedback: bool = False,
) -> list[Predicted]:
    """Each layer predicts its next input; it hears the last cells of the layer above, or those of this very step."""
    predicted: list[Predicted] = []
    above = None
    for level in reversed(range(len(layers))):
        predicted.insert(0, predict(layers[level], weights[level], memories[level], above))
        above = predicted[0].y if fresh_feedback else memories[level].y
    return predicted


def inputs(layers: Sequence[Any], predicted: Sequence[Predicted], frame: Floats) -> list[Floats]:
    """What each layer reads, and should have predicted, at this step."""
    below = zip(layers, predicted, strict=True)
    return [frame, *(max_pool(p.y, settings.pool) for settings, p in below)][: len(layers)]


def observe_stack(
    layers: Sequence[Any], memories: Sequence[Memory], predicted: Sequence[Predicted], frame: Floats
) -> list[Memory]:
    """The memories after a frame."""
    read = inputs(layers, predicted, frame)
    return [observe(*arguments) for arguments in zip(layers, memories, predicted, read, strict=True)]
