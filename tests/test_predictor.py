from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from torchrsm.predictor import check_frame, predict_next, restart, rollout


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


# --- Rollout ----------------------------------------------------------------------------------------------------------


class Fading:
    """Predicts the frame it has seen last, paler by a factor that is a parameter; remembers the number of frames."""

    def __init__(self):
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def initial_state(self, shape):
        return torch.zeros(shape), torch.zeros(shape[0])

    def predict(self, state):
        return SimpleNamespace(frame=self.factor * state[0])

    def observe(self, frame, prediction, state):
        assert prediction.frame.shape == frame.shape
        return frame, state[1] + 1


def test_rollout_takes_each_prediction_for_the_frame_that_came():
    start = (torch.rand(3, 2, 4, 5), torch.full((3,), 7.0))
    kept = start[0].clone()
    frames, end = rollout(Fading(), start, 4)
    assert frames.shape == (3, 4, 2, 4, 5)
    for step in range(4):
        assert torch.equal(frames[:, step], start[0] * 0.5 ** (step + 1))
    assert torch.equal(end[0], frames[:, -1])
    assert (end[1] == 11).all()
    assert torch.equal(start[0], kept)


def test_rollout_carries_no_graph():
    frames, end = rollout(Fading(), (torch.rand(1, 1, 2, 2), torch.zeros(1)), 2)
    assert not frames.requires_grad
    assert not end[0].requires_grad


def test_a_rollout_goes_on_from_where_it_ended():
    start = (torch.rand(2, 1, 3, 3), torch.zeros(2))
    whole, end = rollout(Fading(), start, 5)
    first, middle = rollout(Fading(), start, 2)
    second, same_end = rollout(Fading(), middle, 3)
    assert torch.equal(torch.cat((first, second), 1), whole)
    assert all(map(torch.equal, end, same_end))


def test_a_rollout_of_one_step_is_the_next_frame():
    start = (torch.rand(2, 1, 3, 3), torch.zeros(2))
    frames, end = rollout(Fading(), start, 1)
    assert torch.equal(frames, 0.5 * start[0][:, None])
    assert end[1].tolist() == [1, 1]


@pytest.mark.parametrize("steps", [0, -3])
def test_rollout_refuses_no_steps(steps):
    with pytest.raises(ValueError, match=f"steps must be >= 1; got {steps}"):
        rollout(Fading(), (torch.zeros(1, 1, 2, 2), torch.zeros(1)), steps)


# --- Predictions of frames that come ----------------------------------------------------------------------------------


def test_each_frame_is_predicted_from_those_before_it():
    video = torch.rand(2, 3, 1, 4, 5)
    assert torch.equal(predict_next(Fading(), video), 0.5 * video)


# --- Frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (SimpleNamespace(shape=(2, 3)), r"namespace\(shape=\(2, 3\)\)"),
        (SimpleNamespace(dtype="float"), r"namespace\(dtype='float'\)"),
        (np.zeros((2, 3)), r"numpy.ndarray of shape \[2, 3\], float64"),
        ([0.0] * 100, r"\[0\.0, .*\.\.\."),
    ],
)
def test_what_is_no_tensor_is_told_in_one_short_line(frame, told):
    with pytest.raises(ValueError, match=rf"^frame must be a torch.Tensor; got {told}$") as caught:
        check_frame(frame, torch.zeros(1))
    assert len(str(caught.value)) <= 120


def test_frames_of_0_and_1_are_in_range():
    frame = torch.tensor([0.0, 1.0])
    assert check_frame(frame, frame) is frame
