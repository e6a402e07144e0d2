"""Measures how far a predicted frame is from the true one: pure functions, one number per frame.

All take frames ``[..., channels, height, width]`` in 0..1 and return ``[...]`` float64 on the CPU, unless they say
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.devices import precise_type

SIMILARITY_WINDOW = 11
"""Side, in pixels, of the Gaussian window of `structural_similarity` (standard deviation 1.5, cut at 3.5 of them)."""


class Summary(NamedTuple):
    """A mean and its spread over sequences, in the unit of the values.

    ``sd`` is the sample standard deviation (divided by n - 1), what the literature's "+-" is; None for one value.
    """

    mean: float
    sd: float | None

    def __str__(self) -> str:
        """Return ``mean ± sd``, as the result tables print it."""
        return f"{self.mean:.3f}" if self.sd is None else f"{self.mean:.3f} ± {self.sd:.3f}"


def summarise(values: Tensor) -> Summary:
    """Return mean and sample standard deviation of ``[n]`` values, one per sequence.

    Raises:
        ValueError: there is no value.
    """
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"values must have the shape [n] with n >= 1; got {list(values.shape)}")
    values = values.to(torch.float64)
    return Summary(float(values.mean()), float(values.std(correction=1)) if len(values) > 1 else None)


def frame_squared_error(prediction: Tensor, frame: Tensor) -> Tensor:
    """Return the squared error of each frame, summed over its channels and pixels (not their mean).

    The unit of the bouncing-balls literature: on 30x30 frames a black frame costs about 93, the frame before about 12.

    Raises:
        ValueError: the shapes differ or have fewer than three dimensions.
    """
    _check_shapes(prediction, frame)
    return frame_squared_error_on_device(prediction.cpu(), frame.cpu())


def frame_squared_error_on_device(prediction: Tensor, frame: Tensor) -> Tensor:
    """Return `frame_squared_error` on the device of the frames, so that nothing waits for it; it carries no graph.

    float64, or float32 on a device that has no float64.
    """
    kind = precise_type(frame.device)
    return (prediction.detach().to(kind) - frame.detach().to(kind)).square().sum(dim=(-3, -2, -1))


def peak_signal_noise_ratio(prediction: Tensor, frame: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame in decibels, for a peak of 1; infinite for a perfect frame.

    Raises:
        ValueError: the shapes differ or have fewer than three dimensions.
    """
    from skimage.metrics import peak_signal_noise_ratio as decibels

    _check_shapes(prediction, frame)
    pairs = zip(_images(prediction, 3), _images(frame, 3), strict=True)
    with np.errstate(divide="ignore"):  # a perfect frame: 1 / 0
        values = [decibels(true, predicted, data_range=1) for predicted, true in pairs]  # type: ignore[no-untyped-call]
    return torch.tensor(values, dtype=torch.float64).view(frame.shape[:-3])


def structural_similarity(prediction: Tensor, frame: Tensor) -> Tensor:
    """Return the structural similarity (SSIM) of each frame, -1..1, 1 for a perfect one; the mean over its channels.

    Gaussian window of 11 pixels and standard deviation 1.5, population covariance, range 1, averaged over the pixels
    whose window lies inside the frame: the settings of the source.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment" (2004).

    Raises:
        ValueError: the shapes differ, have fewer than three dimensions, or a frame is smaller than the window.
    """
    from skimage.metrics import structural_similarity as similarity

    _check_shapes(prediction, frame)
    height, width = frame.shape[-2:]
    check_similarity_window(height, width)
    # The planes of all frames stacked into one tall image: one call instead of thousands. No window that counts
    # crosses a seam, because those that would are the ones that the cut below removes.
    _, local = similarity(  # type: ignore[no-untyped-call]
        _images(frame, 2).reshape(-1, width),
        _images(prediction, 2).reshape(-1, width),
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    cut = SIMILARITY_WINDOW // 2
    inside = torch.from_numpy(local).view(*frame.shape)[..., cut : height - cut, cut : width - cut]
    return inside.mean(dim=(-3, -2, -1))


def check_similarity_window(height: int, width: int) -> None:
    """Raise a ValueError where frames of ``height`` x ``width`` pixels are too small for `structural_similarity`."""
    if min(height, width) < SIMILARITY_WINDOW:
        raise ValueError(
            f"structural similarity needs frames of at least {SIMILARITY_WINDOW}x{SIMILARITY_WINDOW} pixels "
            f"(its window); got {height}x{width}"
        )


class FrameScore(NamedTuple):
    """A measure that `torchrsm.Evaluator` takes of every predicted frame beside the squared error.

    Attributes:
        title: its name and unit, as the table prints it, at most 31 characters.
        measure: from predicted and true frames ``[..., channels, height, width]`` to finite numbers ``[...]``.
        smallest_side: frames with a side below it cannot be measured.
    """

    title: str
    measure: Callable[[Tensor, Tensor], Tensor]
    smallest_side: int = 1


PERFECT_DECIBELS = 100.0
"""The most decibels that a frame counts for (a root mean squared error of 1e-5), so that every mean is finite."""


def _bounded_decibels(prediction: Tensor, frame: Tensor) -> Tensor:
    return peak_signal_noise_ratio(prediction, frame).clamp(max=PERFECT_DECIBELS)


FRAME_SCORES: dict[str, FrameScore] = {
    "peak_signal_noise_ratio": FrameScore("peak signal to noise, dB", _bounded_decibels),
    "structural_similarity": FrameScore("structural similarity", structural_similarity, SIMILARITY_WINDOW),
}
"""The measures beside the squared error, by their name in the JSON of an evaluation: a line here adds one."""


def _check_shapes(prediction: Tensor, frame: Tensor) -> None:
    if prediction.shape != frame.shape or frame.dim() < 3:
        raise ValueError(
            "prediction and frame must have the same shape [..., channels, height, width]; "
            f"got {list(prediction.shape)} and {list(frame.shape)}"
        )


def _images(frames: Tensor, dimensions: int) -> NDArray[Any]:
    """Return the frames as float64 ``[n, *]`` where ``*`` are the last ``dimensions`` dimensions."""
    return frames.detach().cpu().to(torch.float64).reshape(-1, *frames.shape[-dimensions:]).numpy()
