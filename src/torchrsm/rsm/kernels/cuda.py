"""The engine for CUDA: dense products on maps with their channels last, the winners in one kernel.

Nothing asks the host, and no shape depends on a value, so a whole step can be captured as a CUDA graph. Sums are taken
in a fixed order: no atomic addition of floats, no convolution whose algorithm is chosen by a race. So a run repeats bit
by bit on the same card. Runs on tensors of the CPU too, for tests.

Why dense, where only k of n cells are not 0: with 512 cells, 24 winners and a memory of 3 x 3, a location costs
9 * 24 * 512 = 0.11 M multiply-adds sparse, each of which fetches a weight from the second-level cache, and 9 * 512 *
512 = 2.4 M dense on tensor cores. For 64 samples of 17 x 17 locations that is 2 G weights of 4 bytes at about 5 TB/s,
1.6 ms, against 44 G multiply-adds at about 200 T/s, 0.2 ms. The gradient of the weights has a further factor k of
zeros, 24 * 24 of 512 * 512 products, but a sparse sum needs atomic additions, one for each weight and location, whose
order changes from run to run. So the winners' gradients are written into a map of zeros, and one product takes it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as nn

from torchrsm.precision import fixed_sums, products
from torchrsm.rsm import functional as F
from torchrsm.rsm.functional import Cells, Grid
from torchrsm.rsm.kernels.reference import rank
from torchrsm.rsm.kernels.step import Context, Step, Weights

FEW_INPUTS = 512
"""Inputs of a location up to which they are collected for one product; more are left to a convolution, which collects
them piece by piece and never writes them all."""

MOST_CELLS = 4096
"""Cells of a location up to which the kernel chooses the winners, in registers; above, torch sorts them."""


class CudaEngine:
    """The step in dense products, with a precision of `torchrsm.precision`, behind the calls of `Engine`.

    Nothing wrong passes in silence, though no value can be looked at: a drive that is NaN wins and makes the loss NaN,
    and so do cells that do not exist (an index of ``n`` or more), unless tensor operations meet them, whose error for
    an index out of bounds CUDA reports late.

    Args:
        triton: whether Triton's kernels choose the winners and write maps. They do so on CUDA, and on the CPU where
            ``TRITON_INTERPRET=1``; else tensor operations do, with the same result.
    """

    def __init__(self, triton: bool = True) -> None:
        self.triton = triton

    def select(self, step: Step, weights: Weights, context: Context) -> tuple[Tensor, Tensor]:
        """See `Engine.select`."""
        drive, index = _Select.apply(
            self, step, context, weights.feedforward, weights.recurrent, weights.feedback, weights.bias
        )
        return index, drive

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor, base: Tensor | None = None) -> Tensor:
        """See `Engine.decode`."""
        x = _Decode.apply(self, step, index, z, weights.decoder) + weights.output_bias
        return F.activate(x if base is None else x + base, step.activation)

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
        loss: Tensor = _Loss.apply(self, step, index, target, learn, base, z, weights.decoder, weights.output_bias)
        return loss

    def runs_triton(self, device: torch.device) -> bool:
        """Return whether Triton's kernels work on tensors of this device."""
        on_device = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        return self.triton and on_device and triton_is_installed()

    def dense(self, cells: Cells, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Write sparse cells as a contiguous map ``[b, h, w, count]``, 0 where no cell is named.

        A cell is named at most once at a location, so the order of writing does not matter.
        """
        shape = cells.index.shape
        index, value = (part.reshape(-1, shape[3]).contiguous() for part in cells)
        if self.runs_triton(index.device):
            from torchrsm.rsm.kernels.triton_dense import dense

            written: Tensor = dense(index, value, count, dtype)
            return written.view(*shape[:3], count)
        # One long row, with a place at its end for entries that name no cell, which leaves the map aligned.
        end = len(index) * count
        place = torch.arange(0, end, count, device=index.device)[:, None] + index
        place = torch.where(index < count, place, end + 1)  # out of bounds, an error
        place = torch.where(index < 0, end, place)
        flat = torch.zeros(end + 1, dtype=dtype, device=index.device)
        flat.scatter_(0, place.flatten(), value.to(dtype).flatten())
        return flat[:end].view(*shape[:3], count)

    def winners(self, step: Step, shared: Tensor, own: Tensor, bias: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Add up the drive and choose.

        Args:
            step: sizes.
            shared: what all the cells of a group get, ``[b, h, w, g]``.
            own: what each cell gets by itself, ``[b, h, w, n]``; may be overwritten.
            bias: ``[n]``.
            context: what limits or lifts cells.

        Returns:
            Cell index and drive, ``[b, h, w, k]`` each; the drive is NaN where the rank is.
        """
        if step.cells > MOST_CELLS or not self.runs_triton(own.device):
            return _winners_by_sorting(step, F.drive(shared, own, None, bias), context)
        from torchrsm.rsm.kernels.triton_winners import winners

        lowest = inhibition = refractory = None
        if context.refractory is not None:
            refractory = context.refractory.flatten(0, 2).contiguous()
        elif context.inhibition is not None:
            # The least drive of a sample is needed before any of its cells has a rank, so the drive is written first.
            own = F.drive(shared, own, None, bias)
            lowest = own.flatten(1).amin(1)
            inhibition = context.inhibition.flatten(0, 2).contiguous()
        written = lowest is not None
        index, drive = winners(
            own.flatten(0, 2),
            step.groups,
            step.active_groups,
            None if written else shared.flatten(0, 2),
            None if written else bias.detach(),
            lowest,
            inhibition,
            None if refractory is not None else context.boost,
            refractory,
        )
        shape = (*own.shape[:3], step.active_groups)
        return index.view(shape), drive.view(shape)


@functools.cache
def triton_is_installed() -> bool:
    """Return whether Triton can be imported; torch for the CPU comes without it."""
    return importlib.util.find_spec("triton") is not None


def _winners_by_sorting(step: Step, a: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    r = rank(step, a, context)
    index = F.select_winners(r, step.groups, step.active_groups)
    place = index.long()
    return index, a.gather(-1, place).masked_fill(r.gather(-1, place).isnan(), torch.nan)


# Sums in a fixed order and a known precision.


def _rounded(x: Tensor) -> Tensor:
    """Round to the factors of a product that torch computes in float32 or tf32, which holds each bfloat16 exactly."""
    return x.bfloat16().float() if products(x.device) == "bfloat16" else x.float()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in float32; ``[m, k]`` and ``[k, n]``, float32 or bfloat16."""
    if products(a.device) != "bfloat16":
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    return _rounded(a) @ _rounded(b)


def _map_type(device: torch.device) -> torch.dtype:
    """Return the type of a map that only goes into products: half the memory where these round to bfloat16."""
    return torch.bfloat16 if products(device) == "bfloat16" else torch.float32


# Convolutions of maps with their channels last.


class _Window(NamedTuple):
    """The windows of a convolution: their side and stride, and the zeros around the map (cut off where negative)."""

    size: int
    stride: int
    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, size: int, stride: int, top: int, left: int, source: Grid, grid: Grid) -> _Window:
        """Return the windows at the locations of ``grid`` over a map of ``source``."""
        bottom = (grid.height - 1) * stride + size - source.height - top
        right = (grid.width - 1) * stride + size - source.width - left
        return cls(size, stride, top, bottom, left, right)

    def pad(self, x: Tensor) -> Tensor:
        """Put zeros around a map ``[b, h, w, c]``."""
        around = (self.left, self.right, self.top, self.bottom)
        return nn.pad(x, (0, 0, *around)) if any(around) else x

    def inputs(self, x: Tensor) -> Tensor:
        """Collect what each window sees of a map, ``[b * locations, size * size * c]``: row, column, channel."""
        if self.size == self.stride == 1:
            return self.pad(x).flatten(0, 2)
        windows = self.pad(x).unfold(1, self.size, self.stride).unfold(2, self.size, self.stride)
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)

    def collects(self, channels: int) -> bool:
        """Return whether the inputs of all windows are few enough to be written."""
        return self.size == 1 or self.size**2 * channels <= FEW_INPUTS


def _encoder(step: Step) -> _Window:
    return _Window.of(step.kernel_size, step.stride, step.top, step.left, step.input_grid, step.grid)


def _neighbourhood(step: Step) -> _Window:
    before = step.recurrent_kernel_size // 2
    return _Window.of(step.recurrent_kernel_size, 1, before, before, step.grid, step.grid)


def _convolve(x: Tensor, weight: Tensor, window: _Window) -> Tensor:
    """Multiply what each window sees ``[b, h, w, c]`` by ``weight [size * size * c, n]``: ``[b * locations, n]``."""
    channels = x.shape[3]
    if window.collects(channels):
        return _product(window.inputs(x), weight)
    out = nn.conv2d(_rounded(window.pad(x)).permute(0, 3, 1, 2), _kernel(weight, channels, window), None, window.stride)
    return out.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _weight_gradient(x: Tensor, gradient: Tensor, window: _Window) -> Tensor:
    """Return the gradient of `_convolve`'s weight; ``gradient [b, h, w, n]`` is that of its result."""
    channels, n = x.shape[3], gradient.shape[3]
    if window.collects(channels):
        return _product(window.inputs(x).t(), gradient.flatten(0, 2))
    like = x.new_empty((n, channels, window.size, window.size), dtype=torch.float32)
    _, kernel, _ = torch.ops.aten.convolution_backward(
        _rounded(gradient).permute(0, 3, 1, 2),
        _rounded(window.pad(x)).permute(0, 3, 1, 2),
        like.to(memory_format=torch.channels_last),
        None,
        [window.stride] * 2,
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [False, True, False],
    )
    weight: Tensor = kernel.permute(2, 3, 1, 0).reshape(-1, n)
    return weight


def _kernel(weight: Tensor, channels: int, window: _Window) -> Tensor:
    """Return weights as the kernel ``[n, c, size, size]`` of a convolution, channels last in memory."""
    kernel = _rounded(weight).view(window.size, window.size, channels, -1).permute(3, 2, 0, 1)
    return kernel.contiguous(memory_format=torch.channels_last)


# The resize of feedback as a product with a small matrix for the rows and one for the columns. Unlike torch's own it
# reads maps with channels last as they lie, and its gradient has a fixed order.


def _interpolation(size: int, target: int, like: Tensor) -> Tensor:
    """Return the matrix ``[target, size]`` of `functional.resize` along one side of a map."""
    identity = torch.eye(size, device=like.device)
    columns: Tensor = nn.interpolate(identity[None], target, mode="linear", align_corners=False)
    return columns[0].t()


def _add_resized(out: Tensor, x: Tensor) -> None:
    """Add a map ``[b, h, w, n]``, resized, to ``out [b, h', w', n]``."""
    batch, height, width, _ = x.shape
    rows = _interpolation(height, out.shape[1], x)
    wide = _interpolation(width, out.shape[2], x) @ x.flatten(0, 1)
    out.view(batch, out.shape[1], -1).baddbmm_(rows.expand(batch, -1, -1), wide.view(batch, height, -1))


def _resize_gradient(gradient: Tensor, grid: Grid) -> Tensor:
    """Return the gradient ``[b, h, w, n]`` of a map of this grid that was resized."""
    batch, height, width, n = gradient.shape
    rows = _interpolation(grid.height, height, gradient).t() @ gradient.view(batch, height, -1)
    return _interpolation(grid.width, width, gradient).t() @ rows.view(batch, grid.height, width, n)


# The step.


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: CudaEngine,
        step: Step,
        context: Context,
        feedforward: Tensor,
        recurrent: Tensor,
        feedback: Tensor | None,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with fixed_sums():
            kind = _map_type(bias.device)
            x = _read(engine, step, context.input, kind)
            s = context.memory
            s = engine.dense(s, step.cells, kind) if isinstance(s, Cells) else s.to(kind)
            shape = (len(s), *step.grid, -1)
            own = _convolve(s, recurrent, _neighbourhood(step)).view(shape)
            above = None
            if context.feedback is not None and feedback is not None:
                above = engine.dense(context.feedback, len(feedback), kind)
                # Multiplied on the small grid first: the resize is linear, and there are more locations after it.
                small = _product(above.flatten(0, 2), feedback)
                _add_resized(own, small.view(*above.shape[:3], -1))
            shared = _convolve(x, feedforward, _encoder(step)).view(shape)
            index, drive = engine.winners(step, shared, own, bias, context)
        ctx.engine, ctx.step = engine, step
        ctx.save_for_backward(index, x, s, above)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return drive, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_drive: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_drive is None:
            return (None,) * 7
        engine: CudaEngine = ctx.engine
        step: Step = ctx.step
        index, x, s, above = ctx.saved_tensors
        feedforward, recurrent, feedback, bias = ctx.needs_input_grad[3:]
        gradients: list[Tensor | None] = [None] * 4
        with fixed_sums():
            if feedforward:
                d_shared = engine.dense(Cells(index % step.groups, d_drive), step.groups)
                gradients[0] = _weight_gradient(x, d_shared, _encoder(step))
            d_own = engine.dense(Cells(index, d_drive), step.cells)
            if recurrent:
                gradients[1] = _weight_gradient(s, d_own, _neighbourhood(step))
            if feedback and above is not None:
                d_small = _resize_gradient(d_own, Grid(*above.shape[1:3]))
                gradients[2] = _product(above.flatten(0, 2).t(), d_small.flatten(0, 2))
            if bias:
                gradients[3] = d_own.sum((0, 1, 2))
        return None, None, None, *gradients


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: CudaEngine, step: Step, index: Tensor, z: Tensor, decoder: Tensor) -> Tensor:
        with fixed_sums():
            groups = _groups(engine, step, index, z)
            ctx.step = step
            ctx.save_for_backward(index, groups, decoder)
            return _spread(step, groups, decoder)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        index, groups, decoder = ctx.saved_tensors
        with fixed_sums():
            gradients = _spread_gradients(ctx.step, index, groups, decoder, d_x, ctx.needs_input_grad[3:5])
        return None, None, None, *gradients


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: CudaEngine,
        step: Step,
        index: Tensor,
        target: Tensor | Cells,
        learn: Tensor,
        base: Tensor | None,
        z: Tensor,
        decoder: Tensor,
        output_bias: Tensor,
    ) -> Tensor:
        with fixed_sums():
            goal = _read(engine, step, target, torch.float32)[..., : step.channels]
            groups = _groups(engine, step, index, z)
            x = _spread(step, groups, decoder) + output_bias
            x = x if base is None else x + base
            prediction = F.activate(x, step.activation)
        m = step.margin
        inside = slice(m, step.input_height - m), slice(m, step.input_width - m)
        error = prediction[:, *inside] - goal[:, *inside]
        # Samples that are left out may hold NaN, which no factor of 0 removes.
        error = torch.where(learn[:, None, None, None], error, 0.0)
        scale = 1 / (learn.sum().clamp(min=1) * error[0].numel())
        ctx.step = step
        ctx.bias_shape = output_bias.shape
        squared = not step.cross_entropy
        ctx.save_for_backward(index, groups, decoder, error, prediction if step.sigmoid and squared else None, scale)
        if squared:
            return error.square().sum() * scale
        entropy = (nn.softplus(x) - x * goal)[:, *inside]
        return torch.where(learn[:, None, None, None], entropy, 0.0).sum() * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        step: Step = ctx.step
        index, groups, decoder, error, prediction, scale = ctx.saved_tensors
        d_x = error * ((1 if step.cross_entropy else 2) * scale * d_loss)
        if step.margin:
            d_x = nn.pad(d_x, (0, 0, *(step.margin,) * 4))
        if prediction is not None:
            d_x = torch.ops.aten.sigmoid_backward(d_x, prediction)
        z_or_decoder = ctx.needs_input_grad[6:8]
        with fixed_sums():
            gradients = _spread_gradients(step, index, groups, decoder, d_x, z_or_decoder)
        d_bias = d_x.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[8] else None
        return None, None, None, None, None, None, *gradients, d_bias


