"""The Triton kernels against the reference, row by row; in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch

from torchrsm.rsm.functional import Cells, Grid, select_winners, to_dense
from torchrsm.rsm.kernels import Context, Step
from torchrsm.rsm.kernels.cuda import MOST_CELLS, triton_is_installed
from torchrsm.rsm.kernels.reference import rank

pytestmark = pytest.mark.skipif(not triton_is_installed(), reason="needs triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INF, NAN = torch.inf, torch.nan
LEAST, MOST = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max


def chosen(r, groups, k, **others):
    from torchrsm.rsm.kernels.triton_winners import winners

    others = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in others.items()}
    index, drive = winners(r.to(DEVICE), groups, k, **others)
    return index.cpu(), drive.cpu()


def same_as_the_reference(r, groups, k, **others):
    index, drive = chosen(r, groups, k, **others)
    assert index.dtype == torch.int32
    assert torch.equal(index, select_winners(r, groups, k))
    assert torch.equal(drive.view(torch.int32), r.gather(1, index.long()).view(torch.int32))  # bit by bit


SIZES = [  # groups, cells of a group, winners
    (1, 1, 1),
    (7, 1, 7),
    (16, 1, 1),
    (33, 3, 5),
    (64, 8, 3),
    (50, 1, 50),
    (128, 1, 24),
    (5, 9, 5),
]


def rows_of_any_kind(count, cells, seed):
    """Rows with many ties, few, or none; constant rows; zeros of both signs; infinities; the ends of float32."""
    random = torch.Generator().manual_seed(seed)

    def some(*values):
        return torch.tensor(values)[torch.randint(len(values), (count, cells), generator=random)]

    plain = torch.randn(count, cells, generator=random)
    constant = torch.randn(count, 1, generator=random).expand(count, cells)
    falling = torch.arange(cells, 0.0, -1).expand(count, cells)
    kinds = [
        *(plain, plain.round(), (plain * 2).round() / 2, constant, falling, falling.flip(1), plain * 1e-42),
        *(some(0.0, -0.0), some(0.0, -0.0, -1e-45, 1e-45), some(INF, -INF), some(-INF, -INF, -1.0), some(-INF)),
        *(some(LEAST, -INF, MOST), some(INF, MOST, LEAST, 0.0, -0.0, 1.0, -INF)),
    ]
    return torch.cat(kinds)


@pytest.mark.parametrize(("groups", "cells_per_group", "k"), SIZES)
def test_winners_of_any_rows(groups, cells_per_group, k):
    rows = rows_of_any_kind(16, groups * cells_per_group, seed=groups)
    assert len(rows) * len(SIZES) > 1000
    same_as_the_reference(rows, groups, k, elements=16_384)  # fewer programs than a GPU takes: each costs time here


@pytest.mark.parametrize("elements", [32, 65_536])
def test_the_rows_of_a_program_do_not_matter(elements):
    same_as_the_reference(rows_of_any_kind(3, 30, seed=1), 10, 4, elements=elements)


@pytest.mark.no_cover
def test_rows_of_the_most_cells():
    same_as_the_reference(rows_of_any_kind(1, MOST_CELLS, seed=2), MOST_CELLS, 24)
    same_as_the_reference(rows_of_any_kind(1, MOST_CELLS, seed=3), MOST_CELLS // 8, 5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_rows(count):
    same_as_the_reference(torch.randn(count, 12), 6, 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_not_a_number_wins_first_and_is_told(sign):
    """As in the reference, whatever the sign of the NaN; so no loss can hide it."""
    rows = rows_of_any_kind(2, 24, seed=4)
    nan = torch.tensor([NAN]).view(torch.int32).bitwise_or(0 if sign == 1 else -(2**31)).view(torch.float32)
    for n, row in enumerate(rows):
        row[[n % 24, (5 * n + 3) % 24]] = nan
    index, drive = chosen(rows, 8, 8)
    assert torch.equal(index, select_winners(rows, 8, 8))
    assert drive[:, 0].isnan().all()
    assert torch.equal(drive.isnan(), rows.gather(1, index.long()).isnan())


def step(groups, cells_per_group, k):
    return Step.of(
        groups=groups,
        cells_per_group=cells_per_group,
        active_groups=k,
        kernel_size=1,
        stride=1,
        recurrent_kernel_size=1,
        decoder_kernel_size=1,
        input_grid=Grid(4, 5),
        channels=1,
        input_pool=1,
        activation="identity",
        margin=0,
    )


@pytest.mark.parametrize("what", ["refractory", "inhibition", "boost", "inhibition and boost"])
@pytest.mark.parametrize(("groups", "cells_per_group", "k"), [(9, 1, 4), (6, 4, 6), (3, 1, 3)])
def test_limits_change_the_order_as_in_the_reference(what, groups, cells_per_group, k):
    random = torch.Generator().manual_seed(0)
    a = rows_of_any_kind(40, groups * cells_per_group, seed=5)[:320].clamp(-50, 50)  # 16 samples of 20 locations
    a = a.view(16, 4, 5, -1)
    order = torch.rand(a.shape, generator=random).argsort(-1)[..., :k].to(torch.int32)
    inhibition = (torch.rand(a.shape, generator=random) * 4).round() / 4
    context = Context(
        a,
        a,
        refractory=order.masked_fill(order % 5 == 0, -1) if what == "refractory" else None,
        inhibition=inhibition if "inhibition" in what else None,
        boost=torch.rand(a.shape[-1], generator=random) + 0.5 if "boost" in what else None,
    )
    r = rank(step(groups, cells_per_group, k), a, context)
    expected = select_winners(r, groups, k)
    index, drive = chosen(
        a.flatten(0, 2),
        groups,
        k,
        lowest=a.amin((1, 2, 3)) if context.inhibition is not None else None,
        inhibition=None if context.inhibition is None else context.inhibition.flatten(0, 2),
        boost=context.boost,
        refractory=None if context.refractory is None else context.refractory.flatten(0, 2),
    )
    assert torch.equal(index.view(expected.shape), expected)
    assert torch.equal(drive, a.flatten(0, 2).gather(1, index.long()))
    assert (expected != select_winners(a, groups, k)).any()


def test_what_groups_share_and_the_bias_are_added():
    random = torch.Generator().manual_seed(6)
    own, shared, bias = (torch.randn(shape, generator=random) for shape in ((50, 21), (50, 7), (21,)))
    a = shared.repeat(1, 3) + own + bias
    index, drive = chosen(own, 7, 4, shared=shared, bias=bias)
    assert torch.equal(index, select_winners(a, 7, 4))
    assert torch.equal(drive, a.gather(1, index.long()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "count", "k"), [(0, 5, 2), (1, 1, 1), (130, 7, 3), (9, 1030, 24), (600, 64, 3)])
def test_cells_become_a_map(rows, count, k, dtype):
    from torchrsm.rsm.kernels.triton_dense import dense

    random = torch.Generator().manual_seed(rows)
    index = torch.rand(rows, count, generator=random).argsort(1)[:, :k].to(torch.int32)
    value = torch.randn(index.shape, generator=random)
    missing = torch.rand(index.shape, generator=random) < 0.25
    cells = Cells(index.masked_fill(missing, -1), value.masked_fill(missing, 0.0))
    out = dense(cells.index.to(DEVICE), cells.value.to(DEVICE), count, dtype).cpu()
    assert out.dtype == dtype
    assert torch.equal(out, to_dense(cells, count).to(dtype))


def test_cells_that_do_not_exist_make_a_row_not_a_number():
    from torchrsm.rsm.kernels.triton_dense import dense

    index = torch.tensor([[0, 2], [1, 3], [9, -1], [-1, -1]], dtype=torch.int32, device=DEVICE)
    out = dense(index, torch.ones(4, 2, device=DEVICE), 3, torch.float32).cpu()
    assert out.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(out[[0, 3]], torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torchrsm.rsm.kernels.triton_dense import _dense_kernel
from torchrsm.rsm.kernels.triton_winners import _winners_kernel

TYPES = {"refractory": "*i32", "index": "*i32", "rows": "i32", "locations": "i32", "groups": "i32", "count": "i32"}


def compile(kernel, **constants):
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    print(len(done.asm["ptx"]))


for limits in (False, True):
    compile(
        _winners_kernel, CELLS_PER_GROUP=8, WINNERS=3, RESTING=0 if limits else 3, HAS_SHARED=not limits,
        HAS_BIAS=not limits, HAS_INHIBITION=limits, HAS_BOOST=limits, ROWS=32, GROUPS=64,
    )
TYPES["value"] = TYPES["out"] = "*bf16"
compile(_dense_kernel, ENTRIES=24, ROWS=4, COLUMNS=512)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """For an H100, which need not be there; what only the interpreter accepts shows here."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [int(size) for size in done.stdout.split()]
    assert len(sizes) == 3
    assert min(sizes) > 1000
