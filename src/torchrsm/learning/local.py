"""How the stack learns: an optimiser for each layer, which follows that layer's error alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from torchrsm.learning.optimisers import adam, forget_gradients, set_rate
from torchrsm.learning.schedules import ScheduleConfig
from torchrsm.model import Prediction, VideoPredictor
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import LayerPrediction, RSMLayer
from torchrsm.rsm.symmetry import Ties, give, take_firsts, take_means

_Decay = Annotated[float, Field(ge=0, lt=1)]


class LearningConfig(ScheduleConfig):
    """How the layers learn.

    Attributes:
        learning_rates: one for each layer, from below; a single one serves all.
        betas: decay of Adam's two averages.
        epsilon: Adam's constant in the divisor.
        streams_per_update: most streams from whose frames the stack learns at once, while it learns alone; where there
            are more they take turns. Each turn is an update, from the weights that the turn before left, so fewer
            streams make more updates of the same frames. None for all streams at once.
    """

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(5e-4,), min_length=1)
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    streams_per_update: int | None = Field(default=None, gt=0)
    head_learning_rate: float = Field(default=5e-4, gt=0)


class LocalLearning:
    """One Adam for each layer of a model, and one for its head; weights follow the error of their own part only.

    Attributes:
        weights: those of each layer, then the head's.
    """

    def __init__(self, model: VideoPredictor, config: LearningConfig) -> None:
        layers = model.stack.layers
        rates = config.learning_rates * len(layers) if len(config.learning_rates) == 1 else config.learning_rates
        if len(rates) != len(layers):
            raise ValueError(f"learning_rates must have 1 or {len(layers)} entries, one a layer; got {len(rates)}")
        self.model = model
        self.config = config
        self.learning_rates = rates
        self.weights = [list(layer.parameters()) for layer in layers]
        self._on_cpu = all(weight.device.type == "cpu" for weight in model.stack.parameters())
        make = partial(adam, betas=config.betas, epsilon=config.epsilon)
        layer_steps = [
            _LayerSteps(layer, partial(make, learning_rate=rate)) for layer, rate in zip(layers, rates, strict=True)
        ]
        self.optimisers = [steps.optimiser for steps in layer_steps]
        if model.head is not None:
            self.weights.append(list(model.head.parameters()))
            self.learning_rates = (*rates, config.head_learning_rate)
            self.optimisers.append(make(self.weights[-1], learning_rate=config.head_learning_rate))
        self._before = [task for steps in layer_steps for task in steps.before]
        self._after = [task for steps in layer_steps for task in steps.after]

    def losses(
        self, prediction: Prediction, frame: Tensor, learn: Tensor, symbols: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the error of each layer, then the head's: scalars on graphs that share nothing.

        Args:
            prediction: of the model.
            frame: that came, ``[b, c, h, w]``.
            learn: ``[b]`` bool, false for streams to leave out.
            symbols: that came, ``[b]`` int64; needed for a head.

        Raises:
            ValueError: the model has a head and frames are no symbols.
        """
        losses = self.model.losses(prediction, frame, learn)
        if self.model.head is None:
            return losses
        if symbols is None:
            raise ValueError("the stream must be one of symbols for a model with a head; got frames without symbols")
        return (*losses, self.model.symbol_loss(prediction, symbols, learn))

    def set_progress(self, progress: float) -> None:
        """Set the learning rates in force at this ``progress`` through the stack's part of the run, in 0..1."""
        factor = self.config.rate_factor(progress)
        for optimiser, rate in zip(self.optimisers, self.learning_rates, strict=True):
            set_rate(optimiser, rate * factor)

    def find_gradients(self, losses: tuple[Tensor, ...]) -> None:
        """Find the gradient of the error of each layer, and of the head, for the weights of that part."""
        for own, loss in zip(self.weights, losses, strict=True):
            forget_gradients(own)
            loss.backward()

    def wins(self, prediction: Prediction) -> list[Tensor]:
        """Return what `RSMLayer.wins` counts, for each layer that is boosted."""
        return [layer.wins(part.cells) for layer, part in self._boosted(prediction)]

    def step(self, prediction: Prediction, wins: Sequence[Tensor] | None = None) -> None:
        """Take one step along the gradients that `find_gradients` found for this prediction.

        Args:
            prediction: what the losses compared with the frame.
            wins: what `wins` counted, over all processes; None for those of the prediction.
        """
        for tasks in (self._before, [optimiser.step for optimiser in self.optimisers], self._after):
            if self._on_cpu:
                kernels.side_by_side(tasks)
            else:  # other threads have other CUDA streams, where nothing is recorded
                for task in tasks:
                    task()
        counted = self.wins(prediction) if wins is None else wins
        for (layer, _), count in zip(self._boosted(prediction), counted, strict=True):
            layer.update_duty(count)

    def _boosted(self, prediction: Prediction) -> list[tuple[RSMLayer, LayerPrediction]]:
        pairs = zip(self.model.stack.layers, prediction.layers, strict=True)
        return [(layer, part) for layer, part in pairs if layer.config.boost > 0]


class _LayerSteps:
    """The optimiser of a layer. It holds one number of each tied set, so a step does not pay for the copies.

    Args:
        layer: its weights change.
        make: returns the optimiser of the weights that it is given.

    Attributes:
        before: what must be done before a step of the optimiser, in any order: it takes numbers and gradients.
        after: what must be done after it, in any order: the numbers go to all their places in the weights.
    """

    def __init__(self, layer: RSMLayer, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        self._weights = dict(layer.named_parameters())
        self._tied: dict[str, Tensor] = {}
        for name in layer.tied.repeated():
            self._tied[name] = layer.tied.numbers(name, self._weights[name])
            self._tied[name].grad = torch.empty_like(self._tied[name])
        pieces = [(name, *piece) for name in self._tied for piece in layer.tied.pieces(name)]
        self.before = [partial(self._take, *piece) for piece in pieces]
        self.after = [partial(self._give, *piece) for piece in pieces]
        self.optimiser = make([self._tied.get(name, weight) for name, weight in self._weights.items()])

    def _take(self, name: str, part: slice, ties: Ties) -> None:
        weight, numbers = self._weights[name], self._tied[name]
        assert weight.grad is not None
        assert numbers.grad is not None
        take_firsts(weight, numbers[part], ties)
        take_means(weight.grad, numbers.grad[part], ties)

    def _give(self, name: str, part: slice, ties: Ties) -> None:
        give(self._tied[name][part], self._weights[name], ties)
