"""What a run trains: the contract between the training loop and the way in which a system learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from torchrsm.streams import StreamBatch


class NonFiniteError(ArithmeticError):
    """An input, a loss or a weight is NaN or infinite; the run has stopped, its last checkpoint is good."""


class Taught(NamedTuple):
    """What one update was made of.

    Attributes:
        scored: frames whose prediction, made before the update, is scored; first frames of sequences are not.
        frame_squared_error: mean over those frames; 0 if there are none.
        losses: see `Learner.loss_names`.
    """

    scored: int
    frame_squared_error: float
    losses: tuple[float, ...]


class Learner(Protocol):
    """A model with all that changes while it learns, and no more; `torchrsm.runs.trainer.Trainer` owns the loop."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All that has weights, by name; ``model`` is the model."""
        ...

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """In an order that does not change; none where there is nothing to learn."""
        ...

    state: Any
    """What the streams have seen, (nested) tuples of tensors."""

    def phase(self, progress: float) -> str:
        """Name what learns at this ``progress`` through the run, in 0..1."""
        ...

    def loss_names(self, phase: str) -> Sequence[str]:
        """Name the losses of a phase."""
        ...

    def begin(self, phase: str, threads: int) -> None:
        """Get ready for a phase, on so many threads."""
        ...

    def warm_up(self) -> None:
        """Compile what is compiled on first use; nothing changes."""
        ...

    def teach(self, next_batch: Callable[[], StreamBatch], progress: float) -> Taught:
        """Take one update from as many batches of the stream as one takes.

        Raises:
            NonFiniteError: a loss or a weight is NaN or infinite.
        """
        ...


def require_finite(name: str, value: float) -> float:
    """Return a loss, or raise a `NonFiniteError` that names it."""
    if not math.isfinite(value):
        raise NonFiniteError(f"{name} is {value}")
    return value


def require_finite_weights(part: nn.Module) -> None:
    """Raise a `NonFiniteError` that names the first weights that are not finite."""
    # A sum is not finite if a term is not; one pass without a mask.
    for name, weight in part.named_parameters():
        if not math.isfinite(float(weight.detach().sum())):
            raise NonFiniteError(f"the weights {name} are not finite")
