"""Sparse cells as a dense map, in one Triton kernel that writes each element once.

Imported only where the kernel runs, see `torchrsm.rsm.kernels.triton_winners`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 512
_ELEMENTS = 2048  # that one program writes: 16 for each of its threads


@triton.jit
def _dense_kernel(index, value, out, rows, count, ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_is_there = row < rows
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for e in range(ENTRIES):
        cell = tl.load(index + row * ENTRIES + e, mask=row_is_there, other=-1)
        v = tl.load(value + row * ENTRIES + e, mask=row_is_there, other=0.0).to(tl.float32)
        unknown = (cell >= count)[:, None]
        result = tl.where(cell[:, None] == column[None, :], v[:, None], result)
        result = tl.where(unknown, float("nan"), result)
    place = (row * count)[:, None] + column[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=row_is_there[:, None] & (column < count)[None, :])


# An operator of torch's, for the reasons given at `torchrsm.rsm.kernels.triton_winners.winners`.
@torch.library.custom_op("torchrsm::dense", mutates_args=())
def dense(index: Tensor, value: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``[rows, count]`` of this type with the values at their cells and 0 elsewhere.

    Args:
        index: ``[rows, k]`` int32, the cell of each value, different ones in a row; -1 for none. A row that names a
            cell which does not exist, ``count`` or more, holds NaN, except where a later entry stands.
        value: ``[rows, k]`` float32.
        count: cells of a row.
        dtype: float32 or bfloat16.
    """
    rows, entries = index.shape
    out = value.new_empty((rows, count), dtype=dtype)
    if rows == 0:
        return out
    width = min(triton.next_power_of_2(count), _COLUMNS)
    height = min(_ELEMENTS // width, triton.next_power_of_2(rows))
    with torch.cuda.device_of(out):
        _dense_kernel[(triton.cdiv(rows, height), triton.cdiv(count, width))](
            index,
            value.to(dtype),  # rounded by torch: Triton's interpreter cuts digits off where a GPU rounds
            out,
            rows,
            count,
            ENTRIES=entries,
            ROWS=height,
            COLUMNS=width,
            enable_fp_fusion=False,
        )
    return out


@dense.register_fake
def _(index: Tensor, value: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    return value.new_empty((len(index), count), dtype=dtype)
