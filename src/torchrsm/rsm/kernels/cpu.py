"""The fused sparse engine for the CPU: hands the arrays of a step to the compiled kernels, one thread for each part.

A thread takes a contiguous part of the batch and sums small gradients in a buffer of its own; the buffers are added in
a fixed order, so a run repeats bit by bit. The large gradients, of weights that read cells, are cut by source cell: a
thread writes the rows of its cells and no others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchrsm.precision import products
from torchrsm.rsm.functional import Cells, Grid
from torchrsm.rsm.kernels import compiled
from torchrsm.rsm.kernels.compiled import (
    Entries,
    Input,
    Limits,
    Matrices,
    Packed,
    Reads,
    Scratch,
    Taps,
    Targets,
)
from torchrsm.rsm.kernels.step import Context, Step, Weights
from torchrsm.rsm.kernels.vectors import LANES

_T = TypeVar("_T")


class FusedEngine:
    """The sparse kernels behind the calls of `torchrsm.rsm.kernels.step.Engine`.

    With bfloat16 (`torchrsm.precision`) the weights that read cells are rounded before they are added up; the sums, and
    all that follows, are float32.

    Args:
        threads: parts into which a batch is cut, one thread each.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0
        self._idle: dict[Any, list[Any]] = {}  # working memory that no step uses at the moment, by its sizes

    def select(self, step: Step, weights: Weights, context: Context) -> tuple[Tensor, Tensor]:
        """See `Engine.select`."""
        drive, index = _Select.apply(
            self, step, context, weights.feedforward, weights.recurrent, weights.feedback, weights.bias
        )
        return index, drive

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor, base: Tensor | None = None) -> Tensor:
        """See `Engine.decode`."""
        _check_index("winners", index, step.cells)
        x = _Decode.apply(self, step, index, z, weights.decoder) + weights.output_bias
        if base is not None:
            x = x + base
        return torch.sigmoid(x) if step.sigmoid else x

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
        """See `Engine.loss`."""
        _check_index("winners", index, step.cells)
        if isinstance(target, Cells):
            _check_index("target", target.index, step.channels)
        loss: Tensor = _Loss.apply(self, step, index, target, learn, base, z, weights.decoder, weights.output_bias)
        return loss

    def run(self, kernel: Callable[..., None], count: int, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        """Call ``kernel(first, last, *arguments(part))`` for each part of ``count`` samples or rows, a thread each.

        A part has working memory of its own among its arguments.
        """
        parts = self.parts(count)
        bounds = [part * count // parts for part in range(parts + 1)]
        self._in_threads(parts, lambda part: kernel(bounds[part], bounds[part + 1], *arguments(part)))

    def run_in_pieces(
        self, kernel: Callable[..., None], count: int, arguments: Callable[[int], tuple[Any, ...]]
    ) -> None:
        """Do what `run` does in pieces that a thread takes when it is free; for results that no order of them changes.

        Cells are on for different times, so equal parts would not be equally long.
        """
        parts = self.parts(count)
        size = -(-count // (_PIECES * parts)) if parts > 1 else count
        pieces = iter(range(0, count, size))  # `next` of it is atomic

        def work(part: int) -> None:
            mine = arguments(part)
            for first in pieces:
                kernel(first, min(first + size, count), *mine)

        self._in_threads(parts, work)

    def side_by_side(self, tasks: Sequence[Callable[[], _T]]) -> list[_T]:
        """Call each task, in as many threads as there are for so many, and return what each of them returned.

        No task may use this engine: its threads are all taken.
        """
        left = iter(enumerate(tasks))  # `next` of it is atomic
        results: dict[int, _T] = {}

        def work(part: int) -> None:
            for number, task in left:
                results[number] = task()

        self._in_threads(self.parts(len(tasks)), work)
        return [results[number] for number in range(len(tasks))]

    def _in_threads(self, parts: int, work: Callable[[int], None]) -> None:
        """Call ``work(part)`` for each part, the first in this thread."""
        if parts == 1:
            work(0)
            return
        process = os.getpid()
        if self._pool is None or self._pool._max_workers < parts - 1 or self._pool_process != process:
            # A process that was forked has the pool, but none of its threads.
            # A thread asks for its number of torch threads before it needs them, which sets them as in this thread.
            self._pool = ThreadPoolExecutor(parts - 1, "torchrsm", initializer=torch.get_num_threads)
            self._pool_process = process
        waiting = [self._pool.submit(work, part) for part in range(1, parts)]
        work(0)
        for future in waiting:
            future.result()

    def write_gradient(
        self,
        gradient: Tensor,
        list_cells: Callable[..., None],
        most: int,
        targets: Targets,
        winners: Any,
        d_drive: Any,
        batch: int,
    ) -> None:
        """Write the gradient of weights that read cells, see `compiled.cell_gradient`.

        Args:
            gradient: ``[taps * source cells, n]``.
            list_cells: called as ``list_cells(n0, n1, entries=entries)``; lists the source cells that were on in these
                samples. That is done for as many samples at a time as `_MOST_ENTRIES` allows.
            most: cells that it may list in a sample.
            targets: where the taps of a place lie.
            winners: ``[b * locations, k]``, columns of the gradient; ``d_drive`` likewise, the gradient for them.
            batch: b.
        """
        taps = targets.tap.shape[1]
        cells = len(gradient) // taps
        at_once = max(1, min(batch, _MOST_ENTRIES // max(most, 1)))
        with (
            self._borrowed(("entries", cells, at_once * most), _entries) as entries,
            self._borrowed(("sums", self.parts(cells), taps, gradient.shape[1]), _sums) as sums,
        ):
            for n0 in range(0, batch, at_once):
                list_cells(n0, min(n0 + at_once, batch), entries=entries)
                constants = (n0 > 0, targets, len(winners) // batch, entries, winners, d_drive, gradient.numpy())
                self.run_in_pieces(compiled.cell_gradient, cells, lambda part: (*constants, sums[part]))  # noqa: B023

    @contextmanager
    def packed(self, weights: Any) -> Iterator[Any]:
        """Lend weights that are rounded to bfloat16, of no rows where the engine computes in float32."""
        if products(_CPU) != "bfloat16" or weights is None or weights.shape[1] < _NARROWEST:
            yield _NO_WORDS
            return
        with self._borrowed(("words", weights.shape[0], weights.shape[1] // 32 * 16), _words) as words:
            self.run(compiled.pack, len(weights), lambda part: (weights.view(np.uint32), words))
            yield words

    @contextmanager
    def scratch(self, step: Step, x: Input, batch: int, reads: Reads | None = None) -> Iterator[list[Scratch]]:
        """Lend working memory for the parts of a batch; ``reads`` where cells are to be selected."""
        sizes = _scratch_sizes(step, x, reads)
        with self._borrowed((sizes, self.parts(batch)), _scratches) as found:
            yield found

    @contextmanager
    def _borrowed(self, key: Any, make: Callable[[Any], Any]) -> Iterator[Any]:
        """Lend what ``make(key)`` once made; steps in several threads at once get different ones."""
        idle = self._idle.setdefault(key, [])
        try:
            found = idle.pop()
        except IndexError:
            found = make(key)
        yield found
        if len(self._idle) > _MOST_KEPT:
            self._idle.clear()
        self._idle.setdefault(key, []).append(found)

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
        reads = _reads(step, context, feedback)
        batch = reads.memory_index.shape[0]
        index = torch.empty(batch, *step.grid, step.active_groups, dtype=torch.int32)
        drive = torch.empty(batch, *step.grid, step.active_groups)
        limits = Limits(
            _locations(_NO_CELLS if context.refractory is None else context.refractory),
            _locations(_NO_MAP if context.inhibition is None else context.inhibition),
            _array(_NO_VECTOR if context.boost is None else context.boost),
        )
        weights = Matrices(
            _array(feedforward), _array(recurrent), _array(_NO_MATRIX if feedback is None else feedback), _array(bias)
        )
        with (
            engine.packed(weights.feedforward if reads.input.height else None) as packed_feedforward,
            engine.packed(weights.recurrent) as packed_recurrent,
            engine.scratch(step, reads.input, batch, reads) as scratch,
        ):
            packed = Packed(packed_feedforward, packed_recurrent)
            constants = (step, reads, limits, weights, packed, _locations(index), _locations(drive))
            engine.run(compiled.select, batch, lambda part: (*constants, scratch[part]))
        ctx.engine, ctx.step, ctx.reads, ctx.index = engine, step, reads, index
        ctx.shapes = [None if w is None else w.shape for w in (feedforward, recurrent, feedback, bias)]
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return drive, index

    @staticmethod
    def backward(ctx: Any, d_drive: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_drive is None:
            return (None,) * 7
        engine: FusedEngine = ctx.engine
        step: Step = ctx.step
        reads: Reads = ctx.reads
        sparse = reads.input.height > 0
        feedforward, recurrent, feedback, bias = ctx.shapes
        # A map's feed-forward gradient is summed transposed, so that one winner writes one contiguous run.
        shapes = [(0, 0) if sparse else feedforward[::-1], (0, 0), feedback or (0, 0), bias]
        batch = d_drive.shape[0]
        d = _locations(d_drive)
        index = _locations(ctx.index)
        sums = [Matrices(*(np.zeros(shape, np.float32) for shape in shapes)) for _ in range(engine.parts(batch))]
        constants = (step, reads, index, d)
        learns = (d != 0).any((1, 2))
        d_recurrent = torch.empty(recurrent)
        d_input = torch.empty(feedforward) if sparse else None
        with engine.scratch(step, reads.input, batch, reads) as scratch:
            engine.run(compiled.select_gradient, batch, lambda part: (*constants, sums[part], scratch[part]))
            winners, every = index.reshape(-1, step.active_groups), d.reshape(-1, step.active_groups)
            lists = partial(compiled.sort_memory, s=step, r=reads, learns=learns, scratch=scratch[0])
            size = reads.memory_index[0].size
            engine.write_gradient(d_recurrent, lists, size, _memory_targets(step), winners, every, batch)
            if d_input is not None:
                lists = partial(compiled.sort_input, s=step, r=reads, learns=learns, scratch=scratch[0])
                size, winners = scratch[0].pooled_index.size, winners % step.groups
                engine.write_gradient(d_input, lists, size, _input_targets(step), winners, every, batch)
        d_image, _none, d_feedback, d_bias = _add_parts(sums)
        return (
            None,
            None,
            None,
            d_image.t().contiguous() if d_input is None else d_input,
            d_recurrent,
            None if feedback is None else d_feedback,
            d_bias,
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: FusedEngine, step: Step, index: Tensor, z: Tensor, decoder: Tensor) -> Tensor:
        out = torch.empty(index.shape[0], step.input_height, step.input_width * step.channels)
        arguments = (step, _locations(index), _locations(z), _array(decoder), out.numpy())
        with engine.scratch(step, _NO_INPUT, index.shape[0]) as scratch:
            engine.run(compiled.decode, index.shape[0], lambda part: (*arguments, scratch[part]))
        ctx.engine, ctx.step = engine, step
        ctx.save_for_backward(index, z, decoder)
        decoded: Tensor = out.unflatten(2, (step.input_width, step.channels))
        return decoded

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        engine: FusedEngine = ctx.engine
        step: Step = ctx.step
        index, z, decoder = ctx.saved_tensors
        batch, d_z = index.shape[0], torch.empty(z.shape)
        sums = [[np.zeros(decoder.shape, np.float32)] for _ in range(engine.parts(batch))]
        arguments = (step, _locations(index), _locations(z), _array(decoder), _array(d_out.flatten(2)), _locations(d_z))
        with engine.scratch(step, _NO_INPUT, batch) as scratch:
            engine.run(compiled.decode_gradient, batch, lambda part: (*arguments, sums[part][0], scratch[part]))
        return None, None, None, d_z, _add_parts(sums)[0]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: FusedEngine,
        step: Step,
        index: Tensor,
        target: Tensor | Cells,
        learn: Tensor,
        base: Tensor | None,
        z: Tensor,
        decoder: Tensor,
        output_bias: Tensor,
    ) -> Tensor:
        goal = _input(target)
        batch = z.shape[0]
        inner = (step.input_height - 2 * step.margin) * (step.input_width - 2 * step.margin) * step.channels
        scale = learn.float() / (learn.sum().clamp(min=1) * inner)
        loss = np.zeros(batch, np.float32)
        d_z = torch.zeros(z.shape)
        sums = [
            [np.zeros(decoder.shape, np.float32), np.zeros(output_bias.shape, np.float32)]
            for _ in range(engine.parts(batch))
        ]
        constants = (
            step,
            _locations(index),
            _locations(z),
            _array(decoder),
            _array(output_bias),
            _array(_NO_MAP if base is None else base),
            goal,
            scale.numpy(),
        )
        with engine.scratch(step, goal, batch) as scratch:
            engine.run(
                compiled.loss, batch, lambda part: (*constants, loss, _locations(d_z), *sums[part], scratch[part])
            )
        # The forward pass gives the gradient almost for free while it holds the decoded map, so the gradient is kept.
        ctx.save_for_backward(d_z, *_add_parts(sums))
        return torch.tensor(loss.sum(dtype=np.float64), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None,) * 6, *(d_loss * gradient for gradient in ctx.saved_tensors))


_CPU = torch.device("cpu")

_TILE_BYTES = 2**19
"""Of the drives that are computed at once. With the weights of one tap they fit into the second cache of a core."""

_MOST_ENTRIES = 2**21
"""Cells that were on, listed at once for a gradient."""

_NARROWEST = 64
"""Columns from which on weights are packed."""

_LARGE_PAGE = 2**21
"""Bytes."""

_NO_WORDS = np.empty((0, 0), np.uint32)

_PIECES = 8
"""Pieces for each thread, where threads take them when they are free."""

_MOST_KEPT = 64
"""Kinds of working memory that are kept for the next step."""

_NO_CELLS = torch.empty(0, 0, 0, 0, dtype=torch.int32)
_NO_MAP = torch.empty(0, 0, 0, 0)
_NO_IMAGE = torch.empty(1, 0, 0, 0)
_NO_MATRIX = torch.empty(0, 0)
_NO_VECTOR = torch.empty(0)
_NO_INPUT = Input(_NO_IMAGE.numpy(), np.empty((0, 0, 0), np.int32), np.empty((0, 0, 0), np.float32), 0, 0)


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _locations(x: Tensor) -> Any:
    """Return a map ``[b, h, w, ...]`` as an array ``[b, h * w, ...]``."""
    array = x.detach().contiguous().numpy()
    batch, height, width, *rest = array.shape
    return array.reshape(batch, height * width, *rest)


def _add_parts(sums: Sequence[Sequence[Any]]) -> list[Tensor]:
    first, *others = ([torch.from_numpy(array) for array in part] for part in sums)
    for part in others:
        for total, array in zip(first, part, strict=True):
            total += array
    return first


class _Sizes(NamedTuple):
    """What the sizes of working memory depend on."""

    step: Step
    entries_in: int
    channels_in: int
    sparse: bool
    memory: int
    locations_above: int
    winners_above: int
    above_width: int
    selects: bool


def _scratch_sizes(s: Step, x: Input, reads: Reads | None) -> _Sizes:
    sparse = x.height > 0
    return _Sizes(
        s,
        x.cell_index.shape[2] * s.input_pool**2,
        x.image.shape[3],
        sparse,
        0 if reads is None else reads.memory_index.shape[2],
        0 if reads is None else reads.above_index.shape[1],
        0 if reads is None else reads.above_index.shape[2],
        0 if reads is None else reads.above_width,
        reads is not None,
    )


def _scratches(key: tuple[_Sizes, int]) -> list[Scratch]:
    return [_scratch(key[0]) for _ in range(key[1])]


def _scratch(sizes: _Sizes) -> Scratch:
    """Return working memory for one thread."""
    s = sizes.step
    cells, k = s.cells, s.active_groups
    locations = s.height * s.width
    pooled = s.input_height * s.input_width * sizes.sparse
    taps = 0 if sizes.sparse else s.kernel_size**2 * sizes.channels_in
    size, channels = s.decoder_kernel_size, s.channels
    work = (
        max(s.decoder_top + s.input_height, (s.height - 1) * s.stride + size),
        max(s.decoder_left + s.input_width, (s.width - 1) * s.stride + size) * channels,
    )
    entries = max(taps, sizes.winners_above, k)
    tiles = -(-locations // max(1, _TILE_BYTES // (4 * cells)))
    tile = -(-locations // tiles) if sizes.selects else 0
    remembered = locations if sizes.selects else 0
    return Scratch(
        rows=np.empty(entries, np.int32),
        values=np.empty(entries, np.float32),
        pooled_index=np.empty((pooled, sizes.entries_in), np.int32),
        pooled_value=np.empty((pooled, sizes.entries_in), np.float32),
        pooled_count=np.empty(pooled, np.int32),
        memory_index=np.empty((remembered, sizes.memory), np.int32),
        memory_value=np.empty((remembered, sizes.memory), np.float32),
        memory_count=np.empty(remembered, np.int32),
        drives=np.empty((tile, cells), np.float32),
        rank=np.empty(cells, np.float32),
        shared=np.empty((tile if s.cells_per_group > 1 else 0, s.groups), np.float32),
        best=np.empty(s.groups, np.float32),
        best_value=np.empty(k, np.float32),
        best_group=np.empty(k, np.int32),
        column=np.empty(compiled.MOST_COLUMNS, np.float32),
        kept=np.empty(s.groups + LANES, np.float32),
        position=np.empty(s.groups + LANES, np.int32),
        above=np.empty((sizes.locations_above, cells), np.float32),
        above_row=np.empty((sizes.above_width, cells), np.float32),
        patch=np.empty(taps, np.float32),
        decoder_patch=np.empty(size**2 * channels, np.float32),
        group=np.empty((locations, k), np.int32),
        group_starts=np.empty(s.groups + 2, np.int32),
        group_place=np.empty(locations * k, np.int32),
        group_row=np.empty(locations, np.int32),
        group_value=np.empty(locations * k, np.float32),
        work=np.empty(work if size else (s.input_height, s.input_width * channels), np.float32),
        target=np.zeros(channels, np.float32),
    )


def _entries(key: tuple[str, int, int]) -> Entries:
    _, cells, count = key
    return Entries(
        starts=np.empty(cells + 2, np.int32),
        place=np.empty(count, np.int32),
        value=np.empty(count, np.float32),
        unsorted_cell=np.empty(count, np.int32),
        unsorted_place=np.empty(count, np.int32),
        unsorted_value=np.empty(count, np.float32),
    )


def _words(key: tuple[str, int, int]) -> Any:
    """Return room for words that begins with a large page of memory, where there are such."""
    _, rows, columns = key
    room = np.empty(rows * columns * 4 + _LARGE_PAGE, np.uint8)
    first = -room.ctypes.data % _LARGE_PAGE
    return room[first : first + rows * columns * 4].view(np.uint32).reshape(rows, columns)


def _sums(key: tuple[str, int, int, int]) -> list[Any]:
    _, parts, taps, columns = key
    return [np.empty((taps, columns), np.float32) for _ in range(parts)]


@functools.cache
def _taps(size: int, stride: int, before: int, locations: int, source: int) -> Any:
    """Return ``[locations, size]``: the row of the source at each tap of each location, -1 outside of it."""
    at = np.arange(locations)[:, None] * stride - before + np.arange(size)
    return np.where((at >= 0) & (at < source), at, -1).astype(np.int32)


@functools.cache
def _targets(size: int, stride: int, before: Grid, grid: Grid, source: Grid) -> Targets:
    """Return which locations of ``grid`` each place of the source reaches by which taps of a square kernel.

    Args:
        size: side of the kernel.
        stride: of the locations.
        before: rows and columns of zeros before the source's first.
        grid: the locations.
        source: the places.
    """
    at, there = [], []
    for offset, locations, places in zip(before, grid, source, strict=True):
        ahead = np.arange(places)[:, None] + offset - np.arange(size)
        at.append(ahead // stride)
        there.append((ahead % stride == 0) & (at[-1] >= 0) & (at[-1] < locations))
    location = at[0][:, None, :, None] * grid.width + at[1][None, :, None, :]  # row, column, tap's row, tap's column
    found = (there[0][:, None, :, None] & there[1][None, :, None, :]).reshape(-1, size * size)
    first = np.argsort(~found, axis=1, kind="stable")  # those that are there, in order
    location = np.take_along_axis(location.reshape(-1, size * size), first, 1)
    return Targets(*(np.ascontiguousarray(x.astype(np.int32)) for x in (found.sum(1), first, location)))


def _memory_targets(s: Step) -> Targets:
    r = s.recurrent_kernel_size
    return _targets(r, 1, Grid(r // 2, r // 2), s.grid, s.grid)


def _input_targets(s: Step) -> Targets:
    return _targets(s.kernel_size, s.stride, Grid(s.top, s.left), s.grid, s.input_grid)


def _input(x: Tensor | Cells) -> Input:
    if isinstance(x, Cells):
        return Input(_array(_NO_IMAGE), *_cell_arrays(x), *x.index.shape[1:3])
    return Input(_array(x), *_cell_arrays(Cells(_NO_CELLS, _NO_MAP)), 0, 0)


def _cell_arrays(cells: Cells) -> tuple[Any, Any]:
    return _locations(cells.index), _locations(cells.value)


def _reads(step: Step, context: Context, feedback: Tensor | None) -> Reads:
    memory, x, neighbours = context.memory, context.input, step.recurrent_kernel_size
    if isinstance(memory, Cells):
        _check_index("memory", memory.index, step.cells)
    else:
        everything = torch.arange(memory.shape[-1], dtype=torch.int32).expand(memory.shape)
        memory = Cells(everything, memory)
    if isinstance(x, Cells):
        _check_index("input", x.index, step.channels)
    if context.refractory is not None and context.refractory is not memory.index:
        _check_index("refractory", context.refractory, step.cells)
    above = Cells(_NO_CELLS, _NO_MAP)
    if feedback is not None and context.feedback is not None:
        above = context.feedback
        _check_index("feedback", above.index, feedback.shape[0])
    return Reads(
        _input(x),
        *_cell_arrays(memory),
        *_cell_arrays(above),
        above.index.shape[2],
        Taps(
            _taps(step.kernel_size, step.stride, step.top, step.height, step.input_height),
            _taps(step.kernel_size, step.stride, step.left, step.width, step.input_width),
        ),
        Taps(*(_taps(neighbours, 1, neighbours // 2, size, size) for size in step.grid)),
        *_interpolation(above.index.shape[1], step.height),
        *_interpolation(above.index.shape[2], step.width),
    )


def _check_index(name: str, index: Tensor, count: int) -> None:
    """Refuse cells that do not exist, for which compiled code would read foreign memory."""
    if index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < -1 or high >= count:
            raise ValueError(f"{name} must name cells in -1..{count - 1}, -1 for none; got {low}..{high}")


@functools.cache
def _interpolation(size: int, target: int) -> tuple[Any, Any]:
    """Return the two sources of each target position and the weight of the second, bilinear between centres."""
    if size == 0:
        return np.zeros((target, 2), np.int32), np.zeros(target, np.float32)
    source = ((torch.arange(target) + 0.5) * (size / target) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=size - 1)
    pair = torch.stack((first, (first + 1).clamp(max=size - 1)), 1).to(torch.int32)
    return pair.numpy(), (source - first).to(torch.float32).numpy()
