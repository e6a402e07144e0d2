"""How a baseline learns from a stream: one update for each window of frames, with the gradient through the window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrsm.baselines.sequence_model import SequenceModel, Window
from torchrsm.learning.captured import Recorder, Updates, recorder_for
from torchrsm.learning.contract import Taught, mean_of_scored, taught
from torchrsm.learning.optimisers import adam, has_fused_steps, set_rate, with_muon, with_rates_on_device
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.schedules import ScheduleConfig
from torchrsm.precision import layers_of
from torchrsm.predictor import filled, restart
from torchrsm.rectifiers.contract import kernels_of
from torchrsm.rsm import kernels
from torchrsm.rsm.symmetry import tied_parts
from torchrsm.scoring.metrics import frame_squared_error_on_device
from torchrsm.streams.stream import StreamBatch, StreamInPlace

_CPU = torch.device("cpu")
_ALONE = Ranks()

_Decay = Annotated[float, Field(ge=0, lt=1)]


class SequenceLearningConfig(ScheduleConfig):
    """How a baseline learns.

    Attributes:
        window: frames of each stream in an update; the gradient goes back through them.
        optimiser: ``adam``, ``rmsprop`` or ``sgd``.
        learning_rates: one for each loss (`SequenceModel.loss_names`); a single one serves all.
        matrix_learning_rate: of the kernels of convolutions, each taken as a matrix, by `Muon`; None for the optimiser
            there, too.
        momentum: of ``rmsprop`` and ``sgd``; for ``adam``, the decay of its average of the gradient.
        square_decay: of the average of the squared gradient; not of ``sgd``.
        epsilon: constant in the divisor; not of ``sgd``.
        weight_decay: added to the gradient, times the weight.
        gradient_norm: longest gradient; a longer one is shortened to it. None for no limit.
    """

    window: int = Field(default=20, gt=0)
    optimiser: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1e-3,), min_length=1)
    matrix_learning_rate: float | None = Field(default=None, gt=0)
    momentum: _Decay = 0.9
    square_decay: _Decay = 0.999
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_norm: float | None = Field(default=None, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings that a constant schedule and plain gradient descent do not use."""
        yield from super().without_effect()
        if self.optimiser == "sgd":
            for name in ("square_decay", "epsilon"):
                yield name, "the optimiser is sgd"


class _Shown(NamedTuple):
    """What an update takes.

    Attributes:
        window: the next frames.
        seen: ``[time, b, 1, h, w]`` bool, true where a frame shows something; None where all do everywhere.
    """

    window: Window
    seen: Tensor | None


