"""Watching a stream: learn from each frame as it comes, and say how surprising it was."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
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
_LEAST_DEVIATION = 0.35  # of the logarithm of the error
_NEW_WORLD = 10  # surprising frames in a row, after which what is usual is found anew
_SURPRISING = 4.0  # deviations
# Errors and motions count as shares of the variance of a frame: a cut changes most of it, noise little.
_DIM = 0.005  # added to the variance, so that hardly anything is large in a picture that shows hardly anything
_LEAST_ERROR = 0.02  # added to the share of an error
_LEAST_MOTION = 1e-5  # added to that of a motion
# A jump: an error so many times larger than those of the frames before counts as one deviation.
_LAST_ERRORS = 6  # frames
_JUMP = 1.3 / _SURPRISING  # natural logarithm
# A freeze: motion that is so many times smaller than it was in two of three of the frames before counts as one.
_LAST_MOTIONS = 24  # frames
_STILL_FRAMES = 2  # a film that was brought to a higher rate shows single frames twice
_FREEZE = 4.5 / _SURPRISING  # natural logarithm
_HALF_WAY = 0.5


class Surprise(NamedTuple):
    """How well one frame was predicted, and how unusual that is.

    Attributes:
        frame: its number, from 0.
        error: squared error of the prediction, summed over all elements; None for the first frame.
        copy_error: the same of repeating the frame before.
        surprise: how unusual the frame is, 0 or more; from about 4 on it is an anomaly. See `Usual`, `jump` and
            `freeze`, of which it is the largest. 0 while nothing is usual yet.
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
        model: to begin with, which stays as it is: the watcher learns with a copy. None for a new one.

    Raises:
        ValueError: a size below 1, a device that is not there, or a model without a rectifier that learns, or one that
            cannot read frames of this shape.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        seed: int = 0,
        device: str | torch.device = "cpu",
        model: VideoPredictor | None = None,
    ) -> None:
        if min(shape) < 1:
            raise ValueError(f"shape must be three positive numbers; got {shape}")
        self.shape = shape
        run = for_watching(shape)
        if model is not None:
            if model.config.rectifier is None or not model.config.rectifier.learns:
                raise ValueError("model must have a rectifier that learns, to learn while it watches; got one without")
            if model.config.channels != shape[0]:
                theirs = model.config.channels
                raise ValueError(f"model must read frames of {shape[0]} channel(s); got one for {theirs}")
            run = run.replace(model=model.config)
        place = choose_device(device)
        self._randomness = Randomness(seed, place)
        with self._randomness.in_use(), kernels.threads_in_use(1):
            self._learner = OnlineLearner(run.model, run.learning, run.rectifying, True, (1, *shape), place)
            if model is not None:
                self._learner.model.load_state_dict(model.state_dict())
            self._learner.begin(self._learner.phase(_HALF_WAY), 1)
        self._like = torch.zeros(1, *shape)
        self._last: Tensor | None = None
        self._count = 0
        self._contrast = 0.0
        self._surprises = Surprises()

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
        before, contrast = self._contrast, float(seen.var(correction=0))
        self._contrast = contrast
        number, self._count = self._count, self._count + 1
        if begins:
            self._surprises.forget_the_last()
            return Surprise(number, None, None, 0.0)
        error = float(taught.frame_squared_error)
        if not math.isfinite(error):
            raise NonFiniteError(f"the error of frame {number} is {error}")
        assert copied is not None
        surprise = self._surprises.of(error / seen.numel(), copied / seen.numel(), max(contrast, before))
        return Surprise(number, error, copied, surprise)

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


class Surprises:
    """How unusual each frame of a row is: by its error, by a jump of it, or because motion ends.

    Nothing is surprising in the first 20 frames.
    """

    def __init__(self) -> None:
        self._usual = Usual()
        self._errors: deque[float] = deque(maxlen=_LAST_ERRORS)
        self._motions: deque[float] = deque(maxlen=_LAST_MOTIONS + _STILL_FRAMES)
        self._count = 0

    def of(self, error: float, motion: float, contrast: float) -> float:
        """Return the surprise of the next frame, 0 or more.

        Args:
            error: of its prediction, the mean square over its elements.
            motion: the mean square of the difference from the frame before.
            contrast: variance of its elements, or that of the frame before, if that is larger.
        """
        visible = contrast + _DIM
        level, moved = math.log(error / visible + _LEAST_ERROR), math.log(motion / visible + _LEAST_MOTION)
        found = max(0.0, self._usual.surprise(level), jump(level, self._errors), freeze(moved, self._motions))
        self._errors.append(level)
        self._motions.append(moved)
        self._count += 1
        return found if self._count > _SETTLING else 0.0

    def forget_the_last(self) -> None:
        """Begin anew with what a frame is compared with directly, after a gap; what is usual stays."""
        self._errors.clear()
        self._motions.clear()


def jump(level: float, last: Sequence[float]) -> float:
    """Return how far the logarithm of an error lies above the largest of the last ones: 4 for 3.7 times as much.

    Args:
        level: of this frame.
        last: of the frames before; 0 is returned if there are none.
    """
    return (level - max(last)) / _JUMP if last else 0.0


def freeze(moved: float, last: Sequence[float]) -> float:
    """Return how far the logarithm of the motion lies below that of the frames before: 4 for 90 times less.

    A frame and the one before it must both be still.

    Args:
        moved: of this frame.
        last: of the frames before, the newest last; 0 is returned if there are fewer than 26.
    """
    if len(last) < _LAST_MOTIONS + _STILL_FRAMES:
        return 0.0
    row = [*last, moved]
    before, now = sorted(row[-_STILL_FRAMES - _LAST_MOTIONS : -_STILL_FRAMES]), max(row[-_STILL_FRAMES:])
    return (before[_LAST_MOTIONS // 3] - now) / _FREEZE


class Usual:
    """Mean and deviation of the logarithm of the error over the last frames, each frame weighing as much as it did.

    Attributes:
        mean: of the logarithm.
    """

    def __init__(self) -> None:
        self._begin()
        self._in_a_row = 0

    def _begin(self) -> None:
        self.mean, self._square, self._count = 0.0, 0.0, 0

    @property
    def deviation(self) -> float:
        """Root mean square of how far the logarithm lay from its mean."""
        return max(math.sqrt(max(self._square, 0.0)), _LEAST_DEVIATION)

    def surprise(self, level: float) -> float:
        """Return how far above its usual level an error lies, then remember it, no further off than that.

        After ten surprising frames in a row the world has changed, and what is usual is found anew.

        Args:
            level: logarithm of an error.

        Returns:
            Deviations, 0 or more; 0 for the first frames, before anything is usual.
        """
        deviation = self.deviation
        off = level - self.mean if self._count else 0.0
        surprise = max(off / deviation, 0.0) if self._count >= _SETTLING else 0.0
        self._in_a_row = self._in_a_row + 1 if surprise >= _SURPRISING else 0
        if self._in_a_row == _NEW_WORLD:
            self._begin()
            self._in_a_row, off = 0, 0.0
        # An outlier counts as three deviations at most, so that it does not become what is usual.
        held = max(-3 * deviation, min(3 * deviation, off)) if self._count >= _SETTLING else off
        rate = max(1 / _MEMORY, 1 / (self._count + 1))
        self.mean = level if not self._count else self.mean + rate * held
        self._square += rate * (held * held - self._square) if self._count else 0.0
        self._count += 1
        return surprise
