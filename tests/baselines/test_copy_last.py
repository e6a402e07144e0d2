import pytest
import torch

from torchrsm.baselines import BASELINES, CopyLast, baseline


def test_the_first_prediction_is_black():
    predictor = CopyLast()
    prediction = predictor.predict(predictor.initial_state((2, 3, 4, 5)))
    assert torch.equal(prediction.frame, torch.zeros(2, 3, 4, 5))


def test_predicts_the_last_frame_and_forgets_the_others():
    predictor = CopyLast()
    state = predictor.initial_state((2, 1, 4, 4))
    for frame in torch.rand(3, 2, 1, 4, 4):
        state = predictor.observe(frame, predictor.predict(state), state)
        assert torch.equal(predictor.predict(state).frame, frame)


def test_the_state_carries_no_graph():
    predictor = CopyLast()
    state = predictor.initial_state((1, 1, 2, 2))
    frame = torch.rand(1, 1, 2, 2, requires_grad=True)
    assert not predictor.observe(frame, predictor.predict(state), state).frame.requires_grad


def test_baseline_finds_every_name():
    assert isinstance(baseline("copy-last"), CopyLast)
    for name, make in BASELINES.items():
        assert type(baseline(name)) is type(make())


def test_baseline_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"baseline must be one of copy-last, received 'copy_last'"):
        baseline("copy_last")
