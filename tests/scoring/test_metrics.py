import math

import numpy as np
import pytest
import torch

from torchrsm.scoring import metrics
from torchrsm.scoring.metrics import Summary


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def squared_error_oracle(prediction, frame):
    total = 0.0
    for p, f in zip(prediction.flatten().tolist(), frame.flatten().tolist(), strict=True):
        total += (p - f) ** 2
    return total


def similarity_oracle(a, b):
    """Wang et al. 2004, equation 13, window by window, on one plane [height, width]."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cxy = (weights * (x - mx) * (y - my)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_frame_squared_error_agrees_with_a_loop():
    prediction, frame = pair(2, 3, 2, 5, 4)
    error = metrics.frame_squared_error(prediction, frame)
    assert error.shape == (2, 3)
    assert error.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            assert error[i, j].item() == pytest.approx(squared_error_oracle(prediction[i, j], frame[i, j]), rel=1e-12)


def test_frame_squared_error_is_a_sum_in_float64_not_a_mean():
    assert metrics.frame_squared_error(torch.ones(3, 30, 30), torch.zeros(3, 30, 30)).item() == 2700.0
    # 1 + 2^-30 is lost in float32, kept in float64
    prediction = torch.tensor([1.0, 2.0**-15]).view(1, 1, 2)
    assert metrics.frame_squared_error(prediction, torch.zeros(1, 1, 2)).item() == 1 + 2.0**-30


def test_peak_signal_noise_ratio_agrees_with_its_definition():
    prediction, frame = pair(2, 2, 3, 12, 13)
    decibels = metrics.peak_signal_noise_ratio(prediction, frame)
    assert decibels.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            mean = squared_error_oracle(prediction[i, j], frame[i, j]) / (3 * 12 * 13)
            assert decibels[i, j].item() == pytest.approx(-10 * math.log10(mean), rel=1e-10)


def test_peak_signal_noise_ratio_of_a_perfect_frame_is_infinite():
    frame = torch.rand(1, 4, 4)
    assert metrics.peak_signal_noise_ratio(frame, frame).item() == math.inf


def test_structural_similarity_agrees_with_its_definition():
    prediction, frame = pair(2, 3, 2, 13, 12)
    similarity = metrics.structural_similarity(prediction, frame)
    assert similarity.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            planes = [
                similarity_oracle(prediction[i, j, c].double().numpy(), frame[i, j, c].double().numpy())
                for c in range(2)
            ]
            assert similarity[i, j].item() == pytest.approx(np.mean(planes), abs=1e-9)


def test_structural_similarity_of_frames_together_is_that_of_each_alone():
    prediction, frame = pair(4, 1, 11, 20)
    together = metrics.structural_similarity(prediction, frame)
    alone = torch.stack([metrics.structural_similarity(p, f) for p, f in zip(prediction, frame, strict=True)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-14)
    assert metrics.structural_similarity(frame, frame).tolist() == pytest.approx([1.0] * 4)


def test_structural_similarity_window_is_the_one_of_scikit_image():
    from skimage.metrics import structural_similarity

    prediction, frame = pair(1, 17, 14)
    expected = structural_similarity(
        frame[0].double().numpy(),
        prediction[0].double().numpy(),
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.structural_similarity(prediction, frame).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("height", "width"), [(10, 30), (30, 10)])
def test_structural_similarity_refuses_frames_smaller_than_its_window(height, width):
    frame = torch.zeros(1, height, width)
    with pytest.raises(ValueError, match=rf"at least 11x11 pixels .*; got {height}x{width}"):
        metrics.structural_similarity(frame, frame)


@pytest.mark.parametrize(
    "measure", [metrics.frame_squared_error, metrics.peak_signal_noise_ratio, metrics.structural_similarity]
)
@pytest.mark.parametrize(("a", "b"), [((1, 12, 12), (2, 1, 12, 12)), ((12, 12), (12, 12))])
def test_measures_refuse_other_shapes(measure, a, b):
    with pytest.raises(ValueError, match=r"same shape \[\.\.\., channels, height, width\]; got \[.*12, 12\] and"):
        measure(torch.zeros(a), torch.zeros(b))


def test_measures_do_not_need_a_gradient_free_tensor():
    prediction = torch.zeros(1, 12, 12, requires_grad=True)
    for measure in (metrics.frame_squared_error, metrics.peak_signal_noise_ratio, metrics.structural_similarity):
        assert not measure(prediction, torch.ones(1, 12, 12)).requires_grad


def test_summarise_uses_the_sample_standard_deviation():
    summary = metrics.summarise(torch.tensor([1.0, 2.0, 6.0]))
    assert summary.mean == pytest.approx(3.0)
    assert summary.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_summary_of_one_value_has_no_spread():
    assert metrics.summarise(torch.tensor([2.5])) == Summary(2.5, None)
    assert str(Summary(2.5, None)) == "2.500"
    assert str(Summary(11.85, 0.28)) == "11.850 ± 0.280"


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_summarise_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"values must have the shape \[n\] with n >= 1; got \["):
        metrics.summarise(torch.zeros(shape))
