"""The layer's step, compiled: for each location, add the few weight rows that are named, rank, choose, keep k values.

No ``[locations, cells]`` tensor is written. A kernel works on the samples n0..n1 of a batch with working memory of its
own, so that several threads can share a batch. Rows of weights are contiguous (`torchrsm.rsm.kernels.step.Weights`),
which lets the compiler use vector instructions for all inner loops.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchrsm.compiling import compiled
from torchrsm.rsm.kernels.step import Step

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Contraction and reordering of sums only: NaN and infinity keep their meaning, the training checks rely on them.
# Without Numba's runtime (_nrt) views cost nothing: it would count references to each, and threads that count
# references to the same array spend more time on the counter than on the work. So compiled code allocates nothing.
_jit = compiled(nogil=True, _nrt=False, fastmath={"contract", "reassoc", "nsz"})

_LOWEST = np.float32(np.finfo(np.float32).min)


class Input(NamedTuple):
    """What a layer reads, or is compared with: a map, or the cells of the layer below.

    Attributes:
        image: the map ``[b, h, w, c]``; of length 0 where there are cells.
        cell_index, cell_value: the cells, ``[b, locations below, k]``; of length 0 where there is a map.
        height, width: rows and columns of the locations below; 0 where there is a map.
    """

    image: Floats
    cell_index: Ints
    cell_value: Floats
    height: int
    width: int


class Scratch(NamedTuple):
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
    above: Floats
    above_row: Floats
    patch: Floats
    decoder_patch: Floats
    work: Floats
    target: Floats


class Reads(NamedTuple):
    """The arrays that both directions of the selection read; an array of length 0 stands for what is absent.

    Attributes:
        input: what the layer has seen.
        memory_index, memory_value: the layer's own past, ``[b, locations, entries]``.
        above_index, above_value: feedback, ``[b, locations above, k]``.
        above_width: columns of the grid above; 0 where there is no feedback.
        above_rows, above_row_weight: for each row, the two rows of the grid above that it lies between, and the weight
            of the second; ``above_columns``, ``above_column_weight`` likewise.
    """

    input: Input
    memory_index: Ints
    memory_value: Floats
    above_index: Ints
    above_value: Floats
    above_width: int
    above_rows: Ints
    above_row_weight: Floats
    above_columns: Ints
    above_column_weight: Floats


class Limits(NamedTuple):
    """What changes the order of the cells, see `torchrsm.rsm.kernels.step.Context`; length 0 stands for none."""

    refractory: Ints
    inhibition: Floats
    boost: Floats


class Matrices(NamedTuple):
    """The weights of the drive, or sums of their gradients."""

    feedforward: Floats
    recurrent: Floats
    feedback: Floats
    bias: Floats


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
def _pool(s: Step, x: Input, n: int, scratch: Scratch) -> None:
    """Pool the cells of one sample: the largest value of each cell in each window, as lists of the cells named there.

    A cell that is missing at one location of the window counts 0 there, so a negative value survives only where the
    cell won at all of them.
    """
    index, value = x.cell_index[n], x.cell_value[n]
    out_index, out_value = scratch.pooled_index, scratch.pooled_value
    k, width = index.shape[1], x.width
    for q in range(s.input_height * s.input_width):
        y0, x0 = (q // s.input_width) * s.input_pool, (q % s.input_width) * s.input_pool
        y1, x1 = min(y0 + s.input_pool, x.height), min(x0 + s.input_pool, width)
        count = 0
        for y in range(y0, y1):
            for column in range(x0, x1):
                p = y * width + column
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
                        for column in range(x0, x1):
                            for e in range(k):
                                wins += index[y * width + column, e] == out_index[q, f]
                    if wins < (y1 - y0) * (x1 - x0):
                        out_value[q, f] = 0.0
        scratch.pooled_count[q] = count


@_jit
def _active_inputs(s: Step, location: int, x: Input, n: int, scratch: Scratch) -> int:
    """List the feed-forward rows that the non-zero inputs of a location name, and their values; return how many."""
    rows, values = scratch.rows, scratch.values
    y0 = (location // s.width) * s.stride - s.top
    x0 = (location % s.width) * s.stride - s.left
    channels = s.channels if x.height > 0 else x.image.shape[3]
    count = 0
    for dy in range(max(0, -y0), min(s.kernel_size, s.input_height - y0)):
        for dx in range(max(0, -x0), min(s.kernel_size, s.input_width - x0)):
            tap = (dy * s.kernel_size + dx) * channels
            if x.height > 0:
                q = (y0 + dy) * s.input_width + x0 + dx
                for e in range(scratch.pooled_count[q]):
                    rows[count] = tap + scratch.pooled_index[q, e]
                    values[count] = scratch.pooled_value[q, e]
                    count += 1
            else:
                for c in range(channels):
                    v = x.image[n, y0 + dy, x0 + dx, c]
                    if v != 0.0:
                        rows[count] = tap + c
                        values[count] = v
                        count += 1
    return count


@_jit
def _active_neighbours(s: Step, cells: int, location: int, index: Ints, value: Floats, scratch: Scratch) -> int:
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
def _choose(s: Step, scratch: Scratch, index: Ints) -> None:
    """Write the best cell of each of the best groups to ``index``, best first; ties go to the lowest index."""
    groups, cells_per_group, k = s.groups, s.cells_per_group, s.active_groups
    rank, value, group = scratch.rank, scratch.best_value, scratch.best_group
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
def _feedback_map(above_index: Ints, above_value: Floats, weight: Floats, scratch: Scratch) -> None:
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
def _mix_row(s: Step, y: int, r: Reads, scratch: Scratch) -> None:
    """Interpolate the feedback map between two of its rows, for row y of the layer's own grid."""
    w = r.above_row_weight[y]
    for q in range(r.above_width):
        first = scratch.above[r.above_rows[y, 0] * r.above_width + q]
        second = scratch.above[r.above_rows[y, 1] * r.above_width + q]
        mixed = scratch.above_row[q]
        for c in range(mixed.shape[0]):
            mixed[c] = (1 - w) * first[c] + w * second[c]


