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
from torchrsm.rsm.kernels.vectors import (
    HAS_SCATTER,
    LANES,
    WIDEST,
    add_1,
    add_2,
    add_4,
    add_at_places,
    add_half,
    add_packed_2,
    add_packed_8,
    add_packed_wide,
    add_quarter,
    add_wide,
    keep_from,
    keep_others,
    rank_among,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Units = NDArray[np.uint32]
Flags = NDArray[np.bool_]

# Contraction and reordering of sums only: NaN and infinity keep their meaning, the training checks rely on them.
# Without Numba's runtime (_nrt) views cost nothing: it would count references to each, and threads that count
# references to the same array spend more time on the counter than on the work. So compiled code allocates nothing.
_jit = compiled(nogil=True, _nrt=False, fastmath={"contract", "reassoc", "nsz"})

_LARGE = 1e150  # of a product, before its logarithm is taken

MOST_COLUMNS = 64
"""Most columns to which the numbers of a location are dealt when the largest are sought."""

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
    memory_index: Ints
    memory_value: Floats
    memory_count: Ints
    drives: Floats
    rank: Floats
    shared: Floats
    best: Floats
    best_value: Floats
    best_group: Ints
    column: Floats
    kept: Floats
    position: Ints
    above: Floats
    above_row: Floats
    patch: Floats
    decoder_patch: Floats
    group: Ints
    group_starts: Ints
    group_place: Ints
    group_row: Ints
    group_value: Floats
    work: Floats
    target: Floats


class Taps(NamedTuple):
    """Where the taps of a kernel lie: for each row of locations ``[rows, size]`` the row of the source, -1 for none."""

    source_row: Ints
    source_column: Ints


class Targets(NamedTuple):
    """The locations that each place of the source reaches by the taps of a kernel.

    Attributes:
        counts: ``[places]``, how many.
        tap, location: ``[places, taps]``, the first ``counts`` of them: by which tap which location.
    """

    counts: Ints
    tap: Ints
    location: Ints


class Entries(NamedTuple):
    """Cells that were on, listed cell by cell; those of cell ``c`` are ``starts[c]`` to ``starts[c + 1]``."""

    starts: Ints
    place: Ints
    value: Floats
    unsorted_cell: Ints
    unsorted_place: Ints
    unsorted_value: Floats


class Reads(NamedTuple):
    """The arrays that both directions of the selection read; an array of length 0 stands for what is absent.

    Attributes:
        input: what the layer has seen.
        memory_index, memory_value: the layer's own past, ``[b, locations, entries]``.
        above_index, above_value: feedback, ``[b, locations above, k]``.
        above_width: columns of the grid above; 0 where there is no feedback.
        input_taps, memory_taps: where the neighbours of each location are.
        above_rows, above_row_weight: for each row, the two rows of the grid above that it lies between, and the weight
            of the second; ``above_columns``, ``above_column_weight`` likewise.
    """

    input: Input
    memory_index: Ints
    memory_value: Floats
    above_index: Ints
    above_value: Floats
    above_width: int
    input_taps: Taps
    memory_taps: Taps
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


class Packed(NamedTuple):
    """Weights rounded to bfloat16 (`pack`), ``[rows, words]``; of no rows where the products are in float32."""

    feedforward: Units
    recurrent: Units


@_jit
def _add_rows(
    out: Floats, start: int, weight: Floats, column: int, n: int, rows: Ints, values: Floats, count: int
) -> None:
    """``out[start:] += sum(values[i] * weight[rows[i], column:])`` over the first ``count`` rows, ``n`` numbers."""
    c = 0
    while c + WIDEST * LANES <= n:
        add_wide(out, start + c, weight, column + c, rows, values, count)
        c += WIDEST * LANES
    while c + 4 * LANES <= n:
        add_4(out, start + c, weight, column + c, rows, values, count)
        c += 4 * LANES
    if c + 2 * LANES <= n:
        add_2(out, start + c, weight, column + c, rows, values, count)
        c += 2 * LANES
    if c + LANES <= n:
        add_1(out, start + c, weight, column + c, rows, values, count)
        c += LANES
    if c + LANES // 2 <= n:
        add_half(out, start + c, weight, column + c, rows, values, count)
        c += LANES // 2
    if c + LANES // 4 <= n:
        add_quarter(out, start + c, weight, column + c, rows, values, count)
        c += LANES // 4
    if c < n:
        for i in range(count):
            v, row = values[i], weight[rows[i]]
            for e in range(c, n):
                out[start + e] += v * row[column + e]


@_jit
def _name_cells(index: Ints, value: Floats, out_index: Ints, out_value: Floats, out_count: Ints) -> None:
    """List the cells of each location ``[locations, entries]`` that are there and not 0."""
    for p in range(index.shape[0]):
        count = 0
        for e in range(index.shape[1]):
            if index[p, e] >= 0 and value[p, e] != 0.0:
                out_index[p, count] = index[p, e]
                out_value[p, count] = value[p, e]
                count += 1
        out_count[p] = count


@_jit
def pack(r0: int, r1: int, weight: Units, packed: Units) -> None:
    """Round the rows r0..r1 of float32 weights, given as their bits, to bfloat16, two to a word.

    Of 32 numbers, the first 16 fill the lower halves of 16 words, the others the upper ones. What is left over at the
    end of a row, fewer than 32, is not packed.
    """
    half = np.uint32(16)
    for r in range(r0, r1):
        source, words = weight[r], packed[r]
        for pair in range(words.shape[0] // LANES):
            for lane in range(LANES):
                low, high = source[2 * pair * LANES + lane], source[(2 * pair + 1) * LANES + lane]
                low = (low + np.uint32(0x7FFF) + ((low >> half) & np.uint32(1))) >> half
                high = (high + np.uint32(0x7FFF) + ((high >> half) & np.uint32(1))) & np.uint32(0xFFFF0000)
                words[pair * LANES + lane] = high | low


@_jit
def _add_packed_rows(
    out: Floats, weight: Floats, packed: Units, n: int, rows: Ints, values: Floats, count: int
) -> None:
    """Do what `_add_rows` does, with packed weights; the end of each row is read from the weights themselves."""
    c, ready = 0, 2 * packed.shape[1]
    while c + WIDEST * LANES <= ready:
        add_packed_wide(out, c, packed, c, rows, values, count)
        c += WIDEST * LANES
    while c + 8 * LANES <= ready:
        add_packed_8(out, c, packed, c, rows, values, count)
        c += 8 * LANES
    while c < ready:
        add_packed_2(out, c, packed, c, rows, values, count)
        c += 2 * LANES
    if c < n:
        _add_rows(out, c, weight, c, n - c, rows, values, count)


@_jit
def _pool(s: Step, x: Input, n: int, scratch: Scratch) -> None:
    """Pool the cells of one sample: the largest value of each cell in each window, as lists of the cells named there.

    A cell that is missing at one location of the window counts 0 there, so a negative value survives only where the
    cell won at all of them.
    """
    index, value = x.cell_index[n], x.cell_value[n]
    out_index, out_value = scratch.pooled_index, scratch.pooled_value
    k, width = index.shape[1], x.width
    if s.input_pool == 1:
        _name_cells(index, value, out_index, out_value, scratch.pooled_count)
        return
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
def _copy_patch(s: Step, location: int, x: Input, n: int, patch: Floats) -> None:
    """Copy the window of a map that a location sees, in the order of the feed-forward rows; 0 outside of the map."""
    y0 = (location // s.width) * s.stride - s.top
    x0 = (location % s.width) * s.stride - s.left
    channels = x.image.shape[3]
    run = s.kernel_size * channels
    first = max(0, -x0) * channels
    last = min(s.kernel_size, s.input_width - x0) * channels
    for dy in range(s.kernel_size):
        part = patch[dy * run : (dy + 1) * run]
        if y0 + dy < 0 or y0 + dy >= s.input_height or first > 0 or last < run:
            part[:] = 0.0
        if 0 <= y0 + dy < s.input_height:
            line = x.image[n, y0 + dy].reshape(-1)
            for c in range(first, last):
                part[c] = line[x0 * channels + c]


@_jit
def _active_inputs(s: Step, location: int, x: Input, n: int, scratch: Scratch) -> int:
    """List the feed-forward rows that the non-zero pixels of a location name, and their values; return how many."""
    patch, rows, values = scratch.patch, scratch.rows, scratch.values
    _copy_patch(s, location, x, n, patch)
    taps = patch.shape[0]
    count = 0
    for i in range(0, taps // LANES * LANES, LANES):
        count = keep_others(patch, i, np.float32(0.0), values, rows, count)
    for i in range(taps // LANES * LANES, taps):
        if patch[i] != 0.0:
            rows[count] = i
            values[count] = patch[i]
            count += 1
    return count


@_jit
def _add_taps(
    out: Floats,
    first: int,
    last: int,
    width: int,
    weight: Floats,
    packed: Units,
    taps: Taps,
    source_width: int,
    index: Ints,
    value: Floats,
    counts: Ints,
) -> None:
    """Add to ``out [last - first, n]`` what the listed cells around the locations first..last contribute.

    It takes one tap of the neighbourhood after the other: the weights of one stay in the cache for all locations.
    """
    n = out.shape[1]
    size = taps.source_row.shape[1]
    cells = weight.shape[0] // (size * size)
    for dy in range(size):
        for dx in range(size):
            here, end = (dy * size + dx) * cells, (dy * size + dx + 1) * cells
            block = weight[here:end]
            words = packed[here:end] if packed.shape[0] > 0 else packed
            for p in range(first, last):
                y, x = taps.source_row[p // width, dy], taps.source_column[p % width, dx]
                if y >= 0 and x >= 0:
                    q = y * source_width + x
                    if packed.shape[0] > 0:
                        _add_packed_rows(out[p - first], block, words, n, index[q], value[q], counts[q])
                    else:
                        _add_rows(out[p - first], 0, block, 0, n, index[q], value[q], counts[q])


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
    if not _largest(best, k, scratch):
        _largest_of_few(best, k, value, group)
    for q in range(k):
        j = 0
        while j < cells_per_group - 1 and rank[j * groups + group[q]] != value[q]:
            j += 1
        index[q] = j * groups + group[q]


@_jit
def _largest_of_few(best: Floats, k: int, value: Floats, group: Ints) -> None:
    """Write the k largest numbers and their positions, the largest first; ties go to the lowest position."""
    filled = 0
    for g in range(best.shape[0]):
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


@_jit
def _largest(best: Floats, k: int, scratch: Scratch) -> bool:
    """Do what `_largest_of_few` does, for many numbers and without a branch for each; return whether it was done.

    The numbers are dealt to columns. The k-th largest of the columns' maxima is not above the k-th largest number. So
    only numbers that reach it are compared with one another. It is not done for few numbers, nor where NaN leaves fewer
    than k that reach it.
    """
    n = best.shape[0]
    columns = LANES
    while 3 * columns < 4 * k:
        columns *= 2
    if columns > MOST_COLUMNS or n < 4 * columns:
        return False
    top = scratch.column
    for j in range(columns):
        top[j] = best[j]
    whole = n // columns * columns
    for i in range(columns, whole, columns):
        for j in range(columns):
            top[j] = max(top[j], best[i + j])
    for j in range(n - whole):
        top[j] = max(top[j], best[whole + j])
    least = np.float32(np.inf)
    for j in range(columns):
        if rank_among(top, j, columns // LANES) < k:
            least = min(least, top[j])
    kept, position = scratch.kept, scratch.position
    count = 0
    for i in range(0, n // LANES * LANES, LANES):
        count = keep_from(best, i, least, kept, position, count)
    for i in range(n // LANES * LANES, n):
        if best[i] >= least:
            kept[count] = best[i]
            position[count] = i
            count += 1
    if count < k:
        return False
    vectors = (count + LANES - 1) // LANES
    for i in range(count, vectors * LANES):
        kept[i] = -np.float32(np.inf)
    for i in range(count):
        at = rank_among(kept, i, vectors)
        if at < k:
            scratch.best_value[at] = kept[i]
            scratch.best_group[at] = position[i]
    return True


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
        _add_rows(out[p], 0, weight, 0, out.shape[1], rows, values, count)


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
def _drive(
    s: Step, n: int, first: int, last: int, r: Reads, weights: Matrices, packed: Packed, scratch: Scratch
) -> None:
    """Line 4 at the locations first..last: write the drive of their cells to ``scratch.drives``."""
    drives, bias = scratch.drives, weights.bias
    alone = s.cells_per_group == 1
    shared = drives if alone else scratch.shared
    for p in range(first, last):
        row = shared[p - first]
        for g in range(s.groups):
            row[g] = bias[g] if alone else np.float32(0.0)
        if r.input.height == 0:
            count = _active_inputs(s, p, r.input, n, scratch)
            _add_rows(row, 0, weights.feedforward, 0, s.groups, scratch.rows, scratch.values, count)
    if r.input.height > 0:
        _add_taps(
            shared,
            first,
            last,
            s.width,
            weights.feedforward,
            packed.feedforward,
            r.input_taps,
            s.input_width,
            scratch.pooled_index,
            scratch.pooled_value,
            scratch.pooled_count,
        )
    if not alone:
        for p in range(first, last):
            row = shared[p - first]
            for j in range(s.cells_per_group):
                part = drives[p - first, j * s.groups : (j + 1) * s.groups]
                part_bias = bias[j * s.groups : (j + 1) * s.groups]
                for g in range(s.groups):
                    part[g] = part_bias[g] + row[g]
    _add_taps(
        drives,
        first,
        last,
        s.width,
        weights.recurrent,
        packed.recurrent,
        r.memory_taps,
        s.width,
        scratch.memory_index,
        scratch.memory_value,
        scratch.memory_count,
    )
    if r.above_width > 0:
        for p in range(first, last):
            if p == first or p % s.width == 0:
                _mix_row(s, p // s.width, r, scratch)
            a = drives[p - first]
            w = r.above_column_weight[p % s.width]
            before = scratch.above_row[r.above_columns[p % s.width, 0]]
            behind = scratch.above_row[r.above_columns[p % s.width, 1]]
            for c in range(a.shape[0]):
                a[c] += (1 - w) * before[c] + w * behind[c]


@_jit
def _rank(n: int, p: int, a: Floats, lowest: np.floating | float, limits: Limits, scratch: Scratch) -> None:
    """Line 5 at one location of drive ``a``: write the rank of its cells; the drive where nothing changes it."""
    rank = scratch.rank
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
    packed: Packed,
    index: Ints,
    drive: Floats,
    scratch: Scratch,
) -> None:
    """Lines 4 to 6: write winners and their drive, ``[b, locations, k]``."""
    locations = s.height * s.width
    tile = scratch.drives.shape[0]
    for n in range(n0, n1):
        if r.input.height > 0:
            _pool(s, r.input, n, scratch)
        _name_cells(
            r.memory_index[n], r.memory_value[n], scratch.memory_index, scratch.memory_value, scratch.memory_count
        )
        if r.above_width > 0:
            _feedback_map(r.above_index[n], r.above_value[n], weights.feedback, scratch)
        lowest = np.float32(np.inf)
        # The published inhibition ranks against the least drive of the sample: find it first, then choose.
        for final in range(0 if limits.inhibition.shape[0] > 0 else 1, 2):
            for first in range(0, locations, tile):
                last = min(first + tile, locations)
                if final == 0 or limits.inhibition.shape[0] == 0 or tile < locations:
                    _drive(s, n, first, last, r, weights, packed, scratch)
                for p in range(first, last):
                    a = scratch.drives[p - first]
                    if final == 0:
                        for c in range(a.shape[0]):
                            lowest = min(lowest, a[c])
                        continue
                    _rank(n, p, a, lowest, limits, scratch)
                    _choose(s, scratch, index[n, p])
                    for e in range(s.active_groups):
                        drive[n, p, e] = a[index[n, p, e]]


@_jit
def select_gradient(
    n0: int, n1: int, s: Step, r: Reads, index: Ints, d_drive: Floats, sums: Matrices, scratch: Scratch
) -> None:
    """Add the gradients of the bias, the feedback and of weights that read a map to ``sums``, from the winners alone.

    ``sums.feedforward`` is ``[groups, rows]``, transposed, so that a winner writes one contiguous run.
    """
    cells = s.groups * s.cells_per_group
    k = s.active_groups
    image = r.input.height == 0
    taps = s.kernel_size**2 * r.input.image.shape[3]
    patch, d_above = scratch.patch, scratch.above
    for n in range(n0, n1):
        d_above[:] = 0.0
        for p in range(s.height * s.width):
            winners = index[n, p]
            d = d_drive[n, p]
            some = False
            for e in range(k):
                some = some or d[e] != 0.0
            if not some:
                continue
            if image:
                _copy_patch(s, p, r.input, n, patch)
                for e in range(k):
                    if d[e] != 0.0:
                        row = sums.feedforward[winners[e] % s.groups]
                        v = d[e]
                        for t in range(taps):
                            row[t] += v * patch[t]
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
def sort_memory(n0: int, n1: int, s: Step, r: Reads, learns: Flags, entries: Entries, scratch: Scratch) -> None:
    """List the layer's own past in the samples n0..n1 that are learned from, cell by cell: where and how much."""
    count = 0
    for n in range(n0, n1):
        if not learns[n]:
            continue
        index, value = r.memory_index[n], r.memory_value[n]
        for p in range(index.shape[0]):
            for e in range(index.shape[1]):
                if index[p, e] >= 0 and value[p, e] != 0.0:
                    entries.unsorted_cell[count] = index[p, e]
                    entries.unsorted_place[count] = n * index.shape[0] + p
                    entries.unsorted_value[count] = value[p, e]
                    count += 1
    _sort(entries, count)


@_jit
def sort_input(n0: int, n1: int, s: Step, r: Reads, learns: Flags, entries: Entries, scratch: Scratch) -> None:
    """List the pooled cells of the layer below in the samples n0..n1 that are learned from, cell by cell."""
    count = 0
    places = s.input_height * s.input_width
    for n in range(n0, n1):
        if not learns[n]:
            continue
        _pool(s, r.input, n, scratch)
        for q in range(places):
            for e in range(scratch.pooled_count[q]):
                entries.unsorted_cell[count] = scratch.pooled_index[q, e]
                entries.unsorted_place[count] = n * places + q
                entries.unsorted_value[count] = scratch.pooled_value[q, e]
                count += 1
    _sort(entries, count)


@_jit
def _sort(entries: Entries, count: int) -> None:
    """Sort by cell, in the order of the samples and locations (a counting sort)."""
    starts = entries.starts
    starts[:] = 0
    for i in range(count):
        starts[entries.unsorted_cell[i] + 2] += 1
    for c in range(2, starts.shape[0]):
        starts[c] += starts[c - 1]
    for i in range(count):
        c = entries.unsorted_cell[i]
        at = starts[c + 1]
        starts[c + 1] = at + 1
        entries.place[at] = entries.unsorted_place[i]
        entries.value[at] = entries.unsorted_value[i]


@_jit
def _add_at_one_by_one(
    out: Floats, first: int, places: Ints, values: Floats, start: int, count: int, factor: np.floating
) -> None:
    """``out[first + places[i]] += factor * values[i]`` for ``count`` numbers i from ``start`` on."""
    for i in range(start, start + count):
        out[first + places[i]] += factor * values[i]


_add_at = add_at_places if HAS_SCATTER else _add_at_one_by_one


@_jit
def cell_gradient(
    c0: int,
    c1: int,
    adds: bool,
    targets: Targets,
    locations: int,
    entries: Entries,
    winners: Ints,
    d_drive: Floats,
    gradient: Floats,
    sums: Floats,
) -> None:
    """Write the gradients of the weights of the source cells c0..c1, from listed entries; or add them where ``adds``.

    One source cell after the other: the few rows of its weights stay in the first cache for all places where it was on.

    Args:
        c0, c1: source cells.
        adds: whether the gradients hold a part already.
        targets: where the taps of a place lie.
        locations: of a sample.
        entries: where and how much each source cell was on.
        winners: ``[b * locations, k]``, columns of the gradient.
        d_drive: ``[b * locations, k]``.
        gradient: ``[taps * source cells, n]``.
        sums: working memory ``[taps, n]``.
    """
    places, taps = targets.tap.shape
    cells = gradient.shape[0] // taps
    k, columns = winners.shape[1], gradient.shape[1]
    won, d, total = winners.reshape(-1), d_drive.reshape(-1), sums.reshape(-1)
    for c in range(c0, c1):
        for tap in range(taps):
            row, known = sums[tap], gradient[tap * cells + c]
            for e in range(columns):
                row[e] = known[e] if adds else np.float32(0.0)
        for at in range(entries.starts[c], entries.starts[c + 1]):
            place, v = entries.place[at], entries.value[at]
            n, q = place // places, place % places
            tap, location = targets.tap[q], targets.location[q]
            for i in range(targets.counts[q]):
                start = (n * locations + location[i]) * k
                _add_at(total, tap[i] * columns, won, d, start, k, v)
        for tap in range(taps):
            row, known = sums[tap], gradient[tap * cells + c]
            for e in range(columns):
                known[e] = row[e]


@_jit
def _decode_sample(s: Step, index: Ints, z: Floats, decoder: Floats, scratch: Scratch) -> None:
    """Decode the groups of one sample to the work map, which has room for windows that reach over the edge."""
    rows, values, patch, out = scratch.rows, scratch.values, scratch.decoder_patch, scratch.work
    out[:] = 0.0
    size = s.decoder_kernel_size
    channels = s.channels
    run = size * channels
    if size > 0 and channels >= LANES:
        # Many channels: one tap of the kernel after the other, whose weights stay in the cache for all locations.
        _name_groups(s, index, scratch)
        for dy in range(size):
            for dx in range(size):
                for p in range(s.height * s.width):
                    line = out[(p // s.width) * s.stride + dy]
                    start = ((p % s.width) * s.stride + dx) * channels
                    column = dy * run + dx * channels
                    _add_rows(line, start, decoder, column, channels, scratch.group[p], z[p], s.active_groups)
        return
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
            _add_rows(out.reshape(-1), 0, decoder, 0, out.size, rows, values, count)
            continue
        patch[:] = 0.0
        _add_rows(patch, 0, decoder, 0, patch.shape[0], rows, values, count)
        x0 = (p % s.width) * s.stride * channels
        for dy in range(size):
            line = out[(p // s.width) * s.stride + dy, x0 : x0 + run]
            part = patch[dy * run : (dy + 1) * run]
            for c in range(run):
                line[c] += part[c]


@_jit
def _name_groups(s: Step, index: Ints, scratch: Scratch) -> None:
    """Write the group of each winner of a sample to ``scratch.group``."""
    for p in range(s.height * s.width):
        for e in range(s.active_groups):
            scratch.group[p, e] = index[p, e] % s.groups


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
    if size > 0 and s.channels >= LANES:
        _decode_taps_gradient(s, index, z, decoder, d_z, d_decoder, scratch)
        return
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
def _decode_taps_gradient(
    s: Step, index: Ints, z: Floats, decoder: Floats, d_z: Floats, d_decoder: Floats, scratch: Scratch
) -> None:
    """Do what `_decode_sample_gradient` does where there are many channels, one tap of the kernel after the other."""
    size, channels, width = s.decoder_kernel_size, s.channels, s.width
    work, k, locations = scratch.work, s.active_groups, s.height * s.width
    _name_groups(s, index, scratch)
    group = scratch.group
    for p in range(locations):
        for e in range(k):
            d_z[p, e] = 0.0
    for dy in range(size):
        for dx in range(size):
            column = (dy * size + dx) * channels
            for p in range(locations):
                x0 = ((p % width) * s.stride + dx) * channels
                line = work[(p // width) * s.stride + dy, x0 : x0 + channels]
                for e in range(k):
                    weight = decoder[group[p, e], column : column + channels]
                    dot = np.float32(0.0)
                    for c in range(channels):
                        dot += weight[c] * line[c]
                    d_z[p, e] += dot
    # The weights of one group after the other, so that a sum over all its places stays in registers.
    starts, place = scratch.group_starts, scratch.group_place
    starts[:] = 0
    for p in range(locations):
        for e in range(k):
            starts[group[p, e] + 2] += 1
    for g in range(2, starts.shape[0]):
        starts[g] += starts[g - 1]
    for p in range(locations):
        for e in range(k):
            at = starts[group[p, e] + 1]
            starts[group[p, e] + 1] = at + 1
            place[at] = p
            scratch.group_value[at] = z[p, e]
    positions = work.reshape(-1, channels)
    across = work.shape[1] // channels
    for g in range(s.groups):
        first, count = starts[g], starts[g + 1] - starts[g]
        if count == 0:
            continue
        for dy in range(size):
            for dx in range(size):
                for i in range(count):
                    p = place[first + i]
                    y, x = (p // width) * s.stride + dy, (p % width) * s.stride + dx
                    scratch.group_row[i] = y * across + x
                values = scratch.group_value[first : first + count]
                column = (dy * size + dx) * channels
                _add_rows(d_decoder[g], column, positions, 0, channels, scratch.group_row, values, count)


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
    base: Floats,
    goal: Input,
    scale: Floats,
    losses: Floats,
    d_z: Floats,
    d_decoder: Floats,
    d_output_bias: Floats,
    scratch: Scratch,
) -> None:
    """Lines 9 and 10 and their gradient for the samples n0..n1; the decoded map stays in the cache.

    ``base`` is added to the decoded map; it is empty where there is none. ``scale[n]`` is the weight of one squared
    error in the loss, 0 for a sample that is not learned from.
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
        logarithms, product = 0.0, 1.0  # one logarithm of many factors
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
                if base.shape[0] > 0:
                    for c in range(channels):
                        line[c] += base[n, iy, ix, c]
                d_bias = d_output_bias[min(iy, bias_height - 1), min(ix, bias_width - 1)]
                q = iy * s.input_width + ix
                if goal.height > 0:
                    target = scratch.target
                    for e in range(scratch.pooled_count[q]):
                        target[scratch.pooled_index[q, e]] = scratch.pooled_value[q, e]
                else:
                    target = goal.image[n, iy, ix]
                if s.cross_entropy:
                    for c in range(channels):
                        # -t log(v) - (1 - t) log(1 - v) is max(a, 0) - a t + log(1 + small)
                        a = line[c] + bias[c]
                        small = math.exp(-abs(a))
                        v = (np.float32(1.0) if a > 0.0 else small) / (np.float32(1.0) + small)
                        total += max(a, np.float32(0.0)) - a * target[c]
                        product *= 1.0 + small
                        if product > _LARGE:
                            logarithms += math.log(product)
                            product = 1.0
                        line[c] = scale[n] * (v - target[c])
                elif s.sigmoid:
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
        losses[n] = (total + logarithms + math.log(product)) * scale[n]
        _decode_sample_gradient(s, index[n], z[n], decoder, d_z[n], d_decoder, scratch)
