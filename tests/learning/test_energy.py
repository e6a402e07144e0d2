"""The energy score is its formula, and it is lowest where the draws are distributed as what comes."""

import numpy as np
import pytest
import torch
from device_under_test import here

from torchrsm.learning.energy import windowed_energy_score


def by_hand(first, second, frame, window):
    """The score of one sample ``[c, h, w]`` in NumPy, window by window."""
    _, h, w = frame.shape
    step, edge = max(1, window // 2), window // 2
    scores = []
    for top in range(-edge, h + edge - window + 1, step):
        for left in range(-edge, w + edge - window + 1, step):
            part = (slice(None), slice(max(top, 0), top + window), slice(max(left, 0), left + window))
            one, two, apart = (
                np.sqrt(((a[part] - b[part]) ** 2).sum()) for a, b in ((first, frame), (second, frame), (first, second))
            )
            scores.append((one + two) / 2 - apart / 2)
    return np.mean(scores)


@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 9, 14), (1, 7, 5)])
@pytest.mark.parametrize("window", [1, 4, 7])
def test_the_score_is_its_formula(shape, window):
    generator = torch.Generator().manual_seed(0)
    first, second, frame = (torch.rand(3, *shape, generator=generator) for _ in range(3))
    if window > 2 * min(shape[1:]):
        pytest.skip("the window is larger than the frame with its surroundings")
    found = windowed_energy_score(here(first), here(second), here(frame), window).tolist()
    expected = [by_hand(*(x[n].double().numpy() for x in (first, second, frame)), window) for n in range(3)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_two_equal_draws_score_their_distance():
    frame, drawn = here(torch.rand(2, 1, 8, 8)), here(torch.rand(2, 1, 8, 8))
    score = windowed_energy_score(drawn, drawn, frame, 1)
    torch.testing.assert_close(score, (drawn - frame).abs().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_draws_of_the_truth_score_best():
    """Two futures, in the left half of a frame or in the right: drawing each as often as it comes is best."""
    generator = torch.Generator().manual_seed(0)
    n = 4000

    def futures(share):
        left = torch.rand(n, generator=generator) < share
        frames = torch.zeros(n, 1, 4, 8)
        frames[left, :, :, :4] = 1
        frames[~left, :, :, 4:] = 1
        return frames

    truth = futures(0.7)
    mean = torch.full((n, 1, 4, 8), 0.3)
    mean[..., :4] = 0.7
    score = {
        share: windowed_energy_score(futures(share), futures(share), truth, 8).mean().item()
        for share in (0.0, 0.5, 0.7, 0.9, 1.0)
    }
    assert min(score, key=score.get) == 0.7
    assert score[0.7] < windowed_energy_score(mean, mean, truth, 8).mean().item()


def test_its_gradient_is_finite_where_all_is_equal():
    frame = here(torch.rand(2, 1, 8, 8))
    drawn = frame.clone().requires_grad_()
    windowed_energy_score(drawn, drawn, frame, 4).sum().backward()
    assert drawn.grad.isfinite().all()
