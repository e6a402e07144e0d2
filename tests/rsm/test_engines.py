"""The engines against the dense reference, and the choice between them."""

import tracemalloc
import warnings

import pytest
import torch
from device_under_test import device, device_name, here
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torchrsm.precision import products_in
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells, Grid, empty_cells, group_values, max_pool, to_dense
from torchrsm.rsm.kernels import ENGINES, Context, Step, Weights, choose_engine, cuda
from torchrsm.rsm.kernels.cpu import FusedEngine
from torchrsm.rsm.kernels.cuda import CudaEngine
from torchrsm.rsm.layer import LayerConfig, RSMLayer

CPU = torch.device("cpu")

# What a case may change; hypothesis and the list of cases below draw on the same names.
DEFAULTS = {
    "batch": 3,
    "groups": 7,
    "cells_per_group": 3,
    "active_groups": 2,
    "kernel_size": 3,
    "stride": 2,
    "recurrent_kernel_size": 1,
    "decoder_kernel_size": 3,
    "input_grid": (8, 8),
    "channels": 1,
    "trace": False,
    "pool": 0,
    "memory": "cells",
    "above_grid": None,
    "order": "drive",
    "activation": "identity",
    "margin": 0,
    "bias_per_element": True,
    "base": False,
    "loss": "squared",
}

CASES = {
    "plain": {},
    "one cell a group": {"cells_per_group": 1, "groups": 9},
    "all groups win": {"active_groups": 7},
    "odd grid": {"input_grid": (7, 5), "kernel_size": 5, "decoder_kernel_size": 4},
    "one row": {"input_grid": (1, 9)},
    "stride 1": {"stride": 1, "kernel_size": 4, "decoder_kernel_size": 2},
    "stride 3": {"stride": 3, "kernel_size": 2, "decoder_kernel_size": 5, "input_grid": (8, 11)},
    "channels and trace": {"channels": 3, "trace": True},
    "input of cells": {"channels": 12, "pool": 1, "input_grid": (5, 4)},
    "input of pooled cells": {"channels": 5, "pool": 2, "input_grid": (5, 4), "margin": 1},
    "input of cells pooled by 3": {"channels": 3, "pool": 3, "input_grid": (3, 3), "cells_per_group": 1},
    "dense memory": {"memory": "dense", "recurrent_kernel_size": 3},
    "neighbourhood": {"recurrent_kernel_size": 3, "input_grid": (9, 6)},
    "neighbourhood of 5": {"recurrent_kernel_size": 5, "cells_per_group": 1},
    "feedback": {"above_grid": (2, 1)},
    "feedback from the same grid": {"above_grid": (4, 4), "order": "refractory"},
    "refractory": {"order": "refractory", "recurrent_kernel_size": 3},
    "refractory, one cell": {"order": "refractory", "cells_per_group": 1, "groups": 3},
    "inhibition": {"order": "inhibition", "above_grid": (1, 2)},
    "boost": {"order": "boost", "cells_per_group": 1},
    "sigmoid": {"activation": "sigmoid", "margin": 2, "bias_per_element": False},
    "base": {"activation": "sigmoid", "margin": 1, "base": True},
    "cross-entropy": {"activation": "sigmoid", "loss": "cross_entropy", "margin": 1, "base": True, "channels": 2},
    "cross-entropy of many": {
        "activation": "sigmoid",
        "loss": "cross_entropy",
        "channels": 2000,
        "input_grid": (2, 2),
        "kernel_size": 2,
        "decoder_kernel_size": 2,
        "stride": 1,
    },
    "base, channels": {"base": True, "channels": 3},
    "connected": {"decoder_kernel_size": 0, "margin": 1},
    "connected, cells": {"decoder_kernel_size": 0, "channels": 4, "pool": 2, "input_grid": (3, 4)},
    "batch of 1": {"batch": 1},
    # Sizes from which the fused engine takes vectors, packed weights, columns of ranks, one tap at a time.
    "many cells": {"groups": 163, "cells_per_group": 1, "active_groups": 20, "recurrent_kernel_size": 3},
    "many groups of cells": {"groups": 96, "cells_per_group": 2, "active_groups": 9, "order": "refractory"},
    "many channels": {"channels": 45, "pool": 1, "groups": 70, "cells_per_group": 1, "active_groups": 5, "margin": 1},
    "many channels, pooled": {"channels": 36, "pool": 2, "input_grid": (5, 4), "stride": 1, "decoder_kernel_size": 2},
    "many channels of a map": {"channels": 19, "trace": True, "kernel_size": 5, "bias_per_element": False},
    "many cells, dense memory": {"groups": 66, "cells_per_group": 1, "memory": "dense", "recurrent_kernel_size": 3},
    "many cells, inhibition": {"groups": 150, "cells_per_group": 1, "order": "inhibition", "active_groups": 12},
}


