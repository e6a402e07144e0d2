"""How RSM learns from a stream: one update for each frame, the stack first, then the rectifier on what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchrsm.learning.contract import Taught, require_finite, require_finite_weights
from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.learning.rectifying import RECTIFIER_LOSSES, RectifierLearning, RectifyingConfig
from torchrsm.model import ModelConfig, Prediction, VideoPredictor
from torchrsm.predictor import restart
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import LayerState
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.streams import StreamBatch

Phase = Literal["stack", "both", "rectifier"]
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
    """A `torchrsm.learning.contract.Learner`.

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
        self._rectifier_from = 1.0 if rectifying is None else 1.0 - rectifying.share if stack_learns else 0.0
        self._stack_until = self._rectifier_from
        if rectifying is not None and stack_learns and rectifying.stack_share is not None:
            self._stack_until = rectifying.stack_share

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
        """Return what learns: the stack first, the rectifier last, both where their shares of the run overlap."""
        if progress >= self._stack_until:
            return "rectifier" if self._rectifier_from < 1 else "stack"
        return "both" if progress >= self._rectifier_from else "stack"

    def loss_names(self, phase: str) -> Sequence[str]:
        """Return the layers, whose loss is the mean squared error, or the rectifier's terms, or all of these."""
        layers = [f"loss/layer_{number}" for number in range(1, len(self.model.stack.layers) + 1)]
        terms = [f"rectifier/{name}" for name in RECTIFIER_LOSSES]
        return {"stack": layers, "rectifier": terms, "both": [*layers, *terms]}[phase]

    def begin(self, phase: str, threads: int) -> None:
        """Give the cores to what does most of the work in a phase, and freeze the stack where it does not learn."""
        if phase == "stack":
            # A run that was extended comes back to it from a later phase, where streams may have been dreaming.
            self.state = self.state._replace(alone=torch.zeros_like(self.state.alone))
            kernels.set_threads(threads)
        else:
            kernels.set_threads(1, torch_threads=threads)
        self.model.train(phase != "rectifier")

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
        learn, phase = ~starts, self.phase(progress)
        losses: tuple[float, ...] = ()
        if phase == "rectifier":
            with torch.no_grad():
                prediction = self.model.predict_raw(layers)
        else:
            prediction = self.model.predict_raw(layers)
            losses = self._teach_stack(prediction, frames, learn & awake, progress)  # nor is it learned from
        predicted = prediction.raw
        heard = frames
        if phase != "stack":
            predicted, heard, terms = self._teach_rectifier(prediction, layers, frames, learn, progress)
            losses += terms
        self.state = self.state._replace(layers=self.model.observe(heard, prediction, layers))
        error = frame_squared_error(predicted, frames)[learn & awake]
        return Taught(error.numel(), float(error.mean()) if error.numel() else 0.0, losses)

    def _teach_stack(self, prediction: Prediction, frames: Tensor, learn: Tensor, progress: float) -> tuple[float, ...]:
        losses = self.model.losses(prediction, frames, learn)
        values = [float(loss.detach()) for loss in losses]
        for number, value in enumerate(values, 1):
            require_finite(f"the loss of layer {number}", value)
        self._learning.step(losses, prediction, progress / self._stack_until)
        require_finite_weights(self.model.stack)
        return tuple(values)

    def _teach_rectifier(
        self, prediction: Prediction, layers: LayerStates, frames: Tensor, learn: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        """Return the rectified frames, what the stack hears, and the losses."""
        assert self._rectifying is not None
        assert self.model.rectifier is not None
        done = (progress - self._rectifier_from) / (1 - self._rectifier_from)
        last = self.model.last_frame(layers)
        rectified = self._rectifying.step(prediction, frames, learn, done, last, self.state.alone)
        values = [float(loss) for loss in rectified.losses]
        for name, value in zip(RECTIFIER_LOSSES, values, strict=True):
            require_finite(f"the rectifier's {name}", value)
        require_finite_weights(self.model.rectifier)
        require_finite_weights(self._rectifying.discriminator)
        heard, alone = self._rectifying.heard(frames, rectified.frame, learn, done, self.state.alone)
        self.state = self.state._replace(alone=alone)
        return rectified.frame, heard, tuple(values)
