"""The layer's step fused for the CPU, sparse forward and backward: no ``[locations, cells]`` tensor is ever written.

One location is one short piece of work: add the few weight rows that its active inputs name, rank, choose, keep k
values. A thread takes a contiguous part of the batch and sums its gradients in a buffer of its own; the buffers are
added in a fixed order, so a run repeats bit by bit. Rows of weights are contiguous (`torchrsm.kernels.step.Weights`),
which lets the compiler use vector instructions for all inner loops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.functional import Cells, Grid, padding_before
from torchrsm.kernels.step import Context, Step, Weights

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Contraction and reordering of sums only: NaN and infinity keep their meaning, the training checks rely on them.
# Without Numba's runtime (_nrt) views cost nothing: it would count references to each, and threads that count
# references to the same array spend more time on the counter than on the work. So compiled code allocates nothing.
_jit = njit(cache=True, nogil=True, _nrt=False, fastmath={"contract", "reassoc", "nsz"})  # type: ignore[call-overload]

_LOWEST = np.float32(np.finfo(np.float32).min)


class _Sizes(NamedTuple):
    """`Step` and the shapes of one call as plain integers, which is what compiled code reads."""

    groups: int
    cells_per_group: int
    active_groups: int
    kernel_size: int
    stride: int
    recurrent_kernel_size: int
    decoder_kernel_size: int
    input_height: int
    input_width: int
    channels: int  # of the map that is predicted
    channels_in: int  # of the map that is read: with its trace, where there is one
    input_pool: int
    source_height: int
    source_width: int
    height: int
    width: int
    margin: int
    sigmoid: bool
    sparse_input: bool
    top: int
    left: int
    decoder_top: int
    decoder_left: int
    above_width: int  # columns of the grid above; 0 where there is no feedback


class _Scratch(NamedTuple):
    """Working memory of one thread."""

    rows: Ints
    values: Floats
    pooled_index: Ints
    pooled_value: Floats
    pooled_count: Ints
    drive: Floats
    rank: Floats
    shared: Floats
    best: Floats
    best_value: Floats
    best_group: Ints
    held: Floats
    above: Floats
    above_row: Floats
    patch: Floats
    decoder_patch: Floats
    work: Floats
    target: Floats


# Compiled pieces


@_jit
def _add_rows(out: Floats, weight: Floats, rows: Ints, values: Floats, count: int) -> None:
    """``out += sum(values[i] * weight[rows[i]])`` over the first ``count`` rows, eight at a time."""
    n = out.shape[0]
    i = 0
    while i + 8 <= count:
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        v4, v5, v6, v7 = values[i + 4], values[i + 5], values[i + 6], values[i + 7]
        w0, w1, w2, w3 = weight[rows[i]], weight[rows[i + 1]], weight[rows[i + 2]], weight[rows[i + 3]]
        w4, w5, w6, w7 = weight[rows[i + 4]], weight[rows[i + 5]], weight[rows[i + 6]], weight[rows[i + 7]]
        for c in range(n):
            out[c] += (v0 * w0[c] + v1 * w1[c] + v2 * w2[c] + v3 * w3[c]) + (
                v4 * w4[c] + v5 * w5[c] + v6 * w6[c] + v7 * w7[c]
            )
        i += 8
    if i + 4 <= count:
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        w0, w1, w2, w3 = weight[rows[i]], weight[rows[i + 1]], weight[rows[i + 2]], weight[rows[i + 3]]
        for c in range(n):
            out[c] += v0 * w0[c] + v1 * w1[c] + v2 * w2[c] + v3 * w3[c]
        i += 4
    while i < count:
        v0 = values[i]
        w0 = weight[rows[i]]
        for c in range(n):
            out[c] += v0 * w0[c]
        i += 1


@_jit
def _pool(s: _Sizes, index: Ints, value: Floats, scratch: _Scratch) -> None:
    """Pool the cells of one sample: the largest value of each cell in each window, as lists of the cells named there.

    A cell that is missing at one location of the window counts 0 there, so a negative value survives only where the
    cell won at all of them.
    """
    out_index, out_value = scratch.pooled_index, scratch.pooled_value
    k, width = index.shape[1], s.source_width
    for q in range(s.input_height * s.input_width):
        y0, x0 = (q // s.input_width) * s.input_pool, (q % s.input_width) * s.input_pool
        y1, x1 = min(y0 + s.input_pool, s.source_height), min(x0 + s.input_pool, width)
        count = 0
        for y in range(y0, y1):
            for x in range(x0, x1):
                p = y * width + x
                for e in range(k):
                    if index[p, e] < 0:
                        continue
                    found = -1
                    for f in range(count):
                        if out_index[q, f] == index[p, e]:
                            found = f
                            break
                    if found < 0:
                        out_index[q, count] = index[p, e]
                        out_value[q, count] = value[p, e]
                        count += 1
                    elif value[p, e] > out_value[q, found]:
                        out_value[q, found] = value[p, e]
        if (y1 - y0) * (x1 - x0) > 1:
            for f in range(count):
                if out_value[q, f] < 0:
                    wins = 0
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            for e in range(k):
                                wins += index[y * width + x, e] == out_index[q, f]
                    if wins < (y1 - y0) * (x1 - x0):
                        out_value[q, f] = 0.0
        scratch.pooled_count[q] = count


@_jit
def _active_inputs(s: _Sizes, location: int, image: Floats, scratch: _Scratch) -> int:
    """List the feed-forward rows that the non-zero inputs of a location name, and their values; return how many."""
    rows, values = scratch.rows, scratch.values
    y0 = (location // s.width) * s.stride - s.top
    x0 = (location % s.width) * s.stride - s.left
    count = 0
    for dy in range(max(0, -y0), min(s.kernel_size, s.input_height - y0)):
        for dx in range(max(0, -x0), min(s.kernel_size, s.input_width - x0)):
            tap = (dy * s.kernel_size + dx) * s.channels_in
            if s.sparse_input:
                q = (y0 + dy) * s.input_width + x0 + dx
                for e in range(scratch.pooled_count[q]):
                    rows[count] = tap + scratch.pooled_index[q, e]
                    values[count] = scratch.pooled_value[q, e]
                    count += 1
            else:
                for c in range(s.channels_in):
                    v = image[y0 + dy, x0 + dx, c]
                    if v != 0.0:
                        rows[count] = tap + c
                        values[count] = v
                        count += 1
    return count


@_jit
def _active_neighbours(s: _Sizes, cells: int, location: int, index: Ints, value: Floats, scratch: _Scratch) -> int:
    """List the recurrent rows that the last cells around a location name, and their values; return how many."""
    rows, values = scratch.rows, scratch.values
    r = s.recurrent_kernel_size
    y0 = location // s.width - r // 2
    x0 = location % s.width - r // 2
    count = 0
    for dy in range(max(0, -y0), min(r, s.height - y0)):
        for dx in range(max(0, -x0), min(r, s.width - x0)):
            p = (y0 + dy) * s.width + x0 + dx
            base = (dy * r + dx) * cells
            for e in range(index.shape[1]):
                v = value[p, e]
                if v != 0.0 and index[p, e] >= 0:
                    rows[count] = base + index[p, e]
                    values[count] = v
                    count += 1
    return count


@_jit
def _choose(s: _Sizes, rank: Floats, scratch: _Scratch, index: Ints) -> None:
    """Write the best cell of each of the best groups to ``index``, best first; ties go to the lowest index."""
    groups, cells_per_group, k = s.groups, s.cells_per_group, s.active_groups
    value, group = scratch.best_value, scratch.best_group
    best = rank if cells_per_group == 1 else scratch.best
    if cells_per_group > 1:
        for g in range(groups):
            best[g] = rank[g]
        for j in range(1, cells_per_group):
            part = rank[j * groups : (j + 1) * groups]
            for g in range(groups):
                best[g] = max(best[g], part[g])
    filled = 0
    for g in range(groups):
        v = best[g]
        if filled == k and not v > value[k - 1]:
            continue
        if filled < k:
            filled += 1
        at = filled - 1
        while at > 0 and v > value[at - 1]:
            value[at] = value[at - 1]
            group[at] = group[at - 1]
            at -= 1
        value[at] = v
        group[at] = g
    for q in range(k):
        j = 0
        while j < cells_per_group - 1 and rank[j * groups + group[q]] != value[q]:
            j += 1
        index[q] = j * groups + group[q]


@_jit
def _feedback_map(above_index: Ints, above_value: Floats, weight: Floats, scratch: _Scratch) -> None:
    """Multiply the cells above by their weights, at their own small grid: ``above [locations above, cells]``."""
    rows, values, out = scratch.rows, scratch.values, scratch.above
    for p in range(out.shape[0]):
        count = 0
        for e in range(above_index.shape[1]):
            if above_index[p, e] >= 0 and above_value[p, e] != 0.0:
                rows[count] = above_index[p, e]
                values[count] = above_value[p, e]
                count += 1
        out[p, :] = 0.0
        _add_rows(out[p], weight, rows, values, count)


@_jit
def _select(
    n0: int,
    n1: int,
    s: _Sizes,
    image: Floats,
    in_index: Ints,
    in_value: Floats,
    memory_index: Ints,
    memory_value: Floats,
    above_index: Ints,
    above_value: Floats,
    above_rows: Ints,
    above_row_weight: Floats,
    above_columns: Ints,
    above_column_weight: Floats,
    refractory: Ints,
    inhibition: Floats,
    boost: Floats,
    feedforward: Floats,
    recurrent: Floats,
    feedback: Floats,
    bias: Floats,
    index: Ints,
    drive: Floats,
    scratch: _Scratch,
) -> None:
    """Lines 4 to 6 for the samples n0..n1: write winners and their drive. An array of length 0 stands for none."""
    cells = s.groups * s.cells_per_group
    k = s.active_groups
    a, rank, shared = scratch.drive, scratch.rank, scratch.shared
    held, above, above_row = scratch.held, scratch.above, scratch.above_row
    has_feedback = above_index.shape[0] > 0
    has_inhibition = inhibition.shape[0] > 0
    has_refractory = refractory.shape[0] > 0
    has_boost = boost.shape[0] > 0
    for n in range(n0, n1):
        if s.sparse_input:
            _pool(s, in_index[n], in_value[n], scratch)
        if has_feedback:
            _feedback_map(above_index[n], above_value[n], feedback, scratch)
        lowest = np.float32(np.inf)
        # The published inhibition ranks against the least drive of the sample: find it first, then choose.
        for final in range(0 if has_inhibition else 1, 2):
            for p in range(s.height * s.width):
                y, x = p // s.width, p % s.width
                if has_feedback and x == 0:
                    w = above_row_weight[y]
                    for q in range(s.above_width):
                        first = above[above_rows[y, 0] * s.above_width + q]
                        second = above[above_rows[y, 1] * s.above_width + q]
                        mixed = above_row[q]
                        for c in range(cells):
                            mixed[c] = (1 - w) * first[c] + w * second[c]
                count = _active_inputs(s, p, image[0 if s.sparse_input else n], scratch)
                if s.cells_per_group == 1:
                    for c in range(cells):
                        a[c] = bias[c]
                    _add_rows(a, feedforward, scratch.rows, scratch.values, count)
                else:
                    shared[:] = 0.0
                    _add_rows(shared, feedforward, scratch.rows, scratch.values, count)
                    for j in range(s.cells_per_group):
                        part = a[j * s.groups : (j + 1) * s.groups]
                        part_bias = bias[j * s.groups : (j + 1) * s.groups]
                        for g in range(s.groups):
                            part[g] = part_bias[g] + shared[g]
                count = _active_neighbours(s, cells, p, memory_index[n], memory_value[n], scratch)
                _add_rows(a, recurrent, scratch.rows, scratch.values, count)
                if has_feedback:
                    w = above_column_weight[x]
                    first = above_row[above_columns[x, 0]]
                    second = above_row[above_columns[x, 1]]
                    for c in range(cells):
                        a[c] += (1 - w) * first[c] + w * second[c]
                if final == 0:
                    for c in range(cells):
                        lowest = min(lowest, a[c])
                    continue
                if has_inhibition:
                    phi = inhibition[n, p]
                    for c in range(cells):
                        rank[c] = (a[c] - lowest + 1) * (1 - phi[c])
                elif has_boost:
                    for c in range(cells):
                        rank[c] = a[c]
                if has_boost:
                    for c in range(cells):
                        rank[c] *= boost[c]
                if has_refractory:
                    for e in range(k):
                        if refractory[n, p, e] >= 0:
                            held[e] = a[refractory[n, p, e]]
                            a[refractory[n, p, e]] = _LOWEST
                scores = rank if has_inhibition or has_boost else a
                _choose(s, scores, scratch, index[n, p])
                if has_refractory:
                    for e in range(k):
                        if refractory[n, p, e] >= 0:
                            a[refractory[n, p, e]] = held[e]
                for e in range(k):
                    drive[n, p, e] = a[index[n, p, e]]


@_jit
def _select_gradient(
    n0: int,
    n1: int,
    s: _Sizes,
    image: Floats,
    in_index: Ints,
    in_value: Floats,
    memory_index: Ints,
    memory_value: Floats,
    above_index: Ints,
    above_value: Floats,
    above_rows: Ints,
    above_row_weight: Floats,
    above_columns: Ints,
    above_column_weight: Floats,
    index: Ints,
    d_drive: Floats,
    d_feedforward: Floats,
    d_recurrent: Floats,
    d_feedback: Floats,
    d_bias: Floats,
    scratch: _Scratch,
) -> None:
    """Add the gradients of the weights for the samples n0..n1, from the winners alone.

    ``d_feedforward`` is ``[rows, groups]`` for sparse inputs and its transpose for maps, so that it is written in runs.
    """
    cells = s.groups * s.cells_per_group
    k = s.active_groups
    taps = s.kernel_size**2 * s.channels_in
    rows, values, patch, d_above = scratch.rows, scratch.values, scratch.patch, scratch.above
    has_feedback = above_index.shape[0] > 0
    for n in range(n0, n1):
        if s.sparse_input:
            _pool(s, in_index[n], in_value[n], scratch)
        d_above[:] = 0.0
        for p in range(s.height * s.width):
            winners = index[n, p]
            d = d_drive[n, p]
            some = False
            for e in range(k):
                some = some or d[e] != 0.0
            if not some:
                continue
            count = _active_inputs(s, p, image[0 if s.sparse_input else n], scratch)
            if s.sparse_input:
                for i in range(count):
                    row = d_feedforward[rows[i]]
                    for e in range(k):
                        row[winners[e] % s.groups] += values[i] * d[e]
            else:
                patch[:] = 0.0
                for i in range(count):
                    patch[rows[i]] = values[i]
                for e in range(k):
                    if d[e] != 0.0:
                        row = d_feedforward[winners[e] % s.groups]
                        v = d[e]
                        for t in range(taps):
                            row[t] += v * patch[t]
            count = _active_neighbours(s, cells, p, memory_index[n], memory_value[n], scratch)
            for i in range(count):
                row = d_recurrent[rows[i]]
                v = values[i]
                for e in range(k):
                    row[winners[e]] += v * d[e]
            for e in range(k):
                d_bias[winners[e]] += d[e]
            if has_feedback:
                y, x = p // s.width, p % s.width
                for i in range(2):
                    wy = above_row_weight[y] if i == 1 else 1 - above_row_weight[y]
                    for j in range(2):
                        w = wy * (above_column_weight[x] if j == 1 else 1 - above_column_weight[x])
                        row = d_above[above_rows[y, i] * s.above_width + above_columns[x, j]]
                        for e in range(k):
                            row[winners[e]] += w * d[e]
        if has_feedback:
            for p in range(d_above.shape[0]):
                source = d_above[p]
                for e in range(above_index.shape[2]):
                    v = above_value[n, p, e]
                    if above_index[n, p, e] >= 0 and v != 0.0:
                        row = d_feedback[above_index[n, p, e]]
                        for c in range(cells):
                            row[c] += v * source[c]


@_jit
def _decode_sample(s: _Sizes, index: Ints, z: Floats, decoder: Floats, scratch: _Scratch) -> None:
    """Decode the groups of one sample to the work map, which has room for windows that reach over the edge."""
    rows, values, patch, out = scratch.rows, scratch.values, scratch.decoder_patch, scratch.work
    out[:] = 0.0
    size = s.decoder_kernel_size
    run = size * s.channels
    for p in range(s.height * s.width):
        count = 0
        for e in range(s.active_groups):
            if z[p, e] != 0.0:
                rows[count] = index[p, e] % s.groups + (p * s.groups if size == 0 else 0)
                values[count] = z[p, e]
                count += 1
        if count == 0:
            continue
        if size == 0:
            _add_rows(out.reshape(-1), decoder, rows, values, count)
            continue
        patch[:] = 0.0
        _add_rows(patch, decoder, rows, values, count)
        x0 = (p % s.width) * s.stride * s.channels
        for dy in range(size):
            line = out[(p // s.width) * s.stride + dy, x0 : x0 + run]
            part = patch[dy * run : (dy + 1) * run]
            for c in range(run):
                line[c] += part[c]


@_jit
def _decode(
    n0: int, n1: int, s: _Sizes, index: Ints, z: Floats, decoder: Floats, out: Floats, scratch: _Scratch
) -> None:
    """Decode the samples n0..n1, without bias and activation, to ``out [b, h, w * c]``."""
    for n in range(n0, n1):
        _decode_sample(s, index[n], z[n], decoder, scratch)
        for y in range(s.input_height):
            line = out[n, y]
            part = scratch.work[s.decoder_top + y, s.decoder_left * s.channels :]
            for c in range(line.shape[0]):
                line[c] = part[c]


@_jit
def _loss(
    n0: int,
    n1: int,
    s: _Sizes,
    index: Ints,
    z: Floats,
    decoder: Floats,
    output_bias: Floats,
    image: Floats,
    in_index: Ints,
    in_value: Floats,
    scale: Floats,
    loss: Floats,
    d_z: Floats,
    d_decoder: Floats,
    d_output_bias: Floats,
    scratch: _Scratch,
) -> None:
    """Lines 9 and 10 and their gradient for the samples n0..n1; the decoded map stays in the cache.

    ``scale[n]`` is the weight of one squared error in the loss, 0 for a sample that is not learned from.
    """
    channels, size = s.channels, s.decoder_kernel_size
    run = size * channels
    patch, work = scratch.decoder_patch, scratch.work
    bias_height, bias_width = output_bias.shape[0], output_bias.shape[1]
    for n in range(n0, n1):
        if scale[n] == 0.0:
            continue
        _decode_sample(s, index[n], z[n], decoder, scratch)
        if s.sparse_input:
            _pool(s, in_index[n], in_value[n], scratch)
        total = np.float32(0.0)
        step = 2 * scale[n]
        for y in range(work.shape[0]):
            iy = y - s.decoder_top
            inside = s.margin <= iy < s.input_height - s.margin
            for x in range(work.shape[1] // channels):
                ix = x - s.decoder_left
                line = work[y, x * channels : (x + 1) * channels]
                if not (inside and s.margin <= ix < s.input_width - s.margin):
                    line[:] = 0.0
                    continue
                bias = output_bias[min(iy, bias_height - 1), min(ix, bias_width - 1)]
                d_bias = d_output_bias[min(iy, bias_height - 1), min(ix, bias_width - 1)]
                q = iy * s.input_width + ix
                if s.sparse_input:
                    target = scratch.target
                    for e in range(scratch.pooled_count[q]):
                        target[scratch.pooled_index[q, e]] = scratch.pooled_value[q, e]
                else:
                    target = image[n, iy, ix]
                if s.sigmoid:
                    for c in range(channels):
                        v = np.float32(1.0) / (np.float32(1.0) + math.exp(-(line[c] + bias[c])))
                        error = v - target[c]
                        total += error * error
                        line[c] = step * error * v * (np.float32(1.0) - v)
                else:
                    for c in range(channels):
                        error = line[c] + bias[c] - target[c]
                        total += error * error
                        line[c] = step * error
                for c in range(channels):
                    d_bias[c] += line[c]
                if s.sparse_input:
                    for e in range(scratch.pooled_count[q]):
                        target[scratch.pooled_index[q, e]] = 0.0
        loss[n] = total * scale[n]
        for p in range(s.height * s.width):
            if size > 0:
                x0 = (p % s.width) * s.stride * channels
                for dy in range(size):
                    line = work[(p // s.width) * s.stride + dy, x0 : x0 + run]
                    part = patch[dy * run : (dy + 1) * run]
                    for c in range(run):
                        part[c] = line[c]
            error_patch = patch if size > 0 else work.reshape(-1)
            for e in range(s.active_groups):
                row = index[n, p, e] % s.groups + (p * s.groups if size == 0 else 0)
                weight = decoder[row]
                d_weight = d_decoder[row]
                v = z[n, p, e]
                dot = np.float32(0.0)
                for c in range(error_patch.shape[0]):
                    dot += weight[c] * error_patch[c]
                    d_weight[c] += v * error_patch[c]
                d_z[n, p, e] = dot


# The engine: arrays in, arrays out, one thread for each part of the batch


class FusedEngine:
    """The sparse kernels behind the calls of `torchrsm.kernels.step.Engine`.

    Args:
        threads: parts into which a batch is cut, one thread each.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def select(self, step: Step, weights: Weights, context: Context) -> tuple[Tensor, Tensor]:
        """See `Engine.select`."""
        drive, index = _Select.apply(
            self, step, context, weights.feedforward, weights.recurrent, weights.feedback, weights.bias
        )
        return index, drive

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor) -> Tensor:
        """See `Engine.decode`. This engine's gradients come from `loss`; the decoded map itself carries none."""
        sizes = _sizes(step)
        out = torch.empty(index.shape[0], sizes.input_height, sizes.input_width * sizes.channels)
        arguments = (sizes, _locations(index), _locations(z), _array(weights.decoder), out.numpy())
        self.run(_decode, index.shape[0], lambda part: (*arguments, _scratch(sizes)))
        x = out.unflatten(2, (sizes.input_width, sizes.channels)) + weights.output_bias.detach()
        return torch.sigmoid(x) if sizes.sigmoid else x

    def loss(
        self, step: Step, weights: Weights, index: Tensor, z: Tensor, target: Tensor | Cells, learn: Tensor
    ) -> Tensor:
        """See `Engine.loss`."""
        loss: Tensor = _Loss.apply(self, step, index, target, learn, z, weights.decoder, weights.output_bias)
        return loss

    def run(self, kernel: Callable[..., None], batch: int, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        """Call ``kernel(n0, n1, *arguments(part))`` for each part of the batch, one thread each.

        The last argument of a part is working memory of its own.
        """
        parts = self.parts(batch)
        bounds = [part * batch // parts for part in range(parts + 1)]
        if parts == 1:
            kernel(0, batch, *arguments(0))
            return
        if self._pool is None or self._pool._max_workers < parts - 1:
            self._pool = ThreadPoolExecutor(parts - 1, thread_name_prefix="torchrsm")
        waiting = [
            self._pool.submit(kernel, bounds[part], bounds[part + 1], *arguments(part)) for part in range(1, parts)
        ]
        kernel(bounds[0], bounds[1], *arguments(0))
        for future in waiting:
            future.result()

    def parts(self, batch: int) -> int:
        """Return into how many parts a batch is cut."""
        return max(1, min(self.threads, batch))


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: FusedEngine,
        step: Step,
        context: Context,
        feedforward: Tensor,
        recurrent: Tensor,
        feedback: Tensor | None,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        reads = _reads(step, context, feedback is not None)
        batch = context.memory[0].shape[0] if isinstance(context.memory, Cells) else context.memory.shape[0]
        index = torch.empty(batch, *step.grid, step.active_groups, dtype=torch.int32)
        drive = torch.empty(batch, *step.grid, step.active_groups)
        writes = (
            _locations(_NO_CELLS if context.refractory is None else context.refractory),
            _locations(_NO_MAP if context.inhibition is None else context.inhibition),
            _array(_NO_VECTOR if context.boost is None else context.boost),
            _array(feedforward),
            _array(recurrent),
            _array(_NO_MATRIX if feedback is None else feedback),
            _array(bias),
            _locations(index),
            _locations(drive),
        )
        engine.run(_select, batch, lambda part: (*reads, *writes, _scratch(*reads)))
        ctx.engine, ctx.reads, ctx.index = engine, reads, index
        ctx.shapes = [None if w is None else w.shape for w in (feedforward, recurrent, feedback, bias)]
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return drive, index

    @staticmethod
    def backward(ctx: Any, d_drive: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_drive is None:
            return (None,) * 7
        engine: FusedEngine = ctx.engine
        sizes: _Sizes = ctx.reads[0]
        feedforward, recurrent, feedback, bias = ctx.shapes
        # A map's feed-forward gradient is summed transposed, so that one winner writes one contiguous run.
        shapes = [
            feedforward if sizes.sparse_input else feedforward[::-1],
            recurrent,
            feedback or (0, 0),
            bias,
        ]
        batch = d_drive.shape[0]
        sums = [[np.zeros(shape, np.float32) for shape in shapes] for _ in range(engine.parts(batch))]
        constants = (*ctx.reads, _locations(ctx.index), _locations(d_drive))
        engine.run(_select_gradient, batch, lambda part: (*constants, *sums[part], _scratch(*ctx.reads)))
        d_feedforward, d_recurrent, d_feedback, d_bias = _add_parts(sums)
        return (
            None,
            None,
            None,
            d_feedforward if sizes.sparse_input else d_feedforward.t().contiguous(),
            d_recurrent,
            None if feedback is None else d_feedback,
            d_bias,
        )


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: FusedEngine,
        step: Step,
        index: Tensor,
        target: Tensor | Cells,
        learn: Tensor,
        z: Tensor,
        decoder: Tensor,
        output_bias: Tensor,
    ) -> Tensor:
        sizes, *reads = _input_arrays(step, target)
        batch = z.shape[0]
        inner = (sizes.input_height - 2 * sizes.margin) * (sizes.input_width - 2 * sizes.margin) * sizes.channels
        scale = learn.float() / (learn.sum().clamp(min=1) * inner)
        loss = np.zeros(batch, np.float32)
        d_z = torch.zeros(z.shape)
        sums = [
            [np.zeros(decoder.shape, np.float32), np.zeros(output_bias.shape, np.float32)]
            for _ in range(engine.parts(batch))
        ]
        constants = (
            sizes,
            _locations(index),
            _locations(z),
            _array(decoder),
            _array(output_bias),
            *reads,
            scale.numpy(),
        )
        engine.run(_loss, batch, lambda part: (*constants, loss, _locations(d_z), *sums[part], _scratch(sizes, *reads)))
        # The gradient falls out of the forward pass while the decoded map is at hand, so it is kept, not made again.
        ctx.save_for_backward(d_z, *_add_parts(sums))
        return torch.tensor(loss.sum(dtype=np.float64), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None,) * 5, *(d_loss * gradient for gradient in ctx.saved_tensors))


_NO_CELLS = torch.empty(0, 0, 0, 0, dtype=torch.int32)
_NO_MAP = torch.empty(0, 0, 0, 0)
_NO_IMAGE = torch.empty(1, 0, 0, 0)
_NO_MATRIX = torch.empty(0, 0)
_NO_VECTOR = torch.empty(0)


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _locations(x: Tensor) -> Any:
    """Return a map ``[b, h, w, ...]`` as an array ``[b, h * w, ...]``."""
    return x.detach().contiguous().flatten(1, 2).numpy()


def _add_parts(sums: list[list[Any]]) -> list[Tensor]:
    first, *others = ([torch.from_numpy(array) for array in part] for part in sums)
    for part in others:
        for total, array in zip(first, part, strict=True):
            total += array
    return first


@functools.cache
def _sizes(step: Step, source_grid: Grid | None = None, channels_in: int | None = None) -> _Sizes:
    decoder_size = step.decoder_kernel_size
    return _Sizes(
        groups=step.groups,
        cells_per_group=step.cells_per_group,
        active_groups=step.active_groups,
        kernel_size=step.kernel_size,
        stride=step.stride,
        recurrent_kernel_size=step.recurrent_kernel_size,
        decoder_kernel_size=decoder_size,
        input_height=step.input_grid.height,
        input_width=step.input_grid.width,
        channels=step.channels,
        channels_in=step.channels if channels_in is None else channels_in,
        input_pool=step.input_pool,
        source_height=source_grid.height if source_grid else 0,
        source_width=source_grid.width if source_grid else 0,
        height=step.grid.height,
        width=step.grid.width,
        margin=step.margin,
        sigmoid=step.activation == "sigmoid",
        sparse_input=source_grid is not None,
        top=padding_before(step.input_grid.height, step.kernel_size, step.stride),
        left=padding_before(step.input_grid.width, step.kernel_size, step.stride),
        decoder_top=padding_before(step.input_grid.height, decoder_size, step.stride) if decoder_size else 0,
        decoder_left=padding_before(step.input_grid.width, decoder_size, step.stride) if decoder_size else 0,
        above_width=0,
    )


def _scratch(
    s: _Sizes,
    image: Any = None,
    in_index: Any = None,
    in_value: Any = None,
    memory_index: Any = None,
    memory_value: Any = None,
    above_index: Any = None,
    *_: Any,
) -> _Scratch:
    """Return working memory for one thread; the arguments are those that the kernels read, in their order."""
    cells, k, pooled = s.groups * s.cells_per_group, s.active_groups, s.input_height * s.input_width * s.sparse_input
    entries_in = in_index.shape[2] * s.input_pool**2 if s.sparse_input else 0
    memory = 0 if memory_index is None else memory_index.shape[2]
    locations_above, winners_above = (0, 0) if above_index is None else above_index.shape[1:]
    taps = s.kernel_size**2 * (entries_in if s.sparse_input else s.channels_in)
    size, channels = s.decoder_kernel_size, s.channels
    work = (
        max(s.decoder_top + s.input_height, (s.height - 1) * s.stride + size),
        max(s.decoder_left + s.input_width, (s.width - 1) * s.stride + size) * channels,
    )
    entries = max(taps, s.recurrent_kernel_size**2 * memory, winners_above, k)
    return _Scratch(
        rows=np.empty(entries, np.int32),
        values=np.empty(entries, np.float32),
        pooled_index=np.empty((pooled, entries_in), np.int32),
        pooled_value=np.empty((pooled, entries_in), np.float32),
        pooled_count=np.empty(pooled, np.int32),
        drive=np.empty(cells, np.float32),
        rank=np.empty(cells, np.float32),
        shared=np.empty(s.groups, np.float32),
        best=np.empty(s.groups, np.float32),
        best_value=np.empty(k, np.float32),
        best_group=np.empty(k, np.int32),
        held=np.empty(k, np.float32),
        above=np.empty((locations_above, cells), np.float32),
        above_row=np.empty((s.above_width, cells), np.float32),
        patch=np.empty(taps, np.float32),
        decoder_patch=np.empty(size**2 * channels, np.float32),
        work=np.empty(work if size else (s.input_height, s.input_width * channels), np.float32),
        target=np.zeros(channels, np.float32),
    )


def _input_arrays(step: Step, x: Tensor | Cells) -> tuple[Any, ...]:
    """Return sizes, map, cell indices, cell values; those of the other kind are empty."""
    if isinstance(x, Cells):
        return _sizes(step, Grid(*x.index.shape[1:3])), _array(_NO_IMAGE), *_cell_arrays(x)
    return _sizes(step, channels_in=x.shape[3]), _array(x), *_cell_arrays(Cells(_NO_CELLS, _NO_MAP))


def _cell_arrays(cells: Cells) -> tuple[Any, Any]:
    return _locations(cells.index), _locations(cells.value)


def _reads(step: Step, context: Context, has_feedback: bool) -> tuple[Any, ...]:
    """Return the arrays that both directions of the selection read."""
    memory = context.memory
    if not isinstance(memory, Cells):
        everything = torch.arange(memory.shape[-1], dtype=torch.int32).expand(memory.shape)
        memory = Cells(everything, memory)
    above = context.feedback if has_feedback and context.feedback is not None else Cells(_NO_CELLS, _NO_MAP)
    sizes, *inputs = _input_arrays(step, context.input)
    return (
        sizes._replace(above_width=above.index.shape[2]),
        *inputs,
        *_cell_arrays(memory),
        *_cell_arrays(above),
        *_interpolation(above.index.shape[1], step.grid.height),
        *_interpolation(above.index.shape[2], step.grid.width),
    )


@functools.cache
def _interpolation(size: int, target: int) -> tuple[Any, Any]:
    """Return the two sources of each target position and the weight of the second, bilinear between centres."""
    if size == 0:
        return np.zeros((target, 2), np.int32), np.zeros(target, np.float32)
    source = ((torch.arange(target) + 0.5) * (size / target) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=size - 1)
    pair = torch.stack((first, (first + 1).clamp(max=size - 1)), 1).to(torch.int32)
    return pair.numpy(), (source - first).to(torch.float32).numpy()