class Problem:
    """One step of one layer: everything that an engine reads.

    All numbers are whole eighths of small size where ``exact``, so that sums have no rounding, in whatever order.
    """

    def __init__(self, seed, exact, **changes):
        case = {**DEFAULTS, **changes}
        self.random = torch.Generator().manual_seed(seed)
        self.exact = exact
        batch, channels, pool = case["batch"], case["channels"], case["pool"]
        grid = Grid(*case["input_grid"])
        self.step = step = Step.of(
            groups=case["groups"],
            cells_per_group=case["cells_per_group"],
            active_groups=case["active_groups"],
            kernel_size=case["kernel_size"],
            stride=case["stride"],
            recurrent_kernel_size=case["recurrent_kernel_size"],
            decoder_kernel_size=case["decoder_kernel_size"],
            input_grid=grid,
            channels=channels,
            input_pool=max(pool, 1),
            activation=case["activation"],
            margin=case["margin"],
            loss=case["loss"],
        )
        cells, k = step.cells, step.active_groups
        locations = (batch, *step.grid)
        if pool:  # not a multiple of the window, where there is room for that
            source = (grid.height * pool - (pool > 1), grid.width * pool)
            self.input = self.cells((batch, *source), channels, 2)
            self.target = self.cells((batch, *source), channels, 2)
        else:
            self.input = self.number(batch, *grid, channels * (1 + case["trace"]), spread=1).relu()
            self.target = self.number(batch, *grid, channels, spread=1)
        rows = step.kernel_size**2 * channels * (1 + case["trace"])
        above = 6
        size = step.decoder_kernel_size
        self.weights = Weights(
            feedforward=self.number(rows, step.groups, spread=0.5),
            recurrent=self.number(step.recurrent_kernel_size**2 * cells, cells, spread=0.5),
            feedback=self.number(above, cells, spread=0.5) if case["above_grid"] else None,
            bias=self.number(cells, spread=0.25),
            decoder=self.number(step.groups, size**2 * channels, spread=0.5)
            if size
            else self.number(step.grid.height * step.grid.width * step.groups, grid.height * grid.width * channels),
            output_bias=self.number(*(grid if case["bias_per_element"] else (1, 1)), channels),
        )
        dense = self.number(*locations, cells).abs().clamp(max=1)
        boost = here(2.0 ** torch.randint(-1, 2, (cells,), generator=self.random))
        self.context = Context(
            input=self.input,
            memory=self.number(*locations, cells) if case["memory"] == "dense" else self.cells(locations, cells, k),
            feedback=self.cells((batch, *case["above_grid"]), above, 2) if case["above_grid"] else None,
            refractory=self.cells(locations, cells, k).index if case["order"] == "refractory" else None,
            inhibition=dense if case["order"] == "inhibition" else None,
            boost=boost if case["order"] == "boost" else None,
        )
        self.base = self.number(batch, *grid, channels, spread=1) if case["base"] else None
        self.learn = here(torch.rand(batch, generator=self.random) < 0.7)
        self.learn[0] = True

    def number(self, *shape, spread=0.5):
        x = torch.randn(shape, generator=self.random) * spread
        return here((x * 8).round() / 8 if self.exact else x)

    def cells(self, shape, count, k):
        """Different cells at each location, a quarter of the entries empty."""
        order = here(torch.rand(*shape, count, generator=self.random).argsort(-1)[..., :k].to(torch.int32))
        missing = here(torch.rand(order.shape, generator=self.random) < 0.25)
        return Cells(order.masked_fill(missing, -1), self.number(*order.shape).masked_fill(missing, 0))

    def select(self, engine):
        return engine.select(self.step, self.weights, self.context)

    def learned(self, engine):
        """Winners, drive, decoded map, loss and the gradient of each weight, by name."""
        weights = Weights(*(None if w is None else w.clone().requires_grad_() for w in self.weights))
        index, a = engine.select(self.step, weights, self.context)
        z = group_values(torch.tanh(a), self.step.cells_per_group)
        decoded = engine.decode(self.step, weights, index, z, self.base)
        loss = engine.loss(self.step, weights, index, z, self.target, self.learn, self.base)
        loss.backward()
        gradients = {name: w.grad for name, w in weights._asdict().items() if w is not None}
        return index, a.detach(), decoded.detach(), loss.detach(), gradients