def _read(engine: CudaEngine, step: Step, x: Tensor | Cells, dtype: torch.dtype) -> Tensor:
    """Return an input or a target as a map ``[b, h, w, c]``, cells of the layer below pooled."""
    if not isinstance(x, Cells):
        return x.to(dtype)
    cells = engine.dense(x, step.channels, dtype)
    return cells if step.input_pool == 1 else F.max_pool(cells, step.input_pool)


def _groups(engine: CudaEngine, step: Step, index: Tensor, z: Tensor) -> Tensor:
    """Return the values of the winners' groups as a map ``[b, h, w, g]``."""
    return engine.dense(Cells(index % step.groups, z), step.groups, _map_type(z.device))


def _spread(step: Step, groups: Tensor, decoder: Tensor) -> Tensor:
    """Return ``W_D z`` of line 9, ``[b, h, w, c]``: a product for each location, then the sum of what overlaps.

    The sum is torch's `fold`, in which each element collects what reaches it, in a fixed order.
    """
    batch, height, width, _ = groups.shape
    size, c = step.decoder_kernel_size, step.channels
    if size == 0:
        return _product(groups.flatten(1), decoder).view(batch, *step.input_grid, c)
    rows = _rounded(decoder).view(step.groups, size**2, c).permute(2, 1, 0).flatten(0, 1)
    pieces = rows @ _rounded(groups.flatten(1, 2)).transpose(1, 2)
    grid = Grid((height - 1) * step.stride + size, (width - 1) * step.stride + size)
    full = nn.fold(pieces, tuple(grid), size, stride=step.stride).permute(0, 2, 3, 1)
    top, left = step.decoder_top, step.decoder_left
    bottom, right = top + step.input_height - grid.height, left + step.input_width - grid.width
    return nn.pad(full, (0, 0, -left, right, -top, bottom))


def _spread_gradients(
    step: Step, index: Tensor, groups: Tensor, decoder: Tensor, d_x: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `_spread` for the values of the winners ``[b, h, w, k]`` and for the decoder."""
    size = step.decoder_kernel_size
    d_z = d_decoder = None
    if size == 0:
        pieces, z = d_x.flatten(1), groups.flatten(1)
    else:
        top, left = step.decoder_top, step.decoder_left
        window = _Window.of(size, step.stride, top, left, step.input_grid, step.grid)
        pieces, z = window.inputs(d_x), groups.flatten(0, 2)
    if needs[0]:
        d_groups = _product(pieces, decoder.t()).view(groups.shape)
        d_z = d_groups.gather(3, (index % step.groups).long())
    if needs[1]:
        d_decoder = _product(z.t(), pieces)
    return d_z, d_decoder
