import math

import numpy as np
import pytest
import rsm_oracle as oracle
import torch

from torchrsm.rsm import functional as F
from torchrsm.rsm.functional import Cells, Grid


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Cells ------------------------------------------------------------------------------------------------------------


def test_empty_cells_never_fired():
    cells = F.empty_cells(2, Grid(3, 4), 5)
    assert cells.index.shape == cells.value.shape == (2, 3, 4, 5)
    assert (cells.index.dtype, cells.value.dtype) == (torch.int32, torch.float32)
    assert not F.to_dense(cells, 7).any()


def test_to_dense_writes_each_cell_in_its_place():
    cells = Cells(torch.tensor([[[[2, -1, 0]]]], dtype=torch.int32), torch.tensor([[[[0.5, 9.0, -1.0]]]]))
    assert F.to_dense(cells, 4).tolist() == [[[[-1.0, 0.0, 0.5, 0.0]]]]


# --- Geometry ---------------------------------------------------------------------------------------------------------

# Rows, columns, kernel, stride: even and odd sides, kernels on both sides of the stride and of the map.
GEOMETRIES = [(8, 8, 3, 2), (7, 10, 5, 2), (9, 5, 4, 1), (8, 11, 2, 3), (5, 6, 1, 2), (2, 1, 5, 2), (34, 34, 5, 2)]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "locations", "before"),
    # TensorFlow's "SAME": ceil(size / stride) outputs, the smaller half of the zeros first.
    [
        (8, 5, 2, 4, 1),
        (7, 5, 2, 4, 2),
        (34, 5, 2, 17, 1),
        (9, 3, 2, 5, 1),
        (8, 2, 3, 3, 0),
        (5, 4, 1, 5, 1),
        (6, 1, 2, 3, 0),
    ],
)
def test_same_padding(size, kernel, stride, locations, before):
    assert F.strided_grid(Grid(size, size + stride), stride) == (locations, locations + 1)
    assert F.padding_before(size, kernel, stride) == before


@pytest.mark.parametrize(("h", "w", "kernel", "stride"), GEOMETRIES)
def test_encode_agrees_with_loops(h, w, kernel, stride):
    x, weight = numbers(2, h, w, 3), numbers(kernel**2 * 3, 4, seed=1)
    encoded = F.encode(x, weight, kernel, stride)
    for n in range(2):
        np.testing.assert_allclose(encoded[n], oracle.encode(x[n].numpy(), weight.numpy(), kernel, stride), atol=1e-12)


@pytest.mark.parametrize(("h", "w", "kernel", "stride"), GEOMETRIES)
def test_decode_is_the_adjoint_of_encode(h, w, kernel, stride):
    """``<encode(x), z> == <x, decode(z)>`` for the transposed weights, whatever x and z."""
    x, weight = numbers(2, h, w, 3), numbers(kernel**2 * 3, 4, seed=1)
    encoded = F.encode(x, weight, kernel, stride)
    z = numbers(*encoded.shape, seed=2)
    decoded = F.decode_convolutional(z, weight.t().contiguous(), Grid(h, w), kernel, stride)
    assert decoded.shape == x.shape
    torch.testing.assert_close((encoded * z).sum(), (x * decoded).sum(), rtol=1e-12, atol=1e-12)


def test_fully_connected_decoder_reaches_everything_from_everywhere():
    z, weight = numbers(2, 2, 3, 4), numbers(24, 5 * 6 * 2, seed=1)
    decoded = F.decode_fully_connected(z, weight, Grid(5, 6))
    np.testing.assert_allclose(decoded, (z.numpy().reshape(2, 24) @ weight.numpy()).reshape(2, 5, 6, 2), atol=1e-12)


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (5, 4), (1, 7)])
def test_max_pool_keeps_small_windows_and_signs(size, pool):
    y = numbers(2, *size, 3)
    y[0] = -y[0].abs()  # no zero may slip in from beyond the edge
    pooled = F.max_pool(y, pool)
    assert pooled.shape[1:3] == F.strided_grid(Grid(*size), pool)
    for n in range(2):
        assert np.array_equal(pooled[n], oracle.max_pool(y[n].numpy(), pool))


@pytest.mark.parametrize(
    ("source", "target"), [((3, 2), (5, 7)), ((5, 5), (17, 17)), ((4, 6), (4, 6)), ((1, 4), (3, 2))]
)
def test_resize_is_its_matrix(source, target):
    x = numbers(2, *source, 3)
    rows, columns = (
        np.array([[oracle.hat(p, i, t, s) for i in range(s)] for p in range(t)])
        for s, t in zip(source, target, strict=True)
    )
    np.testing.assert_allclose(rows.sum(1), 1)
    expected = np.einsum("pi,qj,bijn->bpqn", rows, columns, x.numpy())
    np.testing.assert_allclose(F.resize(x, Grid(*target)), expected, atol=1e-12)


