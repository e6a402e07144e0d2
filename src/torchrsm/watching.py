"""Watching a stream: learn from each frame as it comes, and say how surprising it was."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.devices import choose_device
from torchrsm.learning.contract import NonFiniteError, require_finite_losses
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.randomness import Randomness
from torchrsm.model import VideoPredictor
from torchrsm.predictor import check_frame
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import for_watching
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.streams import StreamBatch

_MEMORY = 200  # the number of last frames that decide what is usual
_SETTLING = 20  # the number of frames before any can be surprising
_LEAST_DEVIATION = 0.1  # of the logarithm of the error
_LEAST_ERROR = 1e-5  # for each element; a smaller error counts as none, a smaller change as a still picture
_HALF_WAY = 0.5


class Surprise(NamedTuple):
    """How well one frame was predicted, and how unusual that is.

    Attributes:
        frame: its number, from 0.
        error: squared error of the prediction, summed over all elements; None for the first frame.
        copy_error: the same of repeating the frame before.
        surprise: how many standard deviations the frame lies from what is usual, by the logarithm of its error or by
            that of its motion (``copy_error``), whichever is further off, in either direction: a cut is badly
            predicted, a picture that freezes has no motion. 0 while nothing is usual yet.
    """

    frame: int
    error: float | None
    copy_error: float | None
    surprise: float


class Watcher:
    """Learns on line from one stream, in constant memory, and reports each frame's `Surprise`.

    Three lines::

        watcher = Watcher((1, 64, 64))
        for frame in VideoReader("street.mp4", height=64, width=64):
            print(watcher.see(frame).surprise)

    Args:
        shape: channels, height and width of the frames.
        seed: of the weights.
        device: where the model computes; see `torchrsm.devices.choose_device`.

    Raises:
        ValueError: a size below 1, or a device that is not there.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int = 0, device: str | torch.device = "cpu") -> None:
        if min(shape) < 1:
            raise ValueError(f"shape must be three positive numbers; got {shape}")
        self.shape = shape
        run = for_watching(shape)
        place = choose_device(device)
        self._randomness = Randomness(seed, place)
        with self._randomness.in_use(), kernels.threads_in_use(1):
            self._learner = OnlineLearner(run.model, run.learning, run.rectifying, True, (1, *shape), place)
            self._learner.begin(self._learner.phase(_HALF_WAY), 1)
        self._like = torch.zeros(1, *shape)
        self._last: Tensor | None = None
        self._count = 0
        self._usual_error, self._usual_motion = Usual(), Usual()

    @property
    def model(self) -> VideoPredictor:
        """The model as it has learned so far."""
        return self._learner.model

    def see(self, frame: Tensor | NDArray[Any], start: bool = False) -> Surprise:
        """Predict a frame from those before it, learn from it, and say how surprising it was.

        Args:
            frame: ``[c, h, w]``, a tensor or an array: floating-point values in 0..1, or uint8.
            start: whether nothing before it belongs to it; it is then not compared with anything.

        Raises:
            ValueError: a frame of another shape or type, or values outside of 0..1; nothing was learned from it.
            NonFiniteError: learning has failed.
        """
        seen = self._checked(frame)
        begins = start or self._last is None
        batch = StreamBatch(seen, torch.tensor([begins]), torch.tensor([0]))
        with self._randomness.in_use(), kernels.threads_in_use(1):
            taught = self._learner.teach([batch], _HALF_WAY)
        require_finite_losses(self._learner.loss_names(self._learner.phase(_HALF_WAY)), taught.losses)
        copied = None if begins or self._last is None else float(frame_squared_error(self._last, seen))
        self._last = seen
        number, self._count = self._count, self._count + 1
        if begins:
            return Surprise(number, None, None, 0.0)
        error = float(taught.frame_squared_error)
        if not math.isfinite(error):
            raise NonFiniteError(f"the error of frame {number} is {error}")
        assert copied is not None
        by_error = self._usual_error.surprise(error / seen.numel())
        by_motion = self._usual_motion.surprise(copied / seen.numel())
        return Surprise(number, error, copied, max(by_error, by_motion))

    def _checked(self, frame: Any) -> Tensor:
        """Return a frame of a user as ``[1, c, h, w]`` float32 in 0..1, in memory of its own."""
        given = frame
        if isinstance(frame, np.ndarray) and (frame.dtype == np.uint8 or frame.dtype.kind == "f"):
            given = torch.from_numpy(frame.astype(np.uint8 if frame.dtype == np.uint8 else np.float32))
        if not isinstance(given, Tensor) or not (given.dtype == torch.uint8 or given.is_floating_point()):
            kind = f"{type(frame).__name__} of {frame.dtype}" if hasattr(frame, "dtype") else type(frame).__name__
            raise ValueError(f"frame must be a tensor or an array, floating-point in 0..1 or uint8; got {kind}")
        if tuple(given.shape) != self.shape:
            raise ValueError(f"frame must have the shape {list(self.shape)}; got {list(given.shape)}")
        scale = 255 if given.dtype == torch.uint8 else 1
        seen = given.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)[None] / scale
        return check_frame(seen.to(self._like.device), self._like)


class Usual:
    """Mean and deviation of the logarithm of the error over the last frames, each frame weighing as much as it did.

    Attributes:
        mean: of the logarithm.
    """

    def __init__(self) -> None:
        self.mean, self._square, self._count = 0.0, 0.0, 0

    @property
    def deviation(self) -> float:
        """Root mean square of how far the logarithm lay from its mean."""
        return max(math.sqrt(max(self._square, 0.0)), _LEAST_DEVIATION)

    def surprise(self, error: float) -> float:
        """Return how far an error lies from what was usual before it, then remember it, no further off than that.

        Args:
            error: mean over the elements of a frame, 0 or more.

        Returns:
            Deviations, 0 or more; 0 for the first frames, before anything is usual.
        """
        level = math.log(max(error, _LEAST_ERROR))
        deviation = self.deviation
        off = level - self.mean if self._count else 0.0
        surprise = abs(off) / deviation if self._count >= _SETTLING else 0.0
        # An outlier counts as three deviations at most, so that it does not become what is usual.
        held = max(-3 * deviation, min(3 * deviation, off)) if self._count >= _SETTLING else off
        rate = max(1 / _MEMORY, 1 / (self._count + 1))
        self.mean = level if not self._count else self.mean + rate * held
        self._square += rate * (held * held - self._square) if self._count else 0.0
        self._count += 1
        return surprise