@_jit
def _drive(s: Step, n: int, p: int, r: Reads, weights: Matrices, scratch: Scratch) -> None:
    """Line 4 at one location: write the drive of its cells to ``scratch.drive``."""
    a, bias, shared = scratch.drive, weights.bias, scratch.shared
    count = _active_inputs(s, p, r.input, n, scratch)
    if s.cells_per_group == 1:
        for c in range(a.shape[0]):
            a[c] = bias[c]
        _add_rows(a, weights.feedforward, scratch.rows, scratch.values, count)
    else:
        shared[:] = 0.0
        _add_rows(shared, weights.feedforward, scratch.rows, scratch.values, count)
        for j in range(s.cells_per_group):
            part = a[j * s.groups : (j + 1) * s.groups]
            part_bias = bias[j * s.groups : (j + 1) * s.groups]
            for g in range(s.groups):
                part[g] = part_bias[g] + shared[g]
    count = _active_neighbours(s, a.shape[0], p, r.memory_index[n], r.memory_value[n], scratch)
    _add_rows(a, weights.recurrent, scratch.rows, scratch.values, count)
    if r.above_width > 0:
        w = r.above_column_weight[p % s.width]
        first = scratch.above_row[r.above_columns[p % s.width, 0]]
        second = scratch.above_row[r.above_columns[p % s.width, 1]]
        for c in range(a.shape[0]):
            a[c] += (1 - w) * first[c] + w * second[c]


@_jit
def _rank(n: int, p: int, lowest: np.floating | float, limits: Limits, scratch: Scratch) -> None:
    """Line 5 at one location: write the rank of its cells, which is the drive itself where nothing changes it."""
    a, rank = scratch.drive, scratch.rank
    if limits.inhibition.shape[0] > 0:
        phi = limits.inhibition[n, p]
        for c in range(a.shape[0]):
            rank[c] = (a[c] - lowest + 1) * (1 - phi[c])
    elif limits.boost.shape[0] > 0:
        for c in range(a.shape[0]):
            rank[c] = a[c] * limits.boost[c]
    else:
        for c in range(a.shape[0]):
            rank[c] = a[c]
    if limits.refractory.shape[0] > 0:
        for e in range(limits.refractory.shape[2]):
            if limits.refractory[n, p, e] >= 0:
                rank[limits.refractory[n, p, e]] = _LOWEST


