"""The winners of each location in one Triton kernel: adds up the drive, ranks it, takes the best k times.

Imported only where the kernel runs, because torch for the CPU comes without Triton. Written for a GPU; with
``TRITON_INTERPRET=1`` in the environment before Triton is imported it runs on tensors of the CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # ranks that one program holds: 16 for each of its threads

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # the rank of a cell that must rest
_TAKEN = tl.constexpr(-(2**31))  # below the key of any number
_NAN = tl.constexpr(2**31 - 1)  # above the key of any number


@triton.jit
def _winners_kernel(
    own,
    shared,
    bias,
    lowest,
    inhibition,
    boost,
    refractory,
    index,
    drive,
    rows,
    locations,
    groups,
    CELLS_PER_GROUP: tl.constexpr,
    WINNERS: tl.constexpr,
    RESTING: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INHIBITION: tl.constexpr,
    HAS_BOOST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = tl.arange(0, GROUPS)
    row_is_there = row < rows
    group_is_there = group < groups
    is_there = row_is_there[:, None] & group_is_there[None, :]
    row_of_cells = row * (groups * CELLS_PER_GROUP)
    if HAS_INHIBITION:
        low = tl.load(lowest + row // locations, mask=row_is_there, other=0.0)[:, None]
    if HAS_SHARED:
        common = tl.load(shared + (row * groups)[:, None] + group[None, :], mask=is_there, other=0.0)

    # The best cell of each group. Keys are integers in the order of the ranks, so that a mark below all of them exists.
    best = tl.full((ROWS, GROUPS), _TAKEN, tl.int32)
    best_cell = tl.zeros((ROWS, GROUPS), tl.int32)
    for j in range(CELLS_PER_GROUP):
        cell = j * groups + group
        place = row_of_cells[:, None] + cell[None, :]
        rank = tl.load(own + place, mask=is_there, other=0.0)
        if HAS_SHARED:
            rank = common + rank
        if HAS_BIAS:
            rank += tl.load(bias + cell, mask=group_is_there, other=0.0)[None, :]
        if HAS_INHIBITION:
            rank = (rank - low + 1.0) * (1.0 - tl.load(inhibition + place, mask=is_there, other=0.0))
        if HAS_BOOST:
            rank *= tl.load(boost + cell, mask=group_is_there, other=0.0)[None, :]
        for e in range(RESTING):
            resting = tl.load(refractory + row * RESTING + e, mask=row_is_there, other=-1)
            rank = tl.where(resting[:, None] == cell[None, :], _LOWEST, rank)
        bits = tl.where(rank == 0.0, 0.0, rank).to(tl.int32, bitcast=True)  # -0.0 and 0.0 are equal
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = tl.where(rank != rank, _NAN, key)
        key = tl.where(is_there, key, _TAKEN)
        better = key > best  # not where equal: ties go to the lowest cell
        best = tl.where(better, key, best)
        best_cell = tl.where(better, cell[None, :], best_cell)

    for winner in range(WINNERS):
        top, at = tl.max(best, 1, return_indices=True, return_indices_tie_break_left=True)
        chosen = group[None, :] == at[:, None]
        cell = tl.sum(tl.where(chosen, best_cell, 0), 1)
        best = tl.where(chosen, _TAKEN, best)
        value = tl.load(own + row_of_cells + cell, mask=row_is_there, other=0.0)
        if HAS_SHARED:
            value = tl.load(shared + row * groups + at, mask=row_is_there, other=0.0) + value
        if HAS_BIAS:
            value += tl.load(bias + cell, mask=row_is_there, other=0.0)
        value = tl.where(top == _NAN, float("nan"), value)
        tl.store(index + row * WINNERS + winner, cell, mask=row_is_there)
        tl.store(drive + row * WINNERS + winner, value, mask=row_is_there)


# An operator of torch's, so that programs which trace, fake or watch tensors see one call and its shapes.
@torch.library.custom_op("torchrsm::winners", mutates_args=())
def winners(
    own: Tensor,
    groups: int,
    active_groups: int,
    shared: Tensor | None = None,
    bias: Tensor | None = None,
    lowest: Tensor | None = None,
    inhibition: Tensor | None = None,
    boost: Tensor | None = None,
    refractory: Tensor | None = None,
    elements: int = _ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Choose the winners of each row as `functional.select_winners` does, and return their drive too.

    A rank that is NaN comes first, as in `torch.sort`, and the drive of its cell is NaN then, so that the loss is NaN
    and not silently wrong. ``-0.0`` equals ``0.0``.

    Args:
        own: drive of each cell without what the others add, ``[rows, n]`` float32; n at most
            `torchrsm.rsm.kernels.cuda.MOST_CELLS`.
        groups: of a row. Cell ``j`` of group ``i`` has the index ``j * groups + i``.
        active_groups: winners of a row, at most ``groups``.
        shared: ``[rows, groups]`` float32, added for all the cells of a group; or None.
        bias: ``[n]`` float32, or None.
        lowest: the least drive of each sample, ``[b]`` float32, where there is ``inhibition``; rows are in the order
            of the samples.
        inhibition: ``[rows, n]`` float32 in 0..1, or None.
        boost: ``[n]`` float32, factors of the rank, or None.
        refractory: ``[rows, e]`` int32, cells that come last, -1 for none; or None.
        elements: about how many ranks one program takes, a power of 2.

    Returns:
        Cell index ``[rows, active_groups]`` int32, best first; and drive ``[rows, active_groups]`` float32.
    """
    rows, cells = own.shape
    index = own.new_empty((rows, active_groups), dtype=torch.int32)
    drive = own.new_empty((rows, active_groups))
    if rows == 0:
        return index, drive
    width = triton.next_power_of_2(groups)
    height = min(max(1, elements // width), triton.next_power_of_2(rows))
    with torch.cuda.device_of(own):
        _winners_kernel[(triton.cdiv(rows, height),)](
            # What is absent is never read; a pointer must stand for it.
            own,
            own if shared is None else shared,
            own if bias is None else bias,
            own if lowest is None else lowest,
            own if inhibition is None else inhibition,
            own if boost is None else boost,
            index if refractory is None else refractory,
            index,
            drive,
            rows,
            1 if lowest is None else rows // len(lowest),
            groups,
            CELLS_PER_GROUP=cells // groups,
            WINNERS=active_groups,
            RESTING=0 if refractory is None else refractory.shape[1],
            HAS_SHARED=shared is not None,
            HAS_BIAS=bias is not None,
            HAS_INHIBITION=inhibition is not None,
            HAS_BOOST=boost is not None,
            ROWS=height,
            GROUPS=width,
            enable_fp_fusion=False,  # ranks are rounded as the reference rounds them
        )
    return index, drive


@winners.register_fake
def _(own: Tensor, groups: int, active_groups: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    shape = (len(own), active_groups)
    return own.new_empty(shape, dtype=torch.int32), own.new_empty(shape)
