"""To and from OpenSTL: its scores of any forecast, and its models as predictors.

`torchrsm.imagine` makes the forecasts of a predictor, from so many frames in to so many out.

Source: Cheng Tan et al., "OpenSTL: A Comprehensive Benchmark of Spatio-Temporal Predictive Learning", NeurIPS 2023,
arXiv 2306.11249. Arrays there are ``[batch, time, channels, height, width]``: so many frames in, so many out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchrsm.predictor import Shape, check_frame, check_shape

_SIMILARITY_WINDOW = 7
_SIMILARITY_RANGE = 2.0  # of floating-point pictures, -1..1, in the library that OpenSTL measures with


class OpenSTLScores(NamedTuple):
    """The scores of a forecast as OpenSTL defines them.

    Attributes:
        mse: squared error, summed over channels and pixels, mean over frames; as `torchrsm.Evaluator` counts.
        mae: absolute error, likewise.
        rmse: square root of ``mse``.
        psnr: decibels for a peak of 1, mean over frames.
        snr: decibels, mean over frames.
        ssim: structural similarity with a flat window of 7 pixels and a range of 2, mean over frames. It is larger than
            `torchrsm.scoring.metrics.structural_similarity`, whose window is Gaussian and whose range is 1. None for
            frames smaller than the window.
    """

    mse: float
    mae: float
    rmse: float
    psnr: float
    snr: float
    ssim: float | None


def openstl_scores(prediction: Tensor, truth: Tensor) -> OpenSTLScores:
    """Return the scores of a forecast.

    Args:
        prediction: ``[b, t, c, h, w]``; for the last three scores it is cut to 0..1.
        truth: the frames that came, of the same shape, in 0..1.

    Raises:
        ValueError: the shapes differ, or are not of five dimensions, none of them 0.
    """
    if prediction.shape != truth.shape or truth.dim() != 5 or truth.numel() == 0:
        raise ValueError(
            "prediction and truth must have the same shape [b, t, c, h, w], none of them 0; "
            f"got {list(prediction.shape)} and {list(truth.shape)}"
        )
    predicted, true = prediction.detach().cpu().double(), truth.detach().cpu().double()
    difference = predicted - true
    mse = float(difference.square().sum((2, 3, 4)).mean())
    mae = float(difference.abs().sum((2, 3, 4)).mean())
    inside = predicted.clamp(0, 1)
    of_frame = (inside - true).square().mean((2, 3, 4))
    psnr = float((-10 * of_frame.log10()).mean())
    snr = float((10 * (true.square().mean((2, 3, 4)) / of_frame).log10()).mean())
    return OpenSTLScores(mse, mae, math.sqrt(mse), psnr, snr, _similarity(inside, true))


def _similarity(predicted: Tensor, true: Tensor) -> float | None:
    from skimage.metrics import structural_similarity

    if min(true.shape[-2:]) < _SIMILARITY_WINDOW:
        return None
    total = 0.0
    pairs = zip(predicted.flatten(0, 1).numpy(), true.flatten(0, 1).numpy(), strict=True)
    for one, other in pairs:
        total += structural_similarity(  # type: ignore[no-untyped-call]
            one, other, win_size=_SIMILARITY_WINDOW, data_range=_SIMILARITY_RANGE, channel_axis=0
        )
    return total / (true.shape[0] * true.shape[1])


class WindowPrediction(NamedTuple):
    """What a `WindowPredictor` predicts.

    Attributes:
        frame: ``[b, c, h, w]`` in 0..1.
    """

    frame: Tensor


class WindowPredictor:
    """A model of OpenSTL, or any that takes a window of frames, as a `torchrsm.Predictor`.

    Before as many frames have come as the model takes, black ones stand in their places.

    Args:
        model: from frames ``[b, context, c, h, w]`` to the frames that follow, ``[b, t, c, h, w]``; the first of them
            counts. For a module, in evaluation mode.
        context: frames that it takes, >= 1.

    Raises:
        ValueError: ``context`` is below 1.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], context: int) -> None:
        if context < 1:
            raise ValueError(f"context must be >= 1; got {context}")
        self.model = model
        self.context = context

    def initial_state(self, shape: Shape) -> Tensor:
        """Return black frames, ``[b, context, c, h, w]``, where the model's weights are."""
        batch, *size = check_shape(shape)
        weights = getattr(self.model, "parameters", lambda: iter(()))()
        device = next((weight.device for weight in weights), torch.device("cpu"))
        return torch.zeros(batch, self.context, *size, device=device)

    @torch.no_grad()
    def predict(self, state: Tensor) -> WindowPrediction:
        """Return the first frame that the model sees after the window.

        Raises:
            ValueError: what the model returns is no row of frames of this shape.
        """
        made = self.model(state)
        if made.dim() != 5 or made.shape[:1] + made.shape[2:] != state.shape[:1] + state.shape[2:] or not made.shape[1]:
            raise ValueError(
                f"model must return [b, t, c, h, w] for a window of {list(state.shape)}; got {list(made.shape)}"
            )
        return WindowPrediction(made[:, 0].clamp(0, 1))

    def observe(self, frame: Tensor, prediction: WindowPrediction, state: Tensor) -> Tensor:
        """Return the window with a frame at its end; see `torchrsm.Predictor`."""
        check_frame(frame, prediction.frame)
        return torch.cat((state[:, 1:], frame[:, None]), 1)
