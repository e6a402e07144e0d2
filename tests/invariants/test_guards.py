"""Whatever is given to a system instead of a frame is refused with one clear error, before anything is computed."""

import math

import numpy as np
import pytest
import torch
from fuzz_observe import SYSTEMS, system

from torchrsm import Evaluator, Watcher
from torchrsm.predictor import check_frame, check_shape

BAD_FRAMES = {
    "another size": (lambda frame: frame[..., :-1], r"frame must be \[batch, channels, height, width\] = \[2, 1, "),
    "another batch": (lambda frame: frame[:1], "as the state that it follows; got"),
    "colour": (lambda frame: frame.expand(-1, 3, -1, -1), "as the state that it follows; got"),
    "no batch": (lambda frame: frame[0], "as the state that it follows; got"),
    "bytes": (lambda frame: (255 * frame).byte(), r"must be torch.float32 in 0..1; got torch.uint8; divide by 255"),
    "double": (lambda frame: frame.double(), r"must be torch.float32 in 0..1; got torch.float64$"),
    "0..255": (lambda frame: 255 * frame, r"finite and in 0..1; got values from 0 to 255"),
    "negative": (lambda frame: frame - 0.5, r"got values from -0.5 to 0.5"),
    "NaN": (lambda frame: frame * math.nan, "got values from nan to nan"),
    "infinite": (lambda frame: frame / 0, "finite and in 0..1; got values from"),
    "NumPy": (lambda frame: frame.numpy(), "must be a torch.Tensor; got numpy.ndarray of shape"),
    "None": (lambda frame: None, "must be a torch.Tensor; got None"),
    "a class": (lambda frame: torch.Tensor, "must be a torch.Tensor; got <class 'torch.Tensor'>"),
    "another device": (lambda frame: frame.to("meta"), "on the device cpu of the model; got meta"),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("bad", BAD_FRAMES)
def test_observe_refuses(name, bad):
    predictor, shape = system(name)
    state = predictor.initial_state(shape)
    prediction = predictor.predict(state)
    frame = torch.zeros(shape)
    frame[..., 0] = 1.0
    change, says = BAD_FRAMES[bad]
    with pytest.raises(ValueError, match=says):
        predictor.observe(change(frame), prediction, state)
    predictor.observe(frame, prediction, state)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("shape", [None, (1, 12, 12), (0, 1, 12, 12), (1, 1, 12, -12), (1, 1, 12, 12.0), "1112", 7])
def test_initial_state_refuses_what_is_no_shape(name, shape):
    predictor, _ = system(name)
    with pytest.raises(ValueError, match="shape must be the four numbers batch, channels, height and width"):
        predictor.initial_state(shape)


@pytest.mark.parametrize("bad", ["another size", "bytes", "0..255", "NaN", "NumPy", "None"])
def test_losses_refuse_what_observe_refuses(bad):
    predictor, shape = system("tiny")
    prediction = predictor.predict(predictor.initial_state(shape))
    frame = torch.zeros(shape)
    frame[..., 0] = 1.0
    change, says = BAD_FRAMES[bad]
    with pytest.raises(ValueError, match=says):
        predictor.losses(prediction, change(frame))


def test_a_state_of_another_model_or_batch_is_refused():
    predictor, shape = system("tiny")
    state = predictor.initial_state(shape)
    for other in (predictor.initial_state((3, *shape[1:])), system("balls")[0].initial_state((2, 1, 12, 12))):
        mixed = (other[0], state[1])
        with pytest.raises(ValueError, match=r"must be torch\.\w+ \["):
            predictor.predict(mixed)


def test_learn_must_say_yes_or_no_for_each_stream():
    predictor, shape = system("tiny")
    prediction = predictor.predict(predictor.initial_state(shape))
    for learn in (torch.ones(2), torch.ones(3, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"learn must be torch.bool \[2\] on cpu; got"):
            predictor.losses(prediction, torch.zeros(shape), learn)


@pytest.mark.parametrize("bad", ["another size", "colour", "0..255", "NaN"])
def test_a_watcher_refuses_and_forgets_nothing(bad):
    watcher = Watcher((1, 12, 12))
    good = torch.zeros(1, 12, 12)
    good[..., 0] = 1.0
    watcher.see(good)
    change, _ = BAD_FRAMES[bad]
    with pytest.raises(ValueError, match="frame must"):
        watcher.see(change(good[None])[0])
    assert watcher.see(good).frame == 1


def test_a_watcher_takes_bytes_and_arrays():
    first, second = Watcher((1, 12, 12)), Watcher((1, 12, 12))
    frame = np.random.default_rng(0).integers(0, 256, (1, 12, 12)).astype(np.uint8)
    assert first.see(frame) == second.see(torch.from_numpy(frame.astype(np.float32) / np.float32(255)))


def test_an_evaluator_refuses_sequences():
    for bad in (np.zeros((2, 5, 1, 12, 12)), torch.zeros(5, 1, 12, 12), torch.full((2, 5, 1, 12, 12), math.nan)):
        with pytest.raises(ValueError, match="frames must"):
            Evaluator(bad)


def test_a_frame_that_fits_is_returned_as_it_is():
    frame = torch.rand(2, 1, 4, 5)
    assert check_frame(frame, torch.zeros(2, 1, 4, 5)) is frame
    assert check_shape(torch.zeros(2, 1, 4, 5).shape) == check_shape([2, 1, 4, 5]) == (2, 1, 4, 5)
