"""A predictor that draws one of the futures that may come, in place of their average."""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from torchrsm.predictor import HasFrame, Predictor

PredictionT = TypeVar("PredictionT", bound=HasFrame)
StateT = TypeVar("StateT")


class Drawing(Predictor[PredictionT, StateT], Protocol[PredictionT, StateT]):
    """A predictor that can draw."""

    def draw(self, prediction: PredictionT, generator: torch.Generator | None = None) -> Tensor:
        """Return one of the frames that may come, ``[b, c, h, w]``; another one at each call."""
        ...


class Sampled(nn.Module, Generic[PredictionT, StateT]):
    """Predicts as a model does, but that its frame is a draw: what is shown and, in a dream, fed back.

    Each prediction takes new noise from a generator of its own. So a dream is one future of many; the same seed dreams
    it again.

    Args:
        model: one that can draw; a `torch.nn.Module`.
        seed: of the noise, 0 to 2^63 - 1.

    Raises:
        ValueError: the seed is outside its range.
    """

    def __init__(self, model: Drawing[PredictionT, StateT], seed: int = 0) -> None:
        super().__init__()
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63 - 1; got {seed}")
        self.model = model
        device = next(cast(nn.Module, model).parameters()).device
        self._generator = torch.Generator(device).manual_seed(seed)

    def initial_state(self, shape: tuple[int, int, int, int]) -> StateT:
        """See `torchrsm.predictor.Predictor.initial_state`."""
        return self.model.initial_state(shape)

    def predict(self, state: StateT) -> PredictionT:
        """See `torchrsm.predictor.Predictor.predict`; ``frame`` is a draw."""
        prediction = self.model.predict(state)
        drawn = self.model.draw(prediction, self._generator)
        return cast(PredictionT, cast(NamedTuple, prediction)._replace(frame=drawn))

    def observe(self, frame: Tensor, prediction: PredictionT, state: StateT) -> StateT:
        """See `torchrsm.predictor.Predictor.observe`."""
        return self.model.observe(frame, prediction, state)
