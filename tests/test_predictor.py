from typing import NamedTuple

import torch

from torchrsm.predictor import restart


class State(NamedTuple):
    frame: torch.Tensor
    trace: torch.Tensor | None
    layers: tuple[torch.Tensor, ...]


def state(value):
    integers = torch.full((3, 4), int(value), dtype=torch.int32)
    return State(torch.full((3, 1, 2, 2), float(value)), None, (integers, torch.full((3,), float(value))))


def test_restart_replaces_the_streams_that_start():
    starts = torch.tensor([True, False, True])
    mixed = restart(state(1), state(-1), starts)
    assert isinstance(mixed, State)
    assert isinstance(mixed.layers, tuple)
    assert mixed.trace is None
    for tensor, old in zip((mixed.frame, *mixed.layers), (state(1).frame, *state(1).layers), strict=True):
        assert (tensor.dtype, tensor.shape) == (old.dtype, old.shape)
        assert (tensor[starts] == -1).all()
        assert (tensor[~starts] == 1).all()


def test_restart_takes_lists_and_plain_tensors():
    starts = torch.tensor([False, True])
    mixed = restart([torch.ones(2), None], [torch.zeros(2), None], starts)
    assert isinstance(mixed, list)
    assert mixed[0].tolist() == [1, 0]
    assert mixed[1] is None
    assert restart(torch.ones(2, 2), torch.zeros(2, 2), starts).tolist() == [[1, 1], [0, 0]]


def test_restart_does_nothing_where_nothing_starts():
    old = state(1)
    assert restart(old, state(-1), torch.zeros(3, dtype=torch.bool)) is old


def test_restart_leaves_its_arguments_as_they_were():
    old, fresh = state(1), state(-1)
    restart(old, fresh, torch.tensor([True, True, False]))
    assert (old.frame == 1).all()
    assert (fresh.frame == -1).all()


def test_restart_ends_the_reach_of_what_is_not_finite():
    old = state(1)
    old.frame[0] = float("nan")
    assert restart(old, state(-1), torch.tensor([True, False, False])).frame.isfinite().all()
