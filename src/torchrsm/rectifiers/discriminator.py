"""The discriminator of the conditional GAN, and the two losses that go with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.rectifiers.contract import mean_over
from torchrsm.rectifiers.parts import LEAKY_SLOPE


class Discriminator(nn.Module):
    """Tells frames that came from frames that were generated, given what they were generated from.

    A fully connected layer of 128 on the frame and one on the condition, side by side, then one unit.

    Args:
        elements: elements of a frame, channels x height x width.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.frame = nn.Linear(elements, 128)
        self.condition = nn.Linear(elements, 128)
        self.unit = nn.Linear(256, 1)

    def forward(self, frame: Tensor, condition: Tensor) -> Tensor:
        """Return the logit of "this frame came", ``[b]``; both arguments are ``[b, c, h, w]``."""
        features = torch.cat((self.frame(frame.flatten(1)), self.condition(condition.flatten(1))), 1)
        return self.unit(F.leaky_relu(features, LEAKY_SLOPE)).squeeze(1)  # type: ignore[no-any-return]


def discriminator_loss(real: Tensor, generated: Tensor, learn: Tensor, real_label: float = 0.9) -> Tensor:
    """Return the discriminator's mean cross-entropy, nats, a scalar.

    Args:
        real: logits ``[b]`` for frames that came; their label is smoothed to ``real_label``, in 0..1.
        generated: logits ``[b]`` for generated frames, of label 0.
        learn: ``[b]`` bool, false for pairs to leave out.
    """
    return mean_over(_cross_entropy(real, real_label) + _cross_entropy(generated, 0.0), learn)


def adversarial_loss(generated: Tensor, learn: Tensor) -> Tensor:
    """Return the generator's mean cross-entropy, nats, a scalar: small if the discriminator takes it for real.

    Args:
        generated: logits ``[b]``.
        learn: ``[b]`` bool, false for frames to leave out.
    """
    return mean_over(_cross_entropy(generated, 1.0), learn)


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    labels = torch.full_like(logits, label)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
