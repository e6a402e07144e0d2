"""OpenSTL's scores against their formulas, and its models as predictors."""

import numpy as np
import pytest
import torch
from device_under_test import here
from skimage.metrics import structural_similarity
from torch import nn

import torchrsm
from torchrsm import Evaluator, bouncing_ball_frames, evaluate_rollouts
from torchrsm.openstl import WindowPredictor, openstl_scores


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 2, 12, 10, generator=generator)
    return truth + 0.3 * torch.randn(truth.shape, generator=generator), truth


def test_scores_are_their_formulas(pair):
    scores = openstl_scores(*map(here, pair))
    predicted, true = (tensor.double().numpy() for tensor in pair)
    assert scores.mse == pytest.approx(((predicted - true) ** 2).mean((0, 1)).sum(), rel=1e-9)
    assert scores.mae == pytest.approx(np.abs(predicted - true).mean((0, 1)).sum(), rel=1e-9)
    assert scores.rmse == pytest.approx(scores.mse**0.5, rel=1e-12)
    inside = predicted.clip(0, 1)
    frames = [(inside[b, t], true[b, t]) for b in range(2) for t in range(3)]
    psnr = [20 * np.log10(1 / np.sqrt(((one - other) ** 2).mean())) for one, other in frames]
    snr = [10 * np.log10((other**2).mean() / ((one - other) ** 2).mean()) for one, other in frames]
    ssim = [
        structural_similarity(one.swapaxes(0, 2), other.swapaxes(0, 2), channel_axis=-1, data_range=2)
        for one, other in frames
    ]
    assert scores.psnr == pytest.approx(np.mean(psnr), rel=1e-9)
    assert scores.snr == pytest.approx(np.mean(snr), rel=1e-9)
    assert scores.ssim == pytest.approx(np.mean(ssim), rel=1e-9)


def test_the_squared_error_is_the_evaluator_s():
    frames = bouncing_ball_frames("validation", 3)[:, :12]
    model = torchrsm.load("copy-last")
    ours = Evaluator(frames, similarity=False).evaluate(model).frame_squared_error.all_predictable.mean
    assert openstl_scores(frames[:, :-1], frames[:, 1:]).mse == pytest.approx(ours, rel=1e-6)


def test_small_frames_have_no_similarity(pair):
    assert openstl_scores(*(tensor[..., :6] for tensor in pair)).ssim is None


def test_frames_that_do_not_fit_are_refused(pair):
    for one, other in ((pair[0][:, 1:], pair[1]), (pair[0][0], pair[1][0]), (pair[0][:0], pair[1][:0])):
        with pytest.raises(ValueError, match=r"must have the same shape \[b, t, c, h, w\], none of them 0; got"):
            openstl_scores(one, other)


class LastTwo(nn.Module):
    """Goes on as the last two frames say, for three frames."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, frames):
        step = self.weight * (frames[:, -1] - frames[:, -2])
        return torch.stack([frames[:, -1] + number * step for number in (1, 2, 3)], 1)


def test_a_model_of_windows_is_a_predictor_like_any_other():
    model = WindowPredictor(here(LastTwo()), context=3)
    frames = here(bouncing_ball_frames("validation", 2))
    state = model.initial_state((2, 1, 30, 30))
    for frame in frames[:, :4].unbind(1):
        state = model.observe(frame, model.predict(state), state)
    assert torch.equal(state, frames[:, 1:4])
    expected = (2 * frames[:, 3] - frames[:, 2]).clamp(0, 1)
    torch.testing.assert_close(model.predict(state).frame, expected)
    scores = Evaluator(frames.cpu()).evaluate(model)
    assert 5 < scores.frame_squared_error.all_predictable.mean < 100
    assert evaluate_rollouts(model, frames.cpu(), prime=20, steps=10).physics.steps == 10


@pytest.mark.parametrize("made", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 0, 1, 4, 4), torch.zeros(2, 1, 1, 4, 5)])
def test_a_model_that_returns_other_frames_is_refused(made):
    model = WindowPredictor(lambda frames: made, context=2)
    with pytest.raises(ValueError, match=r"model must return \[b, t, c, h, w\] for a window of \[2, 2, 1, 4, 4\]; got"):
        model.predict(model.initial_state((2, 1, 4, 4)))
    with pytest.raises(ValueError, match="context must be >= 1; got 0"):
        WindowPredictor(lambda frames: made, context=0)
