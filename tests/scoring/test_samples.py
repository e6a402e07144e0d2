"""Scores of draws: each is its formula, and the truth scores best."""

import math

import numpy as np
import pytest
import torch
from device_under_test import here
from drawing import small_model

from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.scoring.samples import (
    continuous_ranked_probability_score,
    energy_score,
    evaluate_samples,
    share_of_one,
    spread,
)


def drawn(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_energy_score_is_its_formula():
    samples, frame = drawn(0, 5, 2, 1, 3, 4), drawn(1, 2, 1, 3, 4)
    for n, found in enumerate(energy_score(samples, frame).tolist()):
        x, y = samples[:, n].double().numpy(), frame[n].double().numpy()
        to_frame = np.mean([np.linalg.norm((one - y).ravel()) for one in x])
        pairs = [np.linalg.norm((x[i] - x[j]).ravel()) for i in range(5) for j in range(5) if i != j]
        assert found == pytest.approx(to_frame - np.mean(pairs) / 2, rel=1e-10)


def test_the_crps_is_that_of_each_pixel():
    samples, frame = drawn(0, 6, 2, 1, 3, 4), drawn(1, 2, 1, 3, 4)
    one_pixel = energy_score(samples.reshape(6, -1, 1, 1, 1), frame.reshape(-1, 1, 1, 1)).view(2, 12).mean(1)
    torch.testing.assert_close(continuous_ranked_probability_score(samples, frame), one_pixel, rtol=1e-9, atol=1e-12)


def test_the_crps_of_a_uniform_forecast():
    """Of a forecast that is uniform in 0..1 and a pixel of y it is 1/3 - y (1 - y)."""
    samples, y = drawn(0, 4001, 1, 1, 1), 0.3
    found = continuous_ranked_probability_score(samples, torch.full((1, 1, 1), y)).item()
    assert found == pytest.approx(1 / 3 - y * (1 - y), abs=0.01)


@pytest.mark.parametrize("score", [energy_score, continuous_ranked_probability_score])
def test_draws_of_the_truth_score_best(score):
    n = 3000
    truth = (drawn(1, n, 1, 1, 1) < 0.7).float()
    means = {
        share: score((drawn(2, 8, n, 1, 1, 1) < share).float(), truth).mean().item()
        for share in (0.4, 0.6, 0.7, 0.8, 1)
    }
    assert min(means, key=means.get) == 0.7


def test_a_score_of_draws_is_unbiased():
    """Two draws and forty have the same mean."""
    frame = drawn(1, 4000, 1, 1, 1)
    for score in (energy_score, continuous_ranked_probability_score):
        few, many = (score(drawn(2, m, 4000, 1, 1, 1), frame).mean().item() for m in (2, 40))
        assert few == pytest.approx(many, abs=0.02)


def test_spread_and_error_agree_where_draws_are_of_the_truth():
    samples, frame = drawn(0, 4, 5000, 1, 2, 2), drawn(1, 5000, 1, 2, 2)
    error = (samples.double().mean(0) - frame).square().sum((1, 2, 3)).mean()
    assert (1 + 1 / 4) * spread(samples).mean() == pytest.approx(error.item(), rel=0.03)


def test_which_of_two_futures_a_draw_is():
    one, other = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    levels = [0.0, 0.1, 0.4, 0.6, 1.0, 1.0]
    samples = torch.stack([torch.full((2, 1, 4, 4), level) for level in levels])
    first, neither = share_of_one(samples, one, other)
    assert first.tolist() == [0.5, 0.5]
    assert neither.tolist() == [0, 0]
    first, neither = share_of_one(samples, one, other, share=0.05)
    assert first.tolist() == [0.5, 0.5]
    assert neither.tolist() == pytest.approx([2 / 6, 2 / 6])


def test_draws_of_another_shape_are_refused():
    for samples in (drawn(0, 1, 2, 1, 3, 3), drawn(0, 3, 2, 1, 3, 4), drawn(0, 1, 3, 3)):
        with pytest.raises(
            ValueError, match="samples must be .* with m >= 2, frames of the shape of the one that came"
        ):
            energy_score(samples, drawn(1, 2, 1, 3, 3))


def build(rectifier):
    return here(small_model(rectifier))


def test_a_model_is_scored_by_what_it_draws():
    model = build(UNetConfig(features=4, width=6, blocks=1, sees_frames=False, noise_channels=3, noise_side=2))
    frames = drawn(0, 5, 4, 1, 8, 8)
    scores = evaluate_samples(model, frames, samples=3, batch_size=2)
    assert scores == evaluate_samples(model, frames, samples=3, batch_size=2)
    assert scores != evaluate_samples(model, frames, samples=3, seed=9, batch_size=2)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    state, errors = model.initial_state((2, 1, 8, 8)), []
    for time, frame in enumerate(here(frames[:2]).unbind(1)):
        prediction = model.predict(state, 3 if time else 0, generator)
        if time:
            errors.append((prediction.samples.mean(0) - frame).square().sum((1, 2, 3)))
        state = model.observe(frame, prediction, state)
    first = evaluate_samples(model, frames[:2], samples=3)
    assert first.mean_error.mean == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert first.draw_error.mean > first.mean_error.mean
    assert first.energy_score.mean != first.first_energy_score.mean > 0
    assert first.first_energy_score == evaluate_samples(model, frames[:2, :2], samples=3).energy_score
    assert 0 < first.blurred <= 1
    assert first.blurred_truth == pytest.approx(((frames[:2, 1:] > 0.1) & (frames[:2, 1:] < 0.9)).float().mean().item())
    assert math.isfinite(first.calibration)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"samples": 1}, "samples must be >= 2; got 1"), ({"batch_size": 0}, "batch_size must be >= 1; got 0")],
)
def test_what_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_samples(build(CompactConfig(width=4, blocks=1)), drawn(0, 2, 3, 1, 8, 8), **settings)


def test_a_model_that_cannot_draw_is_refused():
    with pytest.raises(ValueError, match="rectifier must take noise"):
        evaluate_samples(build(CompactConfig(width=4, blocks=1)), drawn(0, 2, 3, 1, 8, 8))