@_jit
def select(
    n0: int,
    n1: int,
    s: Step,
    r: Reads,
    limits: Limits,
    weights: Matrices,
    index: Ints,
    drive: Floats,
    scratch: Scratch,
) -> None:
    """Lines 4 to 6: write winners and their drive, ``[b, locations, k]``."""
    for n in range(n0, n1):
        if r.input.height > 0:
            _pool(s, r.input, n, scratch)
        if r.above_width > 0:
            _feedback_map(r.above_index[n], r.above_value[n], weights.feedback, scratch)
        lowest = np.float32(np.inf)
        # The published inhibition ranks against the least drive of the sample: find it first, then choose.
        for final in range(0 if limits.inhibition.shape[0] > 0 else 1, 2):
            for p in range(s.height * s.width):
                if r.above_width > 0 and p % s.width == 0:
                    _mix_row(s, p // s.width, r, scratch)
                _drive(s, n, p, r, weights, scratch)
                if final == 0:
                    for c in range(scratch.drive.shape[0]):
                        lowest = min(lowest, scratch.drive[c])
                    continue
                _rank(n, p, lowest, limits, scratch)
                _choose(s, scratch, index[n, p])
                for e in range(s.active_groups):
                    drive[n, p, e] = scratch.drive[index[n, p, e]]


@_jit
def select_gradient(
    n0: int, n1: int, s: Step, r: Reads, index: Ints, d_drive: Floats, sums: Matrices, scratch: Scratch
) -> None:
    """Add the gradients of the weights to ``sums``, from the winners alone.

    ``sums.feedforward`` is ``[rows, groups]`` for sparse inputs and its transpose for maps, so that a winner writes one
    contiguous run.
    """
    cells = s.groups * s.cells_per_group
    k = s.active_groups
    sparse = r.input.height > 0
    taps = s.kernel_size**2 * (s.channels if sparse else r.input.image.shape[3])
    rows, values, patch, d_above = scratch.rows, scratch.values, scratch.patch, scratch.above
    for n in range(n0, n1):
        if r.input.height > 0:
            _pool(s, r.input, n, scratch)
        d_above[:] = 0.0
        for p in range(s.height * s.width):
            winners = index[n, p]
            d = d_drive[n, p]
            some = False
            for e in range(k):
                some = some or d[e] != 0.0
            if not some:
                continue
            count = _active_inputs(s, p, r.input, n, scratch)
            if sparse:
                for i in range(count):
                    row = sums.feedforward[rows[i]]
                    for e in range(k):
                        row[winners[e] % s.groups] += values[i] * d[e]
            else:
                patch[:] = 0.0
                for i in range(count):
                    patch[rows[i]] = values[i]
                for e in range(k):
                    if d[e] != 0.0:
                        row = sums.feedforward[winners[e] % s.groups]
                        v = d[e]
                        for t in range(taps):
                            row[t] += v * patch[t]
            count = _active_neighbours(s, cells, p, r.memory_index[n], r.memory_value[n], scratch)
            for i in range(count):
                row = sums.recurrent[rows[i]]
                v = values[i]
                for e in range(k):
                    row[winners[e]] += v * d[e]
            for e in range(k):
                sums.bias[winners[e]] += d[e]
            if r.above_width > 0:
                y, x = p // s.width, p % s.width
                for i in range(2):
                    wy = r.above_row_weight[y] if i == 1 else 1 - r.above_row_weight[y]
                    for j in range(2):
                        w = wy * (r.above_column_weight[x] if j == 1 else 1 - r.above_column_weight[x])
                        row = d_above[r.above_rows[y, i] * r.above_width + r.above_columns[x, j]]
                        for e in range(k):
                            row[winners[e]] += w * d[e]
        if r.above_width > 0:
            for p in range(d_above.shape[0]):
                source = d_above[p]
                for e in range(r.above_index.shape[2]):
                    v = r.above_value[n, p, e]
                    if r.above_index[n, p, e] >= 0 and v != 0.0:
                        row = sums.feedback[r.above_index[n, p, e]]
                        for c in range(cells):
                            row[c] += v * source[c]


@_jit
def _decode_sample(s: Step, index: Ints, z: Floats, decoder: Floats, scratch: Scratch) -> None:
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
def decode(n0: int, n1: int, s: Step, index: Ints, z: Floats, decoder: Floats, out: Floats, scratch: Scratch) -> None:
    """Decode the samples n0..n1, without bias and activation, to ``out [b, h, w * c]``."""
    for n in range(n0, n1):
        _decode_sample(s, index[n], z[n], decoder, scratch)
        for y in range(s.input_height):
            line = out[n, y]
            part = scratch.work[s.decoder_top + y, s.decoder_left * s.channels :]
            for c in range(line.shape[0]):
                line[c] = part[c]


@_jit
def _decode_sample_gradient(
    s: Step, index: Ints, z: Floats, decoder: Floats, d_z: Floats, d_decoder: Floats, scratch: Scratch
) -> None:
    """Write the gradient for ``z [locations, k]``, and add that for the decoder; the work map holds the map's own."""
    patch, work = scratch.decoder_patch, scratch.work
    size = s.decoder_kernel_size
    run = size * s.channels
    for p in range(s.height * s.width):
        if size > 0:
            x0 = (p % s.width) * s.stride * s.channels
            for dy in range(size):
                line = work[(p // s.width) * s.stride + dy, x0 : x0 + run]
                part = patch[dy * run : (dy + 1) * run]
                for c in range(run):
                    part[c] = line[c]
        error_patch = patch if size > 0 else work.reshape(-1)
        for e in range(s.active_groups):
            row = index[p, e] % s.groups + (p * s.groups if size == 0 else 0)
            weight = decoder[row]
            d_weight = d_decoder[row]
            v = z[p, e]
            dot = np.float32(0.0)
            for c in range(error_patch.shape[0]):
                dot += weight[c] * error_patch[c]
                d_weight[c] += v * error_patch[c]
            d_z[p, e] = dot


@_jit
def decode_gradient(
    n0: int,
    n1: int,
    s: Step,
    index: Ints,
    z: Floats,
    decoder: Floats,
    d_out: Floats,
    d_z: Floats,
    d_decoder: Floats,
    scratch: Scratch,
) -> None:
    """Return the gradients of `decode` for the samples n0..n1, given that of its map, ``d_out [b, h, w * c]``."""
    work = scratch.work
    for n in range(n0, n1):
        work[:] = 0.0
        for y in range(s.input_height):
            line = d_out[n, y]
            part = work[s.decoder_top + y, s.decoder_left * s.channels :]
            for c in range(line.shape[0]):
                part[c] = line[c]
        _decode_sample_gradient(s, index[n], z[n], decoder, d_z[n], d_decoder, scratch)


@_jit
def loss(
    n0: int,
    n1: int,
    s: Step,
    index: Ints,
    z: Floats,
    decoder: Floats,
    output_bias: Floats,
    goal: Input,
    scale: Floats,
    losses: Floats,
    d_z: Floats,
    d_decoder: Floats,
    d_output_bias: Floats,
    scratch: Scratch,
) -> None:
    """Lines 9 and 10 and their gradient for the samples n0..n1; the decoded map stays in the cache.

    ``scale[n]`` is the weight of one squared error in the loss, 0 for a sample that is not learned from.
    """
    channels, work = s.channels, scratch.work
    bias_height, bias_width = output_bias.shape[0], output_bias.shape[1]
    for n in range(n0, n1):
        if scale[n] == 0.0:
            continue
        _decode_sample(s, index[n], z[n], decoder, scratch)
        if goal.height > 0:
            _pool(s, goal, n, scratch)
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
                if goal.height > 0:
                    target = scratch.target
                    for e in range(scratch.pooled_count[q]):
                        target[scratch.pooled_index[q, e]] = scratch.pooled_value[q, e]
                else:
                    target = goal.image[n, iy, ix]
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
                if goal.height > 0:
                    for e in range(scratch.pooled_count[q]):
                        target[scratch.pooled_index[q, e]] = 0.0
        losses[n] = total * scale[n]
        _decode_sample_gradient(s, index[n], z[n], decoder, d_z[n], d_decoder, scratch)
