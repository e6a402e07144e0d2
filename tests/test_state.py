from typing import NamedTuple

import pytest
import torch

from torchrsm.state import detach, flatten, map_state, to_device, unflatten, where


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor | None


def nested(value):
    return (Pair(torch.full((2, 3), value), None), [torch.full((2,), value)], torch.full((2, 1, 1), value))


def test_a_state_is_mapped_in_its_own_form():
    doubled = map_state(lambda tensor: 2 * tensor, nested(1.0))
    assert isinstance(doubled[0], Pair)
    assert doubled[0].b is None
    assert isinstance(doubled[1], list)
    assert [float(t.sum()) for t in flatten("x", doubled).values()] == [12.0, 4.0, 4.0]


def test_states_of_one_form_are_mapped_together():
    total = map_state(torch.add, nested(1.0), nested(2.0))
    assert all(bool((tensor == 3).all()) for tensor in flatten("x", total).values())
    with pytest.raises(ValueError, match="zip"):
        map_state(torch.add, nested(1.0), nested(1.0)[:2])


def test_where_chooses_whole_streams():
    mixed = where(torch.tensor([True, False]), nested(1.0), nested(2.0))
    for tensor in flatten("x", mixed).values():
        assert bool((tensor[0] == 1).all())
        assert bool((tensor[1] == 2).all())


def test_detach_leaves_no_graph():
    weight = torch.ones(2, 3, requires_grad=True)
    state = detach((Pair(2 * weight, None),))
    assert not state[0].a.requires_grad


def test_a_state_moves_to_a_device():
    moved = to_device(nested(1.0), "meta")
    assert {tensor.device.type for tensor in flatten("x", moved).values()} == {"meta"}


def test_paths_name_every_tensor_and_lead_back():
    state = nested(1.0)
    tensors = flatten("state", state)
    assert list(tensors) == ["state.0.a", "state.1.0", "state.2"]
    again = unflatten("state", state, tensors)
    assert isinstance(again[0], Pair)
    assert isinstance(again[1], list)
    assert all(a is b for a, b in zip(flatten("s", again).values(), tensors.values(), strict=True))


@pytest.mark.parametrize("wrong", [None, torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64)])
def test_a_tensor_that_does_not_fit_is_named(wrong):
    tensors = flatten("state", nested(1.0)) | {"state.0.a": wrong}
    if wrong is None:
        del tensors["state.0.a"]
    with pytest.raises(ValueError, match=r"state.0.a as \(2, 3\) torch.float32; got"):
        unflatten("state", nested(1.0), tensors)