class SequenceLearner:
    """A `torchrsm.learning.contract.Learner`.

    Args:
        model: what learns.
        config: how.
        shape: batch, channels, height and width of the frames to come.
        device: where the model learns; it and the batches are moved there.
        ranks: the processes that train together; ``shape`` holds the streams of this one.
        recorder_for: returns what records updates on a device; None where they run as they are written.

    Raises:
        ValueError: the model cannot read such frames, needs longer windows, has another number of losses than there are
            learning rates, or has no kernels for a matrix learning rate.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: SequenceLearningConfig,
        shape: tuple[int, int, int, int],
        device: torch.device = _CPU,
        ranks: Ranks = _ALONE,
        recorder_for: Callable[[torch.device], Recorder | None] = recorder_for,
    ) -> None:
        if config.window < model.shortest_window:
            raise ValueError(f"window must be >= {model.shortest_window} for this model; got {config.window}")
        self.model = model.to(device)
        self.config = config
        self._ranks = ranks
        self._groups = [group for group in model.weight_groups() if group]
        self._tied = tied_parts(model)
        count = len(self._groups)
        rates = config.learning_rates * count if len(config.learning_rates) == 1 else config.learning_rates
        if len(rates) != count:
            raise ValueError(f"learning_rates must have 1 or {count} entries, one a loss; got {len(rates)}")
        matrices = kernels_of(model)
        if config.matrix_learning_rate is not None and not matrices:
            raise ValueError(
                "matrix_learning_rate must be None for a model without kernels of convolutions; "
                f"got {config.matrix_learning_rate:g}"
            )
        self._optimisers = [
            _optimisers(config, group, matrices, rate) for group, rate in zip(self._groups, rates, strict=True)
        ]
        recorder = None if model.asks_for_values else recorder_for(device)
        self._updates: Updates[_Shown, Any] = Updates(
            model.initial_state(shape), self.modules, self.optimisers, device, recorder
        )

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """Those of each loss in turn."""
        return [optimiser for group in self._optimisers for optimiser, _ in group]

    @property
    def state(self) -> Any:
        """What the streams have seen."""
        return self._updates.state

    @state.setter
    def state(self, state: Any) -> None:
        self._updates.state = state

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The model, which holds all weights."""
        return {"model": self.model}

    def phase(self, progress: float) -> str:
        """Return the only phase."""
        return "sequence"

    def loss_names(self, phase: str) -> Sequence[str]:
        """Return those of the model."""
        return [f"loss/{name}" for name in self.model.loss_names]

    def begin(self, phase: str, threads: int) -> None:
        """Give all threads to torch."""
        kernels.set_threads(1, torch_threads=threads)
        self.model.train()

    def warm_up(self) -> None:
        """Do nothing: nothing is compiled."""

    @property
    def batches_per_update(self) -> int:
        """The frames of a window."""
        return self.config.window

    def teach(self, batches: Sequence[StreamBatch], progress: float) -> Taught:
        """Take one update from the next window of each stream."""
        factor = self.config.rate_factor(progress)
        for group in self._optimisers:
            for optimiser, rate in group:
                set_rate(optimiser, rate * factor)
        seen = [batch.seen for batch in batches if batch.seen is not None]
        symbols = [batch.symbols for batch in batches if batch.symbols is not None]
        window = Window(
            torch.stack([batch.frames for batch in batches]),
            torch.stack([batch.starts for batch in batches]),
            torch.stack(symbols) if symbols else None,
        )
        shown = _Shown(window, torch.stack(seen) if seen else None)
        return self._updates.run("sequence", self._update, shown)

    def teach_in_place(self, stream: StreamInPlace, progress: float) -> Taught:
        """Take one update from the next window of a stream that is made on the device."""
        return self.teach([self._updates.next_of(stream) for _ in range(self.batches_per_update)], progress)

    def _update(self, shown: _Shown, state: Any) -> tuple[Taught, Any]:
        """Change the weights; return what the update was made of and the state after it. Nothing waits."""
        window, seen = shown
        with layers_of(window.frames.device):
            if seen is not None:
                window = self._filled(window, seen, state)
            lesson = self.model.learn(window, state)
        losses = torch.stack([loss.detach() for loss in lesson.losses])
        gradients = self._gradients(lesson.losses) if self._groups else []
        errors = frame_squared_error_on_device(lesson.frames, window.frames)
        scored, error = mean_of_scored(errors, lesson.scored)
        if self._ranks.count > 1:
            scored, error = self._of_all_processes(gradients, losses, lesson.counted, scored, error)
        self._step(gradients)
        return taught(scored, error, losses, errors, lesson.scored), lesson.state

    @torch.no_grad()
    def _filled(self, window: Window, seen: Tensor, state: Any) -> Window:
        """Return the window with the model's own predictions where nothing was seen.

        When the model then learns from it, it predicts the same there again, so there nothing is learned.
        """
        _, batch, channels, height, width = window.frames.shape
        fresh = self.model.initial_state((batch, channels, height, width))
        frames: list[Tensor] = []
        for frame, starts, mask in zip(window.frames, window.starts, seen, strict=True):
            state = restart(state, fresh, starts)
            prediction = self.model.predict(state)
            frames.append(filled(frame, prediction.frame, mask))
            state = self.model.advance(frames[-1], prediction, state)
        return window._replace(frames=torch.stack(frames))

    def _gradients(self, losses: tuple[Tensor, ...]) -> list[list[Tensor | None]]:
        """Return the gradient of each loss for its weights, before any of these changes."""
        last = len(losses) - 1
        found = [
            torch.autograd.grad(loss, group, retain_graph=number < last, allow_unused=True)
            for number, (loss, group) in enumerate(zip(losses, self._groups, strict=True))
        ]
        return [
            [None if gradient is None else _laid_out_as(weight, gradient) for weight, gradient in pairs]
            for pairs in (zip(group, part, strict=True) for group, part in zip(self._groups, found, strict=True))
        ]

    def _of_all_processes(
        self,
        gradients: list[list[Tensor | None]],
        losses: Tensor,
        counted: Tensor | None,
        scored: Tensor,
        error: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Replace gradients and losses, which are means, by those over all processes; return the two figures of all.

        Running statistics of the model become their mean over the processes, which see equally many streams.

        Args:
            gradients: as `_gradients` returns them.
            losses: ``[n]``.
            counted: see `Lesson`.
            scored: how many frames are scored.
            error: the mean over them.
        """
        counts = torch.stack((scored, scored * error, scored if counted is None else counted.to(scored.dtype)))
        means = [losses, *(gradient for group in gradients for gradient in group if gradient is not None)]
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point() and buffer.numel()]
        torch._foreach_mul_(means, counts[2].to(losses.dtype))
        for statistic in statistics:
            statistic /= self._ranks.count
        self._ranks.sum([*means, *statistics, counts])
        torch._foreach_div_(means, counts[2].clamp(min=1).to(losses.dtype))
        return counts[0], counts[1] / counts[0].clamp(min=1)

    def _step(self, gradients: list[list[Tensor | None]]) -> None:
        for group, found in zip(self._groups, gradients, strict=True):
            for weight, gradient in zip(group, found, strict=True):
                weight.grad = gradient
        for part, tied in self._tied:
            tied.tie_gradients(part)
        for group, optimisers in zip(self._groups, self._optimisers, strict=True):
            if self.config.gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(group, self.config.gradient_norm)
            for optimiser, _ in optimisers:
                optimiser.step()
                optimiser.zero_grad()
        for part, tied in self._tied:
            tied.tie_weights(part)


def _laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient in the memory layout of its weight, which a fused step expects.

    ``backward`` lays gradients out in this way, `torch.autograd.grad` does not.
    """
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _optimisers(
    config: SequenceLearningConfig, weights: list[nn.Parameter], matrices: Sequence[tuple[Tensor, bool]], rate: float
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return the optimisers of the weights of one loss, and the learning rate of each."""
    return with_muon(
        weights, matrices, rate, config.matrix_learning_rate, lambda others: _optimiser(config, others, rate)
    )


def _optimiser(config: SequenceLearningConfig, weights: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    decay = config.weight_decay
    if config.optimiser == "adam":
        return adam(weights, rate, (config.momentum, config.square_decay), config.epsilon, decay)
    if config.optimiser == "rmsprop":
        return with_rates_on_device(
            torch.optim.RMSprop(
                weights,
                rate,
                alpha=config.square_decay,
                eps=config.epsilon,
                weight_decay=decay,
                momentum=config.momentum,
                foreach=True,
                capturable=weights[0].device.type == "cuda",
            )
        )
    fused = has_fused_steps(weights)
    return with_rates_on_device(
        torch.optim.SGD(weights, rate, momentum=config.momentum, weight_decay=decay, fused=fused)
    )
