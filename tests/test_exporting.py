import pytest
import torch

import torchrsm
from torchrsm import OneStep, bouncing_ball_frames, export_step

SHAPE = (1, 1, 30, 30)


@pytest.fixture(scope="module")
def model():
    return torchrsm.load("balls", engine="reference")


@pytest.fixture(scope="module")
def frames():
    return bouncing_ball_frames("validation", 1)[:, :6]


@torch.no_grad()
def test_one_step_is_what_predict_and_observe_do(model, frames):
    step = OneStep(model, SHAPE)
    frame, *carried = step.initial()
    state = model.initial_state(SHAPE)
    assert len(carried) == len(step.state_names) == len(set(step.state_names))
    for true in frames.unbind(1):
        prediction = model.predict(state)
        assert torch.equal(frame, prediction.frame)
        state = model.observe(true, prediction, state)
        frame, *carried = step(true, *carried)
    dream, _ = model.rollout(state, 3)
    for expected in dream.unbind(1):
        assert torch.equal(frame, expected)
        frame, *carried = step(frame, *carried)


@torch.no_grad()
def test_an_exported_step_predicts_and_dreams_like_the_model(model, frames):
    program = export_step(model, SHAPE).module()
    step = OneStep(model, SHAPE)
    ours = theirs = step.initial()
    for true in [*frames.unbind(1), *[None] * 10]:
        ours = step(ours[0] if true is None else true, *ours[1:])
        theirs = program(theirs[0] if true is None else true, *theirs[1:])
        torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=1e-5)


def test_export_chooses_an_engine_that_can_be_exported(frames):
    model = torchrsm.load("balls")  # its own engine is made of compiled functions
    program = export_step(model, SHAPE).module()
    first = OneStep(model, SHAPE).initial()
    with torch.no_grad():
        torch.testing.assert_close(program(frames[:, 0], *first[1:])[0], model(frames[:, :1])[:, 0], rtol=0, atol=1e-5)


def test_refuses_a_model_that_is_being_trained_and_frames_that_it_cannot_read():
    model = torchrsm.VideoPredictor(torchrsm.preset("tiny").model)
    with pytest.raises(ValueError, match="evaluation mode to be exported"):
        OneStep(model.train(), (1, 1, 12, 12))
    with pytest.raises(ValueError, match="12 x 12; got 30 x 30"):
        OneStep(model.eval(), SHAPE)
    with pytest.raises(ValueError, match="shape must be the four numbers"):
        OneStep(model, (1, 12, 12))
