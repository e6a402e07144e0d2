"""How RSM learns from a stream: one update for each frame, the stack first, then the rectifier on what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchrsm import kernels
from torchrsm.layer import LayerState
from torchrsm.learner import Taught, require_finite, require_finite_weights
from torchrsm.learning import RECTIFIER_LOSSES, LearningConfig, LocalLearning, RectifierLearning, RectifyingConfig
from torchrsm.metrics import frame_squared_error
from torchrsm.model import ModelConfig, Prediction, VideoPredictor
from torchrsm.predictor import restart
from torchrsm.streams import StreamBatch

Phase = Literal["stack", "rectifier"]
LayerStates = tuple[LayerState, ...]


class OnlineState(NamedTuple):
    """What the streams have seen.

    Attributes:
        layers: the state of each layer.
        alone: ``[b]`` int64, see `RectifierLearning.heard`.
    """

    layers: LayerStates
    alone: Tensor


class OnlineLearner:
    """A `torchrsm.learner.Learner`.

    Args:
        model: settings of the model, which is made here.
        learning: of the stack.
        rectifying: of the rectifier; None where there is none that learns.
        stack_learns: false if the whole run is the rectifier's; see `take_stack`.
        shape: batch, channels, height and width of the frames to come.

    Raises:
        ValueError: the model cannot read such frames.
    """

    def __init__(
        self,
        model: ModelConfig,
        learning: LearningConfig,
        rectifying: RectifyingConfig | None,
        stack_learns: bool,
        shape: tuple[int, int, int, int],
    ) -> None:
        self.model = VideoPredictor(model)
        self._learning = LocalLearning(self.model, learning)
        self._fresh = self.model.initial_state(shape)
        self.state = OnlineState(self._fresh, torch.zeros(shape[0], dtype=torch.int64))
        self._rectifying = (
            None if rectifying is None else RectifierLearning(self.model, rectifying, math.prod(shape[1:]))
        )
        self._stack_share = 1.0 if rectifying is None else 1.0 - rectifying.share if stack_learns else 0.0

    def take_stack(self, given: VideoPredictor) -> None:
        """Start from the stack of another model.

        Raises:
            ValueError: it is another kind of stack.
        """
        for name in ("layers", "channels", "height", "width", "pad", "pad_value", "fresh_feedback"):
            theirs, ours = getattr(given.config, name), getattr(self.model.config, name)
            if theirs != ours:
                raise ValueError(
                    f"stack_from must be a model of the same stack; its {name} is {theirs}, that of the run {ours}"
                )
        self.model.stack.load_state_dict(given.stack.state_dict())

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The model and, where there is one, the rectifier's discriminator."""
        modules: dict[str, nn.Module] = {"model": self.model}
        if self._rectifying is not None:
            modules["discriminator"] = self._rectifying.discriminator
        return modules

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """One for each layer, then the rectifier's."""
        rectifying = [] if self._rectifying is None else self._rectifying.optimisers
        return [*self._learning.optimisers, *rectifying]

    def phase(self, progress: float) -> Phase:
        """Return what learns: the stack, and for the last share of the run the rectifier."""
        return "rectifier" if progress >= self._stack_share else "stack"

    def loss_names(self, phase: str) -> Sequence[str]:
        """Return the layers, whose loss is the mean squared error, or the rectifier's terms."""
        if phase == "rectifier":
            return [f"rectifier/{name}" for name in RECTIFIER_LOSSES]
        return [f"loss/layer_{number}" for number in range(1, len(self.model.stack.layers) + 1)]

    def begin(self, phase: str, threads: int) -> None:
        """Give the cores to what does most of the work in a phase, and freeze the stack where it does not learn."""
        if phase == "stack":
            kernels.set_threads(threads)
            self.model.train()
        else:
            kernels.set_threads(1, torch_threads=threads)
            self.model.eval()

    def warm_up(self) -> None:
        """Compile the kernels, so that no budget in minutes pays for it."""
        learn = torch.ones(len(self.state.alone), dtype=torch.bool)
        with torch.random.fork_rng():
            prediction = self.model.predict_raw(self._fresh)
            for loss in self.model.losses(prediction, torch.zeros_like(prediction.raw), learn):
                loss.backward()
        self.model.zero_grad()

    def teach(self, next_batch: Callable[[], StreamBatch], progress: float) -> Taught:
        """Take one update from one frame of each stream."""
        frames, starts, _ = next_batch()
        layers = restart(self.state.layers, self._fresh, starts)
        awake = self.state.alone == 0  # a dream is not scored against the frames that came
        if self.phase(progress) == "stack":
            taught = self._teach_stack(layers, frames, ~starts, progress)
        else:
            taught = self._teach_rectifier(layers, frames, ~starts, progress)
        predicted, heard, prediction, losses = taught
        self.state = self.state._replace(layers=self.model.observe(heard, prediction, layers))
        error = frame_squared_error(predicted, frames)[~starts & awake]
        return Taught(error.numel(), float(error.mean()) if error.numel() else 0.0, losses)

    def _teach_stack(
        self, layers: LayerStates, frames: Tensor, learn: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Prediction, tuple[float, ...]]:
        prediction = self.model.predict_raw(layers)
        losses = self.model.losses(prediction, frames, learn)
        values = [float(loss.detach()) for loss in losses]
        for number, value in enumerate(values, 1):
            require_finite(f"the loss of layer {number}", value)
        self._learning.step(losses, prediction, progress / self._stack_share)
        require_finite_weights(self.model.stack)
        return prediction.raw, frames, prediction, tuple(values)

    def _teach_rectifier(
        self, layers: LayerStates, frames: Tensor, learn: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Prediction, tuple[float, ...]]:
        assert self._rectifying is not None
        assert self.model.rectifier is not None
        with torch.no_grad():
            prediction = self.model.predict_raw(layers)
        done = (progress - self._stack_share) / (1 - self._stack_share)
        last = self.model.last_frame(layers)
        rectified = self._rectifying.step(prediction, frames, learn, done, last, self.state.alone)
        values = [float(loss) for loss in rectified.losses]
        for name, value in zip(RECTIFIER_LOSSES, values, strict=True):
            require_finite(f"the rectifier's {name}", value)
        require_finite_weights(self.model.rectifier)
        require_finite_weights(self._rectifying.discriminator)
        heard, alone = self._rectifying.heard(frames, rectified.frame, learn, done, self.state.alone)
        self.state = self.state._replace(alone=alone)
        return rectified.frame, heard, prediction, tuple(values)
