"""A predictor that draws one of the futures that may come, in place of their average."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from torchrsm.predictor import HasFrame, Predictor
from torchrsm.rsm.functional import Chance

PredictionT = TypeVar("PredictionT", bound=HasFrame)
StateT = TypeVar("StateT")


class Drawing(Predictor[PredictionT, StateT], Protocol[PredictionT, StateT]):
    """A predictor that can draw."""

    def draw(self, prediction: PredictionT, generator: torch.Generator | None = None) -> Tensor:
        """Return one of the frames that may come, ``[b, c, h, w]``; another one at each call."""
        ...


class DrawingWinners(Predictor[PredictionT, StateT], Protocol[PredictionT, StateT]):
    """A predictor whose winners can be drawn."""

    def predict_raw(self, state: StateT, chance: Chance | None = None) -> PredictionT:
        """Predict without a rectifier, by winners that are drawn."""
        ...

    def rectify(self, prediction: PredictionT) -> Tensor:
        """Return the rectified frame of a prediction."""
        ...


ModelT = TypeVar("ModelT", bound=Predictor[Any, Any])


class _Drawing(nn.Module, Generic[ModelT, PredictionT, StateT]):
    """Draws what a model may predict, by random numbers of its own.

    Args:
        model: a `torch.nn.Module`.
        seed: of the noise, 0 to 2^63 - 1.

    Raises:
        ValueError: the seed is outside its range.
    """

    def __init__(self, model: ModelT, seed: int) -> None:
        super().__init__()
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63 - 1; got {seed}")
        self.model = model
        device = next(cast(nn.Module, model).parameters()).device
        self._generator = torch.Generator(device).manual_seed(seed)

    def initial_state(self, shape: tuple[int, int, int, int]) -> StateT:
        """See `torchrsm.predictor.Predictor.initial_state`."""
        return cast(StateT, self.model.initial_state(shape))

    def observe(self, frame: Tensor, prediction: PredictionT, state: StateT) -> StateT:
        """See `torchrsm.predictor.Predictor.observe`."""
        return cast(StateT, self.model.observe(frame, prediction, state))


class Sampled(_Drawing[Drawing[PredictionT, StateT], PredictionT, StateT]):
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
        super().__init__(model, seed)

    def predict(self, state: StateT) -> PredictionT:
        """See `torchrsm.predictor.Predictor.predict`; ``frame`` is a draw."""
        prediction = self.model.predict(state)
        return _replace(prediction, frame=self.model.draw(prediction, self._generator))


class SampledWinners(_Drawing[DrawingWinners[PredictionT, StateT], PredictionT, StateT]):
    """Predicts as a model does, but by winners that are drawn: cells win in proportion to how likely they are.

    The layers remember the winners that were drawn. So in a dream one chance leads on to the next.

    Args:
        model: a `torch.nn.Module` of RSM layers, with a rectifier or without one.
        temperature: above 0; see `torchrsm.rsm.functional.rank_by_chance`.
        seed: of the noise, 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, model: DrawingWinners[PredictionT, StateT], temperature: float, seed: int = 0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0; got {temperature!r}")
        super().__init__(model, seed)
        self.temperature = temperature

    def predict(self, state: StateT, samples: int = 0, generator: torch.Generator | None = None) -> PredictionT:
        """See `torchrsm.predictor.Predictor.predict`; ``frame`` is a draw.

        With ``samples`` it is what the model predicts, and the draws, ``[samples, b, c, h, w]``, stand beside it.

        Args:
            state: what the streams have seen.
            samples: how many frames that may come to draw, >= 0.
            generator: of the random numbers for that, on the device of the model; None for its own.
        """
        if samples == 0:
            return self._drawn(state, self._generator)
        drawn = [self._drawn(state, generator or self._generator).frame for _ in range(samples)]
        return _replace(self.model.predict(state), samples=torch.stack(drawn))

    @torch.no_grad()
    def _drawn(self, state: StateT, generator: torch.Generator) -> PredictionT:
        prediction = self.model.predict_raw(state, Chance(self.temperature, generator))
        return _replace(prediction, frame=self.model.rectify(prediction))


def _replace(prediction: PredictionT, **changes: Tensor) -> PredictionT:
    """Return a prediction, which is a named tuple, with some other fields."""
    return cast(PredictionT, cast(NamedTuple, prediction)._replace(**changes))
