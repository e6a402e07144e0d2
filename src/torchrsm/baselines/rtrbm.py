"""The recurrent temporal restricted Boltzmann machine: at each step an RBM whose hidden biases the past sets.

Ilya Sutskever, Geoffrey Hinton, Graham Taylor, "The Recurrent Temporal Restricted Boltzmann Machine", NIPS 2008; as
scored by Roni Mittelman, Benjamin Kuipers, Silvio Savarese, Honglak Lee, "Structured Recurrent Temporal Restricted
Boltzmann Machines", ICML 2014.

With the frame v, hidden units h and the past r, the energy of a step is ``-v.c - h.(W v) - h.(b + U r)``. The past is
the mean of the hidden units, ``r' = sigmoid(W v + b + U r)``; at the first step a bias of its own takes the place of
``b + U r``. Pixels are real values in 0..1, taken as the means of binary units.

A step's log-likelihood is ``-F(v) - log Z`` with the free energy F. Contrastive divergence replaces the gradient of
``log Z`` by that of ``-F`` at a sample a few Gibbs steps away from v. So the gradient of ``F(v) - F(sample)``, with the
sample held and r not, is the published update: contrastive divergence at each step, backpropagated through the past.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.sequence_model import BaselineConfig, Lesson, Predicted, SequenceModel, Window
from torchrsm.state import detach


class BoltzmannConfig(BaselineConfig):
    """Settings of an `RTRBM`.

    Attributes:
        hidden_units: of the machine [400 published].
        gibbs_steps: from a frame to the sample that contrastive divergence holds against it [10 and more published,
            growing; one is enough here and learns fastest for the time].
        prediction_steps: of the mean field, from the last frame to the prediction.
        direct: the last frame also sets the biases, those of the pixels and the hidden units [no].
        initial_deviation: of the weights before they learn; biases begin at 0.
    """

    hidden_units: int = Field(default=400, gt=0)
    gibbs_steps: int = Field(default=1, gt=0)
    prediction_steps: int = Field(default=10, gt=0)
    direct: bool = False
    initial_deviation: float = Field(default=0.01, gt=0)


class RTRBMConfig(BoltzmannConfig):
    """Settings of the `RTRBM`, see `BoltzmannConfig`."""

    kind: Literal["rtrbm"] = "rtrbm"


class RTRBMState(NamedTuple):
    """What has been seen.

    Attributes:
        frame: the last frame, ``[b, c, h, w]`` in 0..1; black before the first.
        past: the mean of the hidden units after it, ``[b, hidden_units]``.
        begun: ``[b]``, 1 after the first frame, 0 before.
    """

    frame: Tensor
    past: Tensor
    begun: Tensor


class Machine(NamedTuple):
    """The RBM of one step or of several: all that its conditionals need.

    Attributes:
        weights: ``[hidden, visible]``.
        hidden_bias: ``[..., hidden]``.
        visible_bias: ``[..., visible]``.
    """

    weights: Tensor
    hidden_bias: Tensor
    visible_bias: Tensor

    def hidden(self, visible: Tensor) -> Tensor:
        """Return the means of the hidden units given the visible ones."""
        return torch.sigmoid(visible @ self.weights.t() + self.hidden_bias)

    def visible(self, hidden: Tensor) -> Tensor:
        """Return the means of the visible units given the hidden ones."""
        return torch.sigmoid(hidden @ self.weights + self.visible_bias)

    def free_energy(self, visible: Tensor) -> Tensor:
        """Return ``-log`` of the sum of ``exp(-energy)`` over all hidden units, ``[...]``."""
        softplus = F.softplus(visible @ self.weights.t() + self.hidden_bias).sum(-1)
        return -(visible * self.visible_bias).sum(-1) - softplus

    def mean_field(self, visible: Tensor, steps: int) -> Tensor:
        """Return the visible means after alternating steps of the mean field."""
        for _ in range(steps):
            visible = self.visible(self.hidden(visible))
        return visible

    def sample(self, visible: Tensor, steps: int) -> Tensor:
        """Return the visible means after Gibbs steps, in which the hidden units are drawn; without a graph."""
        with torch.no_grad():
            for _ in range(steps):
                visible = self.visible(torch.bernoulli(self.hidden(visible)))
        return visible


def contrastive_divergence(machine: Machine, frames: Tensor, samples: Tensor) -> Tensor:
    """Return the loss, a scalar, whose gradient is that of contrastive divergence.

    Args:
        machine: with the graph of its biases.
        frames, samples: ``[..., visible]``; no gradient goes through them.
    """
    return (machine.free_energy(frames.detach()) - machine.free_energy(samples.detach())).mean()


class RTRBM(SequenceModel):
    """The `Predictor`; the state is an `RTRBMState`.

    Args:
        config: its settings.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("free energy difference",)
    config: BoltzmannConfig

    def __init__(self, config: BoltzmannConfig | None = None) -> None:
        config = config or RTRBMConfig()
        super().__init__(config)
        visible, hidden = config.channels * config.height * config.width, config.hidden_units

        def begin(*shape: int) -> nn.Parameter:
            return nn.Parameter(config.initial_deviation * torch.randn(shape))

        self.weights = begin(hidden, visible)
        self.recurrent = begin(hidden, hidden)
        self.hidden_bias, self.first_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_from_last = begin(hidden, visible) if config.direct else None
        self.visible_from_last = begin(visible, visible) if config.direct else None

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return W, ``[hidden, visible]``, and U, ``[hidden, hidden]``."""
        return self.weights, self.recurrent

    def regulariser(self) -> Tensor:
        """Return what is added to the loss."""
        return self.weights.new_zeros(())

    def initial_state(self, shape: tuple[int, int, int, int]) -> RTRBMState:
        """Return no frame and no past."""
        self.check_shape(shape)
        like = self.visible_bias
        return RTRBMState(
            like.new_zeros(shape), like.new_zeros(shape[0], self.config.hidden_units), like.new_zeros(shape[0])
        )

    def predict(self, state: RTRBMState) -> Predicted:
        """Run the mean field of the step's machine, starting from the last frame."""
        weights, recurrent = self.matrices()
        last = state.frame.flatten(1)
        machine = Machine(weights, *self._biases(recurrent, state.past, state.begun, last))
        frame = machine.mean_field(last, self.config.prediction_steps)
        return Predicted(frame.view_as(state.frame), machine.hidden_bias)

    def advance(self, frame: Tensor, prediction: Predicted, state: RTRBMState) -> RTRBMState:
        """Let the frame set the hidden units."""
        past = torch.sigmoid(frame.flatten(1) @ self.matrices()[0].t() + prediction.memory)
        return RTRBMState(frame, past, torch.ones_like(state.begun))

    def learn(self, window: Window, state: RTRBMState) -> Lesson:
        """Return the loss of contrastive divergence. Only the last step is predicted and scored: that is slow."""
        frames = window.frames.flatten(2)
        weights, recurrent = self.matrices()
        seen = frames @ weights.t()
        past, begun, last = state.past, state.begun, state.frame.flatten(1)
        biases = []
        for frame, drive, start in zip(frames, seen, window.starts, strict=True):
            past, last = (part.masked_fill(start[:, None], 0) for part in (past, last))
            biases.append(self._biases(recurrent, past, begun.masked_fill(start, 0), last))
            before, last, begun = last, frame, torch.ones_like(begun)
            past = torch.sigmoid(drive + biases[-1][0])
        machine = Machine(weights, *(torch.stack(parts) for parts in zip(*biases, strict=True)))
        samples = machine.sample(frames, self.config.gibbs_steps)
        loss = contrastive_divergence(machine, frames, samples) + self.regulariser()
        predicted, scored = torch.zeros_like(frames), torch.zeros_like(window.starts)
        with torch.no_grad():
            predicted[-1] = Machine(weights, *biases[-1]).mean_field(before, self.config.prediction_steps)
        scored[-1] = ~window.starts[-1]
        after = RTRBMState(window.frames[-1], *detach((past, begun)))
        every = torch.ones_like(window.starts).sum()
        return Lesson((loss,), predicted.view_as(window.frames), scored, after, every)

    def _biases(self, recurrent: Tensor, past: Tensor, begun: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the biases of a step, ``[b, hidden]`` and ``[b, visible]``."""
        hidden = torch.where(begun[:, None] > 0, past @ recurrent.t() + self.hidden_bias, self.first_bias)
        visible = self.visible_bias.expand_as(last)
        if self.hidden_from_last is not None and self.visible_from_last is not None:
            hidden = hidden + last @ self.hidden_from_last.t()
            visible = visible + last @ self.visible_from_last.t()
        return hidden, visible