def engine_under_test():
    """The one that is compared with the reference: on the CPU the fused one, elsewhere the first that serves it."""
    return FusedEngine(threads=1) if device_name() == "cpu" else choose_engine("auto", device())


@pytest.fixture(scope="module")
def fused():
    return engine_under_test()


# The engine for CUDA runs on the CPU here: its kernel in Triton's interpreter, or without it; what it multiplies
# collected for one product, or left to convolutions.
FAST = {
    **({"fused": lambda: FusedEngine(threads=1)} if device_name() == "cpu" else {}),
    "cuda": CudaEngine,
    "cuda, sorting, convolutions": lambda: CudaEngine(triton=False),
}


@pytest.fixture(params=FAST)
def fast(request, monkeypatch):
    """Each engine that must agree with the reference."""
    if "convolutions" in request.param:
        monkeypatch.setattr(cuda, "FEW_INPUTS", 0)
    return FAST[request.param]()


@pytest.fixture(scope="module")
def reference():
    return choose_engine("reference", CPU)


def assert_close_gradients(actual, expected, tolerance):
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (actual[name] - gradient).abs().max() <= tolerance * scale, name


# --- One result -------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case, fast, reference):
    problem = Problem(0, False, **CASES[case])
    index, a, decoded, loss, gradients = problem.learned(fast)
    expected_index, expected_a, expected_decoded, expected_loss, expected_gradients = problem.learned(reference)
    assert index.dtype == torch.int32
    assert a.dtype == torch.float32
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(a, expected_a, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(decoded, expected_decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert_close_gradients(gradients, expected_gradients, 1e-4)


def assert_exact(problem, fast, reference):
    index, a = problem.select(fast)
    expected_index, expected_a = problem.select(reference)
    assert torch.equal(index, expected_index)
    assert torch.equal(a, expected_a)
    if problem.step.activation == "identity":
        z = problem.number(*index.shape)
        decoded = fast.decode(problem.step, problem.weights, index, z, problem.base)
        assert torch.equal(decoded, reference.decode(problem.step, problem.weights, index, z, problem.base))


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_without_rounding(case, fast, reference):
    assert_exact(Problem(1, True, **CASES[case]), fast, reference)


@st.composite
def configurations(draw):
    case = {
        "batch": draw(st.integers(1, 3)),
        "cells_per_group": draw(st.integers(1, 4)),
        "groups": draw(st.integers(1, 9)),
        "kernel_size": draw(st.integers(1, 5)),
        "stride": draw(st.integers(1, 3)),
        "recurrent_kernel_size": draw(st.sampled_from([1, 3, 5])),
        "input_grid": draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        "memory": draw(st.sampled_from(["cells", "dense"])),
        "order": draw(st.sampled_from(["drive", "refractory", "inhibition", "boost"])),
        "channels": draw(st.integers(1, 3)),
        "trace": False,
        "pool": draw(st.integers(0, 3)),
        "bias_per_element": draw(st.booleans()),
    }
    case["active_groups"] = draw(st.integers(1, case["groups"]))
    case["decoder_kernel_size"] = draw(st.sampled_from([0, *range(case["stride"], 6)]))
    if not case["pool"]:
        case["trace"] = draw(st.booleans())
    # The weights of a resize by a power of two have no rounding.
    here = [-(-size // case["stride"]) for size in case["input_grid"]]
    above = [draw(st.sampled_from([size // f for f in (1, 2, 4) if size % f == 0])) for size in here]
    case["above_grid"] = draw(st.sampled_from([None, tuple(above)]))
    return case


@pytest.mark.no_cover
@pytest.mark.parametrize("name", [name for name in FAST if name in ("fused", "cuda")])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(configurations(), st.integers(0, 2**16))
def test_equals_the_reference_for_any_configuration(name, case, seed):
    fast, reference = FAST[name](), choose_engine("reference", CPU)
    problem = Problem(seed, True, **case)
    assert_exact(problem, fast, reference)
    *_, loss, gradients = problem.learned(fast)
    *_, expected_loss, expected_gradients = problem.learned(reference)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-7)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_decode_has_the_gradients_of_the_reference(case, fast, reference):
    problem = Problem(6, False, **CASES[case])
    step = problem.step
    index, _ = problem.select(reference)
    z, wanted = problem.number(*index.shape), problem.number(index.shape[0], *step.input_grid, step.channels)
    gradients = []
    for engine in (fast, reference):
        inputs = [part.clone().requires_grad_() for part in (z, problem.weights.decoder, problem.weights.output_bias)]
        weights = problem.weights._replace(decoder=inputs[1], output_bias=inputs[2])
        (engine.decode(step, weights, index, inputs[0]) * wanted).sum().backward()
        gradients.append([part.grad for part in inputs])
    for ours, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "precision"),
    # On the CPU tf32 is float32.
    [(name, "bfloat16") for name in FAST] + [(name, "tf32") for name in FAST if device_name() == "cuda"],
)
def test_equals_the_reference_without_rounding_in_any_precision(name, case, precision, reference, monkeypatch):
    """The numbers here are whole eighths up to 32, which a bfloat16 holds."""
    if "convolutions" in name:
        monkeypatch.setattr(cuda, "FEW_INPUTS", 0)
    with products_in(precision):
        assert_exact(Problem(1, True, **CASES[case]), FAST[name](), reference)


@pytest.mark.cpu_only
def test_the_fused_engine_rounds_the_weights_that_read_cells(reference):
    """In bfloat16 it computes what the reference does with rounded weights, up to the order of sums."""
    problem = Problem(0, False, **CASES["many cells"])
    exact = problem.select(FusedEngine(threads=1))
    rounded = problem.weights.recurrent.bfloat16().float()
    with products_in("bfloat16"):
        index, drive = problem.select(FusedEngine(threads=2))
    problem.weights = problem.weights._replace(
        recurrent=torch.cat((rounded[:, :160], problem.weights.recurrent[:, 160:]), 1)
    )
    expected, expected_drive = problem.select(reference)
    assert (index == expected).float().mean() > 0.99
    same = (index == expected).all(-1)
    torch.testing.assert_close(drive[same], expected_drive[same], rtol=1e-5, atol=1e-5)
    assert not torch.equal(drive, exact[1])


@pytest.mark.parametrize("name", ["cuda", "cuda, sorting, convolutions"])
def test_bfloat16_rounds_factors_and_nothing_else(name, monkeypatch):
    if "convolutions" in name:
        monkeypatch.setattr(cuda, "FEW_INPUTS", 0)
    problem = Problem(0, False, **CASES["feedback"], recurrent_kernel_size=3)
    exact = problem.learned(FAST[name]())
    before = problem.weights
    factors = Weights(*(w.bfloat16().float() for w in before))._replace(
        bias=before.bias, output_bias=before.output_bias
    )
    with products_in("bfloat16"):
        rounded = problem.learned(FAST[name]())
        problem.weights = factors
        assert all(map(torch.equal, rounded[:4], problem.learned(FAST[name]())[:4]))
    same = (exact[0] == rounded[0]).all(-1)
    assert same.float().mean() > 0.9
    difference = (exact[1] - rounded[1])[same].abs().max()
    assert 1e-4 < difference < 0.05
    for one, other in zip((exact[3], *exact[4].values()), (rounded[3], *rounded[4].values()), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert 0 < (one - other).abs().max() < 0.1 * one.abs().max()


def test_drive_that_is_not_a_number_makes_the_loss_one(reference):
    for engine in (CudaEngine(), CudaEngine(triton=False)):
        for case in ("plain", "inhibition", "boost"):
            problem = Problem(0, False, **CASES[case])
            problem.weights.bias[3] = torch.nan
            *_, loss, _ = problem.learned(engine)
            assert loss.isnan()


def test_samples_that_are_left_out_may_hold_anything():
    problem = Problem(0, False)
    problem.learn = torch.tensor([True, False, True])
    expected = problem.learned(CudaEngine())
    problem.target[1] = torch.nan
    *_, loss, gradients = problem.learned(CudaEngine())
    assert torch.equal(loss, expected[3])
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected[4].items())


def test_frozen_weights_get_no_gradient():
    problem = Problem(0, False, **CASES["feedback"])
    for name in Weights._fields:
        weights = Weights(*(w.clone().requires_grad_(field == name) for field, w in problem.weights._asdict().items()))
        index, a = CudaEngine().select(problem.step, weights, problem.context)
        z = group_values(torch.tanh(a), problem.step.cells_per_group)
        CudaEngine().loss(problem.step, weights, index, z, problem.target, problem.learn).backward()
        assert [field for field, w in weights._asdict().items() if w.grad is not None] == [name]


@pytest.mark.parametrize("what", ["memory", "feedback", "input"])
def test_the_engine_for_cuda_takes_no_cells_that_do_not_exist(what):
    case = {"memory": {}, "feedback": CASES["feedback"], "input": {"pool": 2}}[what]
    problem = Problem(7, False, **case)
    getattr(problem.context, what).index[0, 0, 0, 0] = 10_000
    with pytest.raises(RuntimeError, match="out of bounds"):
        problem.select(CudaEngine(triton=False))
    if CudaEngine().runs_triton(CPU):
        *_, loss, _ = problem.learned(CudaEngine())
        assert loss.isnan()


class Sums(TorchDispatchMode):
    """Lists the operators that are called, and sees that convolutions repeat."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        if function is torch.ops.aten.convolution_backward.default:
            assert torch.backends.cudnn.deterministic
            assert not args[-1][0]  # the gradient of the input would be a sum of another kind
        if function is torch.ops.aten.convolution.default:
            assert not torch.backends.cudnn.benchmark
        return function(*args, **(kwargs or {}))


def test_more_cells_than_the_kernel_takes_are_sorted(reference, monkeypatch):
    problem = Problem(0, True, **CASES["refractory"])
    monkeypatch.setattr(cuda, "MOST_CELLS", problem.step.cells - 1)
    assert_exact(problem, CudaEngine(), reference)
    with Sums() as sums:
        problem.select(CudaEngine())
    assert "sort" in sums.names
    assert "winners" not in sums.names


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["cuda", "cuda, sorting, convolutions"])
def test_nothing_is_added_up_in_an_order_that_changes(name, case, monkeypatch):
    """On CUDA these add as their threads arrive (torch's notes on reproducibility list them)."""
    if "convolutions" in name:
        monkeypatch.setattr(cuda, "FEW_INPUTS", 0)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with Sums() as sums:
        Problem(0, False, **CASES[case]).learned(FAST[name]())
    assert "scatter" in "".join(sums.names) or "dense" in sums.names
    added = ("scatter_add", "index_add", "index_put", "scatter_reduce", "index_reduce", "put_", "bincount", "cumsum")
    backwards = ("upsample_linear1d_backward", "upsample_bilinear2d_backward", "max_pool2d_with_indices_backward")
    assert not [name for name in sums.names if name.startswith((*added, *backwards))]
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


@pytest.mark.cpu_only
@pytest.mark.parametrize("what", ["memory", "feedback", "refractory", "input"])
@pytest.mark.parametrize("wrong", [-2, 10_000])
def test_cells_that_do_not_exist_are_refused(what, wrong, fused):
    case = {"memory": {}, "feedback": CASES["feedback"], "refractory": CASES["refractory"], "input": {"pool": 2}}[what]
    problem = Problem(7, False, **case)
    part = getattr(problem.context, what)
    index = part.clone() if what == "refractory" else part.index.clone()
    index[-1, -1, -1, -1] = wrong
    bad = index if what == "refractory" else part._replace(index=index)
    with pytest.raises(ValueError, match=rf"{what} must name cells in -1\.\.\d+, -1 for none; got -?\d+\.\.\d+"):
        fused.select(problem.step, problem.weights, problem.context._replace(**{what: bad}))


@pytest.mark.cpu_only
def test_winners_that_do_not_exist_are_refused(fused):
    problem = Problem(8, False)
    index, _ = problem.select(fused)
    z = problem.number(*index.shape)
    index[0, 0, 0, 0] = problem.step.cells
    with pytest.raises(ValueError, match="winners must name cells"):
        fused.decode(problem.step, problem.weights, index, z)
    with pytest.raises(ValueError, match="winners must name cells"):
        fused.loss(problem.step, problem.weights, index, z, problem.target, problem.learn)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_cells_are_pooled_as_their_dense_map(pool, fast):
    """A layer that copies each channel of its input to one cell shows what the kernel pooled, signs included."""
    count = 4
    problem = Problem(4, False, channels=count, groups=count, cells_per_group=1, active_groups=count)
    step = Step.of(
        groups=count,
        cells_per_group=1,
        active_groups=count,
        kernel_size=1,
        stride=1,
        recurrent_kernel_size=1,
        decoder_kernel_size=3,
        input_grid=Grid(-(-5 // pool), -(-7 // pool)),
        channels=count,
        input_pool=pool,
        activation="identity",
        margin=0,
    )
    weights = problem.weights._replace(feedforward=here(torch.eye(count)), bias=here(torch.zeros(count)))
    below = problem.cells((3, 5, 7), count, 3)
    context = Context(below, memory=here(empty_cells(3, step.grid, 1)))
    pooled = to_dense(Cells(*fast.select(step, weights, context)), count)
    expected = max_pool(to_dense(below, count), pool)
    assert (expected < 0).any()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["plain", "one cell a group", "refractory", "inhibition", "boost", "feedback"])
def test_ties_go_to_the_lowest_index(case, fast, reference):
    """Equal weights make all cells equal: the first groups win, with the first of their cells that may."""
    problem = Problem(2, True, **CASES[case])
    for value in (0.0, 0.5):
        problem.weights = Weights(*(None if w is None else torch.full_like(w, value) for w in problem.weights))
        if case == "boost":
            problem.context = problem.context._replace(boost=here(torch.ones(problem.step.cells)))
        if case == "inhibition":
            problem.context = problem.context._replace(inhibition=torch.zeros_like(problem.context.inhibition))
        index, _ = problem.select(fast)
        assert torch.equal(index, problem.select(reference)[0])
        if case != "refractory":
            first = here(torch.arange(problem.step.active_groups, dtype=torch.int32))
            assert torch.equal(index, first.expand_as(index))


def test_ties_among_refractory_cells_go_to_the_lowest_index(fast, reference):
    problem = Problem(2, True, groups=3, cells_per_group=2, active_groups=3)
    problem.weights = Weights(*(None if w is None else torch.zeros_like(w) for w in problem.weights))
    last = here(torch.tensor([4, 1, 2], dtype=torch.int32)).expand(3, 4, 4, 3)  # both cells of group 1, one of group 2
    problem.context = problem.context._replace(refractory=last)
    for engine in (fast, reference):
        index, _ = problem.select(engine)
        assert (index == here(torch.tensor([0, 5, 1]))).all()  # group 1 comes last, with its first cell


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", ["plain", "input of pooled cells", "inhibition", "connected", "batch of 1"])
def test_threads_do_not_change_the_result(case):
    problem = Problem(3, False, **{"batch": 5, **CASES[case]})
    index, a, decoded, loss, gradients = problem.learned(FusedEngine(threads=1))
    for threads in (2, 3):
        other = problem.learned(FusedEngine(threads))
        for one, same in zip((index, a, decoded, loss), other, strict=False):
            assert torch.equal(one, same)
        assert_close_gradients(other[-1], gradients, 1e-6)


@pytest.mark.cpu_only
def test_a_run_with_threads_repeats_bit_by_bit():
    problem = Problem(3, False, batch=5)
    engine = FusedEngine(threads=3)
    first, second = problem.learned(engine)[-1], problem.learned(engine)[-1]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_set_threads_counts_for_the_kernel_alone():
    before = kernels.threads()
    try:
        kernels.set_threads(3)
        assert kernels.threads() == 3
        assert torch.get_num_threads() == 1
    finally:
        kernels.set_threads(before)


def test_set_threads_counts_for_torch_where_asked():
    before = kernels.threads()
    try:
        kernels.set_threads(1, torch_threads=2)
        assert (kernels.threads(), torch.get_num_threads()) == (1, 2)
        kernels.set_threads(2)
        assert (kernels.threads(), torch.get_num_threads()) == (2, 1)
    finally:
        kernels.set_threads(before)


@pytest.mark.parametrize("count", [0, -1])
def test_set_threads_refuses(count):
    before = kernels.threads(), torch.get_num_threads()
    with pytest.raises(ValueError, match=f"^threads must be >= 1; got {count}"):
        kernels.set_threads(count, torch_threads=3)
    with pytest.raises(ValueError, match=f"^torch_threads must be >= 1; got {count}"):
        kernels.set_threads(3, torch_threads=count)
    assert (kernels.threads(), torch.get_num_threads()) == before  # all or nothing


# --- Choice -----------------------------------------------------------------------------------------------------------


def test_choose_engine(monkeypatch):
    assert isinstance(choose_engine("auto", CPU), FusedEngine)
    assert choose_engine("fused", CPU) is choose_engine("auto", CPU)
    assert not isinstance(choose_engine("reference", CPU), FusedEngine)
    assert choose_engine("auto", torch.device("meta")) is choose_engine("reference", CPU)
    monkeypatch.setitem(ENGINES, "cuda", ENGINES["cuda"]._replace(package=("triton", lambda: True)))
    assert isinstance(choose_engine("auto", torch.device("cuda", 1)), CudaEngine)
    assert choose_engine("auto", torch.device("cuda"), torch.float64) is choose_engine("reference", CPU)


def test_choose_engine_refuses():
    with pytest.raises(ValueError, match="engine must be one of auto, cuda, fused, reference; got 'fast'"):
        choose_engine("fast", CPU)
    with pytest.raises(
        ValueError, match=r"engine 'fused' needs weights on cpu of torch.float32; got cuda, torch.float32"
    ):
        choose_engine("fused", torch.device("cuda"))


def test_without_triton_the_reference_serves_cuda_and_says_so_once(monkeypatch):
    monkeypatch.setitem(ENGINES, "cuda", ENGINES["cuda"]._replace(package=("a-package", lambda: False)))
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match="engine 'cuda' is left out, because the package a-package is not installed"):
        assert choose_engine("auto", device) is ENGINES["reference"].engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_engine("auto", device) is ENGINES["reference"].engine
    with pytest.raises(ValueError, match="engine 'cuda' needs the package a-package, which is not installed"):
        choose_engine("cuda", device)


# --- Memory -----------------------------------------------------------------------------------------------------------


def peaks_of_a_training_step(engine):
    """Bytes of the largest tensor, and bytes that NumPy took at most, in one step of a layer of 4096 x 128 cells."""
    torch.manual_seed(0)
    config = LayerConfig(groups=128, active_groups=2, stride=1, kernel_size=3, output_bias="channel")
    layer = RSMLayer(config, 1, engine=engine)
    x = torch.rand(4, 32, 32, 1)

    def step(state):
        prediction = layer.predict(state)
        layer.loss(prediction, x, torch.ones(4, dtype=torch.bool)).backward()
        return layer.observe(x, prediction, state)

    state = step(layer.initial_state(4, x))  # compiles
    tracemalloc.start()
    state = step(state)
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(state)
    return max(event.self_cpu_memory_usage for event in profile.events()), arrays


@pytest.mark.cpu_only
def test_the_fused_engine_never_writes_all_cells():
    all_cells = 4 * 32 * 32 * 128 * 4
    largest_tensor, arrays = peaks_of_a_training_step("fused")
    assert largest_tensor < all_cells / 16
    assert arrays < all_cells / 8
    assert peaks_of_a_training_step("reference")[0] >= all_cells  # the measure would see it
