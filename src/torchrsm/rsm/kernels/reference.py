"""The dense engine, for any device: the functions of `torchrsm.rsm.functional` in order, differentiated by autograd."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as nn

from torchrsm.rsm import functional as F
from torchrsm.rsm.functional import Cells
from torchrsm.rsm.kernels.step import Context, Step, Weights


class ReferenceEngine:
    """The step in dense tensors: slow and readable. It defines the result of every engine."""

    def select(
        self, step: Step, weights: Weights, context: Context, chance: F.Chance | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Engine.select`; with ``chance`` the winners are drawn."""
        memory = context.memory
        s = F.to_dense(memory, step.cells) if isinstance(memory, Cells) else memory
        feedback = None
        if context.feedback is not None and weights.feedback is not None:
            above = F.to_dense(context.feedback, weights.feedback.shape[0])
            feedback = F.resize(above @ weights.feedback, step.grid)
        a = F.drive(
            F.encode(_dense_input(step, context.input), weights.feedforward, step.kernel_size, step.stride),
            F.neighbours(s, step.recurrent_kernel_size) @ weights.recurrent,
            feedback,
            weights.bias,
        )
        r = rank(step, a, context)
        r = r if chance is None else F.rank_by_chance(r, chance)
        index = F.select_winners(r, step.groups, step.active_groups)
        return index, a.gather(-1, index.long())

    def decode(self, step: Step, weights: Weights, index: Tensor, z: Tensor, base: Tensor | None = None) -> Tensor:
        """See `Engine.decode`."""
        return F.activate(self.decoded(step, weights, index, z, base), step.activation)

    def decoded(self, step: Step, weights: Weights, index: Tensor, z: Tensor, base: Tensor | None = None) -> Tensor:
        """Return what `decode` returns, before the activation."""
        groups = F.to_dense(Cells(index % step.groups, z), step.groups)
        if step.decoder_kernel_size == 0:
            x = F.decode_fully_connected(groups, weights.decoder, step.input_grid)
        else:
            x = F.decode_convolutional(groups, weights.decoder, step.input_grid, step.decoder_kernel_size, step.stride)
        x = x + weights.output_bias
        return x if base is None else x + base

    def loss(
        self,
        step: Step,
        weights: Weights,
        index: Tensor,
        z: Tensor,
        target: Tensor | Cells,
        learn: Tensor,
        base: Tensor | None = None,
    ) -> Tensor:
        """See `Engine.loss`."""
        x, goal = self.decoded(step, weights, index, z, base), _dense_input(step, target)[..., : step.channels]
        if step.cross_entropy:
            return F.cross_entropy_loss(x, goal, learn, step.margin)
        return F.prediction_loss(F.activate(x, step.activation), goal, learn, step.margin)


def _dense_input(step: Step, x: Tensor | Cells) -> Tensor:
    if isinstance(x, Cells):
        return F.max_pool(F.to_dense(x, step.channels), step.input_pool)
    return x


def rank(step: Step, a: Tensor, context: Context) -> Tensor:
    """Return the rank of each cell ``[b, h, w, n]``: its drive ``a``, and what limits or lifts it (line 5)."""
    if context.refractory is not None:
        last = F.to_dense(Cells(context.refractory, nn.relu(context.refractory + 1).sign().to(a.dtype)), step.cells)
        return F.rank_refractory(a, last > 0)
    r = F.rank(a, context.inhibition)
    return r if context.boost is None else r * context.boost
