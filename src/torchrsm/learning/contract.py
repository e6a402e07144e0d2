"""What a run trains: the contract between the training loop and the way in which a system learns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from torchrsm.streams.stream import StreamBatch, StreamInPlace


class NonFiniteError(ArithmeticError):
    """An input, a loss or a weight is NaN or infinite. The run has stopped, and its last checkpoint is good."""


class Taught(NamedTuple):
    """The figures of one update: tensors on the device of the model, so that nothing waits for them.

    Attributes:
        scored: a scalar, how many frames have a prediction, made before the update, that is scored; first frames of
            sequences have none.
        frame_squared_error: a scalar, the mean over those frames; 0 if there are none.
        losses: ``[n]``, see `Learner.loss_names`.
        sums: ``[2 + n]``, what a record adds up: the scored frames, their errors, and each loss times the frames.
        errors: ``[t, b]``, the squared error of each frame that this process handed over; only where it is scored.
        is_scored: ``[t, b]`` bool, where it is.
    """

    scored: Tensor
    frame_squared_error: Tensor
    losses: Tensor
    sums: Tensor
    errors: Tensor
    is_scored: Tensor


class Learner(Protocol):
    """A model together with everything that changes while it learns.

    `torchrsm.runs.trainer.Trainer` owns the loop: it takes batches from the stream, hands them over, and writes down
    what comes back.
    """

    state: Any
    """What the streams have seen, (nested) tuples of tensors."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules with weights, by name; ``model`` is the model."""
        ...

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimisers, in an order that does not change; none if there is nothing to learn."""
        ...

    @property
    def batches_per_update(self) -> int:
        """How many batches of the stream one update takes."""
        ...

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
        """Compile the functions that are compiled on first use, without any other effect."""
        ...

    def teach(self, batches: Sequence[StreamBatch], progress: float) -> Taught:
        """Take one update from the next batches of the stream, `batches_per_update` of them.

        Nothing in it waits for the device. Whoever calls it looks whether the losses are finite
        (`require_finite_losses`). The figures hold until the next update.
        """
        ...

    def teach_in_place(self, stream: StreamInPlace, progress: float) -> Taught:
        """Take one update as `teach` does from the next batches of a stream that is made on the device."""
        ...


def taught(scored: Tensor, frame_squared_error: Tensor, losses: Tensor, errors: Tensor, is_scored: Tensor) -> Taught:
    """Return the figures of an update, with their `Taught.sums`."""
    means = torch.cat((torch.stack((torch.ones_like(scored), frame_squared_error)), losses.to(scored.dtype)))
    return Taught(scored, frame_squared_error, losses, scored * means, errors, is_scored)


def mean_of_scored(errors: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many frames are scored and the mean of their errors, 0 if there are none: two scalars.

    Args:
        errors: one for each frame.
        scored: bool, of the same shape.
    """
    count = scored.sum().to(errors.dtype)
    return count, torch.where(scored, errors, 0.0).sum() / count.clamp(min=1)


def require_finite_losses(names: Sequence[str], losses: Tensor) -> None:
    """Raise a `NonFiniteError` that names the first loss ``[n]`` that is not finite.

    It waits for the device.
    """
    if not bool(losses.isfinite().all()):
        name, value = next(pair for pair in zip(names, losses.tolist(), strict=True) if not math.isfinite(pair[1]))
        raise NonFiniteError(f"{name} is {value}")


def require_finite_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise a `NonFiniteError` that names the first tensor that is not finite; one wait for all of them."""
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    flags = [tensor.isfinite().all() for tensor in numbers.values()] or [torch.tensor(True)]
    good = torch.stack([flag.to(flags[0].device) for flag in flags])  # optimisers keep some numbers on the CPU
    if not bool(good.all()):
        raise NonFiniteError(f"{list(numbers)[good.tolist().index(False)]} is not finite")
