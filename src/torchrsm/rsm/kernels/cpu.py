"""The fused sparse engine for the CPU: hands the arrays of a step to the compiled kernels, one thread for each part.

A thread takes a contiguous part of the batch and sums its gradients in a buffer of its own; the buffers are added in a
fixed order, so a run repeats bit by bit.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrsm.rsm.functional import Cells
from torchrsm.rsm.kernels import compiled
from torchrsm.rsm.kernels.compiled import Input, Limits, Matrices, Reads, Scratch
from torchrsm.rsm.kernels.step import Context, Step, Weights


class FusedEngine:
    """The sparse kernels behind the calls of `torchrsm.rsm.kernels.step.Engine`.

    Args:
        threads: parts into which a batch is cut, one thread each.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    def select(self, step: Step, weights: Weights, context: Context) -> tuple[Tensor, Tensor]:
        """See `Engine.select`."""
        drive, index = _Select.apply(
            self, step, context, weights.feedforward, weights.recurrent, weights.feedback, weights.bias
        )
        return index, drive

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor) -> Tensor:
        """See `Engine.decode`."""
        _check_index("winners", index, step.cells)
        x = _Decode.apply(self, step, index, z, weights.decoder) + weights.output_bias
        return torch.sigmoid(x) if step.sigmoid else x

    def loss(
        self, step: Step, weights: Weights, index: Tensor, z: Tensor, target: Tensor | Cells, learn: Tensor
    ) -> Tensor:
        """See `Engine.loss`."""
        _check_index("winners", index, step.cells)
        if isinstance(target, Cells):
            _check_index("target", target.index, step.channels)
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
        process = os.getpid()
        if self._pool is None or self._pool._max_workers < parts - 1 or self._pool_process != process:
            # A process that was forked has the pool, but none of its threads.
            self._pool = ThreadPoolExecutor(parts - 1, thread_name_prefix="torchrsm")
            self._pool_process = process
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
        constants = (step, reads, limits, weights, _locations(index), _locations(drive))
        engine.run(compiled.select, batch, lambda part: (*constants, _scratch(step, reads.input, reads)))
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
        shapes = [
            feedforward if sparse else feedforward[::-1],
            recurrent,
            feedback or (0, 0),
            bias,
        ]
        batch = d_drive.shape[0]
        sums = [Matrices(*(np.zeros(shape, np.float32) for shape in shapes)) for _ in range(engine.parts(batch))]
        constants = (step, reads, _locations(ctx.index), _locations(d_drive))
        engine.run(
            compiled.select_gradient, batch, lambda part: (*constants, sums[part], _scratch(step, reads.input, reads))
        )
        d_feedforward, d_recurrent, d_feedback, d_bias = _add_parts(sums)
        return (
            None,
            None,
            None,
            d_feedforward if sparse else d_feedforward.t().contiguous(),
            d_recurrent,
            None if feedback is None else d_feedback,
            d_bias,
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: FusedEngine, step: Step, index: Tensor, z: Tensor, decoder: Tensor) -> Tensor:
        out = torch.empty(index.shape[0], step.input_height, step.input_width * step.channels)
        arguments = (step, _locations(index), _locations(z), _array(decoder), out.numpy())
        engine.run(compiled.decode, index.shape[0], lambda part: (*arguments, _scratch(step, _NO_INPUT)))
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
        engine.run(compiled.decode_gradient, batch, lambda part: (*arguments, sums[part][0], _scratch(step, _NO_INPUT)))
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
            goal,
            scale.numpy(),
        )
        engine.run(
            compiled.loss, batch, lambda part: (*constants, loss, _locations(d_z), *sums[part], _scratch(step, goal))
        )
        # The forward pass gives the gradient almost for free while it holds the decoded map, so the gradient is kept.
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
_NO_INPUT = Input(_NO_IMAGE.numpy(), np.empty((0, 0, 0), np.int32), np.empty((0, 0, 0), np.float32), 0, 0)


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _locations(x: Tensor) -> Any:
    """Return a map ``[b, h, w, ...]`` as an array ``[b, h * w, ...]``."""
    return x.detach().contiguous().flatten(1, 2).numpy()


def _add_parts(sums: Sequence[Sequence[Any]]) -> list[Tensor]:
    first, *others = ([torch.from_numpy(array) for array in part] for part in sums)
    for part in others:
        for total, array in zip(first, part, strict=True):
            total += array
    return first


def _scratch(s: Step, x: Input, reads: Reads | None = None) -> Scratch:
    """Return working memory for one thread; ``reads`` where cells are to be selected."""
    cells, k = s.cells, s.active_groups
    sparse = x.height > 0
    pooled = s.input_height * s.input_width * sparse
    entries_in = x.cell_index.shape[2] * s.input_pool**2
    memory = 0 if reads is None else reads.memory_index.shape[2]
    locations_above, winners_above = (0, 0) if reads is None else reads.above_index.shape[1:]
    taps = s.kernel_size**2 * (entries_in if sparse else x.image.shape[3])
    size, channels = s.decoder_kernel_size, s.channels
    work = (
        max(s.decoder_top + s.input_height, (s.height - 1) * s.stride + size),
        max(s.decoder_left + s.input_width, (s.width - 1) * s.stride + size) * channels,
    )
    entries = max(taps, s.recurrent_kernel_size**2 * memory, winners_above, k)
    return Scratch(
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
        above=np.empty((locations_above, cells), np.float32),
        above_row=np.empty((0 if reads is None else reads.above_width, cells), np.float32),
        patch=np.empty(taps, np.float32),
        decoder_patch=np.empty(size**2 * channels, np.float32),
        work=np.empty(work if size else (s.input_height, s.input_width * channels), np.float32),
        target=np.zeros(channels, np.float32),
    )


def _input(x: Tensor | Cells) -> Input:
    if isinstance(x, Cells):
        return Input(_array(_NO_IMAGE), *_cell_arrays(x), *x.index.shape[1:3])
    return Input(_array(x), *_cell_arrays(Cells(_NO_CELLS, _NO_MAP)), 0, 0)


def _cell_arrays(cells: Cells) -> tuple[Any, Any]:
    return _locations(cells.index), _locations(cells.value)


def _reads(step: Step, context: Context, feedback: Tensor | None) -> Reads:
    memory, x = context.memory, context.input
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