def test_resize_and_weights_commute():
    x, weight = numbers(1, 3, 4, 5), numbers(5, 2, seed=1)
    torch.testing.assert_close(F.resize(x @ weight, Grid(7, 6)), F.resize(x, Grid(7, 6)) @ weight)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_neighbours_are_in_row_major_order(kernel):
    s = numbers(2, 4, 3, 2)
    around = F.neighbours(s, kernel)
    assert around.shape == (2, 4, 3, kernel**2 * 2)
    for p in range(4):
        for q in range(3):
            window = oracle.window(s[1].numpy(), p - kernel // 2, q - kernel // 2, kernel)
            assert np.array_equal(around[1, p, q], window.ravel())


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_trace_fades_and_takes_up_the_last_cells():
    trace, y = torch.tensor([0.8, 0.8, 0.0]), torch.tensor([0.5, 0.1, 0.3])
    torch.testing.assert_close(F.update_trace(trace, y, 0.5), torch.tensor([0.5, 0.4, 0.3]))
    assert torch.equal(F.update_trace(trace, y, 0.0), y)


def test_normalise():
    s = numbers(2, 3, 4, 5).abs()
    torch.testing.assert_close(F.normalise(s, "sample").sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(F.normalise(-s, "location").sum(-1), -torch.ones(2, 3, 4, dtype=torch.float64))
    assert torch.equal(F.normalise(s, "none"), s)


@pytest.mark.parametrize("over", ["sample", "location", "none"])
def test_normalised_silence_is_silence(over):
    assert not F.normalise(torch.zeros(1, 2, 2, 3), over).any()


# --- Drive, rank, winners ---------------------------------------------------------------------------------------------


def test_drive_shares_the_feedforward_part_among_the_cells_of_a_group():
    feedforward, recurrent, feedback, bias = (
        numbers(1, 2, 2, 3),
        numbers(1, 2, 2, 6, seed=1),
        numbers(1, 2, 2, 6),
        numbers(6),
    )
    a = F.drive(feedforward, recurrent, feedback, bias)
    for group in range(3):
        for cell in (group, 3 + group):
            expected = feedforward[..., group] + recurrent[..., cell] + feedback[..., cell] + bias[cell]
            torch.testing.assert_close(a[..., cell], expected)
    torch.testing.assert_close(F.drive(feedforward, recurrent, None, bias), a - feedback)


def test_rank():
    a, inhibition = numbers(2, 2, 2, 3), numbers(2, 2, 2, 3, seed=1).abs().clamp(max=1)
    assert F.rank(a, None) is a
    for n in range(2):
        expected = (a[n] - a[n].min() + 1) * (1 - inhibition[n])
        torch.testing.assert_close(F.rank(a, inhibition)[n], expected)


def test_the_refractory_rank_orders_cells_as_the_rank_does():
    a = numbers(3, 4, 4, 12)
    last = numbers(3, 4, 4, 12, seed=1) > 0.5
    by_rank = F.select_winners(F.rank(a, last.double()), 4, 3)
    assert torch.equal(F.select_winners(F.rank_refractory(a, last), 4, 3), by_rank)


def test_boost_lifts_the_rare():
    duty = torch.tensor([0.0, 0.5, 1.0])
    factors = F.boost_factor(duty, 2.0, 1).tolist()
    assert factors == pytest.approx([math.exp(2 / 3), math.exp(-1 / 3), math.exp(-4 / 3)])


def test_select_winners_takes_the_best_cell_of_the_best_groups():
    #              cell 0 of the groups 0..3, then cell 1
    r = torch.tensor([[[[5.0, 1.0, 0.0, 2.0, 4.0, 3.0, 0.0, 9.0]]]])
    assert F.select_winners(r, 4, 3).tolist() == [[[[7, 0, 5]]]]
    assert F.select_winners(r, 8, 3).tolist() == [[[[7, 0, 4]]]]
    assert F.select_winners(r, 4, 3).dtype == torch.int32


def test_ties_go_to_the_lowest_index():
    assert F.select_winners(torch.zeros(1, 1, 1, 200), 100, 4).tolist() == [[[[0, 1, 2, 3]]]]


def test_update_inhibition():
    inhibition, winners = torch.tensor([1.0, 0.4, 0.0]), torch.tensor([False, True, False])
    torch.testing.assert_close(F.update_inhibition(inhibition, winners, 0.5), torch.tensor([0.5, 1.0, 0.0]))
    assert F.update_inhibition(inhibition, winners, 0.0).tolist() == [0, 1, 0]


# --- Decode and loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells_per_group", [1, 3])
def test_group_values_are_the_largest_cells(cells_per_group):
    groups, k = 5, 2
    index = F.select_winners(numbers(2, 3, 3, groups * cells_per_group), groups, k)
    y = numbers(2, 3, 3, k, seed=1)
    dense = F.to_dense(Cells(index, y), groups * cells_per_group)
    z = F.to_dense(Cells(index % groups, F.group_values(y, cells_per_group)), groups)
    for group in range(groups):
        assert torch.equal(z[..., group], dense[..., group::groups].amax(-1))


def test_activate():
    x = numbers(4)
    assert F.activate(x, "identity") is x
    torch.testing.assert_close(F.activate(x, "sigmoid"), 1 / (1 + torch.exp(-x)))


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_prediction_loss(margin):
    prediction, target = numbers(3, 5, 6, 2), numbers(3, 5, 6, 2, seed=1)
    learn = torch.tensor([True, False, True])
    inner = (slice(None), slice(margin, 5 - margin), slice(margin, 6 - margin))
    error = (prediction - target).numpy()[inner][[0, 2]] ** 2
    assert F.prediction_loss(prediction, target, learn, margin).item() == pytest.approx(error.mean(), rel=1e-12)
    assert F.prediction_loss(prediction, target, torch.zeros(3, dtype=torch.bool), margin) == 0
