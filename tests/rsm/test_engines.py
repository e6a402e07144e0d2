"""The fused kernels against the dense reference, and the choice between them."""

import tracemalloc

import pytest
import torch
from device_under_test import device, device_name, here
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells, Grid, empty_cells, group_values, max_pool, to_dense
from torchrsm.rsm.kernels import Context, Step, Weights, choose_engine
from torchrsm.rsm.kernels.cpu import FusedEngine
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
    "connected": {"decoder_kernel_size": 0, "margin": 1},
    "connected, cells": {"decoder_kernel_size": 0, "channels": 4, "pool": 2, "input_grid": (3, 4)},
    "batch of 1": {"batch": 1},
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
        decoded = engine.decode(self.step, weights, index, z)
        loss = engine.loss(self.step, weights, index, z, self.target, self.learn)
        loss.backward()
        gradients = {name: w.grad for name, w in weights._asdict().items() if w is not None}
        return index, a.detach(), decoded.detach(), loss.detach(), gradients


def engine_under_test():
    """The one that is compared with the reference: on the CPU the fused one, elsewhere the first that serves it."""
    return FusedEngine(threads=1) if device_name() == "cpu" else choose_engine("auto", device())


@pytest.fixture(scope="module")
def fused():
    return engine_under_test()


@pytest.fixture(scope="module")
def reference():
    return choose_engine("reference", CPU)


def assert_close_gradients(actual, expected, tolerance):
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (actual[name] - gradient).abs().max() <= tolerance * scale, name


# --- One result -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case, fused, reference):
    problem = Problem(0, False, **CASES[case])
    index, a, decoded, loss, gradients = problem.learned(fused)
    expected_index, expected_a, expected_decoded, expected_loss, expected_gradients = problem.learned(reference)
    assert index.dtype == torch.int32
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(a, expected_a, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, expected_decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert_close_gradients(gradients, expected_gradients, 1e-4)


def assert_exact(problem, fused, reference):
    index, a = problem.select(fused)
    expected_index, expected_a = problem.select(reference)
    assert torch.equal(index, expected_index)
    assert torch.equal(a, expected_a)
    if problem.step.activation == "identity":
        z = problem.number(*index.shape)
        decoded = fused.decode(problem.step, problem.weights, index, z)
        assert torch.equal(decoded, reference.decode(problem.step, problem.weights, index, z))


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_without_rounding(case, fused, reference):
    assert_exact(Problem(1, True, **CASES[case]), fused, reference)


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(configurations(), st.integers(0, 2**16))
def test_equals_the_reference_for_any_configuration(case, seed):
    fused, reference = engine_under_test(), choose_engine("reference", CPU)
    problem = Problem(seed, True, **case)
    assert_exact(problem, fused, reference)
    *_, loss, gradients = problem.learned(fused)
    *_, expected_loss, expected_gradients = problem.learned(reference)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-7)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_decode_has_the_gradients_of_the_reference(case, fused, reference):
    problem = Problem(6, False, **CASES[case])
    step = problem.step
    index, _ = problem.select(reference)
    z, wanted = problem.number(*index.shape), problem.number(index.shape[0], *step.input_grid, step.channels)
    gradients = []
    for engine in (fused, reference):
        inputs = [part.clone().requires_grad_() for part in (z, problem.weights.decoder, problem.weights.output_bias)]
        weights = problem.weights._replace(decoder=inputs[1], output_bias=inputs[2])
        (engine.decode(step, weights, index, inputs[0]) * wanted).sum().backward()
        gradients.append([part.grad for part in inputs])
    for ours, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


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
def test_cells_are_pooled_as_their_dense_map(pool, fused):
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
    pooled = to_dense(Cells(*fused.select(step, weights, context)), count)
    expected = max_pool(to_dense(below, count), pool)
    assert (expected < 0).any()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["plain", "one cell a group", "refractory", "inhibition", "boost", "feedback"])
def test_ties_go_to_the_lowest_index(case, fused, reference):
    """Equal weights make all cells equal: the first groups win, with the first of their cells that may."""
    problem = Problem(2, True, **CASES[case])
    for value in (0.0, 0.5):
        problem.weights = Weights(*(None if w is None else torch.full_like(w, value) for w in problem.weights))
        if case == "boost":
            problem.context = problem.context._replace(boost=here(torch.ones(problem.step.cells)))
        if case == "inhibition":
            problem.context = problem.context._replace(inhibition=torch.zeros_like(problem.context.inhibition))
        index, _ = problem.select(fused)
        assert torch.equal(index, problem.select(reference)[0])
        if case != "refractory":
            first = here(torch.arange(problem.step.active_groups, dtype=torch.int32))
            assert torch.equal(index, first.expand_as(index))


def test_ties_among_refractory_cells_go_to_the_lowest_index(fused, reference):
    problem = Problem(2, True, groups=3, cells_per_group=2, active_groups=3)
    problem.weights = Weights(*(None if w is None else torch.zeros_like(w) for w in problem.weights))
    last = here(torch.tensor([4, 1, 2], dtype=torch.int32)).expand(3, 4, 4, 3)  # both cells of group 1, one of group 2
    problem.context = problem.context._replace(refractory=last)
    for engine in (fused, reference):
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


def test_choose_engine():
    assert isinstance(choose_engine("auto", CPU), FusedEngine)
    assert choose_engine("fused", CPU) is choose_engine("auto", CPU)
    assert not isinstance(choose_engine("reference", CPU), FusedEngine)
    assert choose_engine("auto", torch.device("meta")) is choose_engine("reference", CPU)


def test_choose_engine_refuses():
    with pytest.raises(ValueError, match="engine must be one of auto, fused, reference; got 'fast'"):
        choose_engine("fast", CPU)
    with pytest.raises(
        ValueError, match=r"engine 'fused' needs weights on cpu of torch.float32; got cuda, torch.float32"
    ):
        choose_engine("fused", torch.device("cuda"))


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
