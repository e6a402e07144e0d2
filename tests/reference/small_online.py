"""A learner of a small stack and rectifier with every mechanism of the large ones, and a stream for it."""

import torch
from device_under_test import device

from torchrsm import CompactConfig, LayerConfig, LearningConfig, ModelConfig, RectifyingConfig, UNetConfig
from torchrsm.learning.online import OnlineLearner
from torchrsm.streams import BouncingBalls

STREAMS, SIZE = 4, 10

RECTIFIERS = {"compact": CompactConfig(width=6, blocks=1), "unet": UNetConfig(features=4, width=6, blocks=1)}

DREAMS = {"loop_share": 0.5, "loop_from": 0.1, "loop_steps": 3, "loop_error": 20.3, "motion_weight": 0.05}


def learner_of(rectifier="compact", input_frames=1, dropout=0.5, share=0.75, stack_share=0.5, **how):
    """Return the learner and how its stack and its rectifier learn."""
    torch.manual_seed(2)
    below = LayerConfig(
        groups=10,
        active_groups=3,
        output_bias="channel",
        dropout=dropout,
        input_frames=input_frames,
        activation="sigmoid",
    )
    above = LayerConfig(groups=8, active_groups=2, output_bias="channel", dropout=dropout)
    model = ModelConfig(layers=(below, above), pad=1, rectifier=RECTIFIERS[rectifier])
    learning = LearningConfig(learning_rates=(3e-3, 2e-3), schedule="cosine", warmup_share=0.2)
    rectifying = RectifyingConfig(
        share=share,
        stack_share=stack_share,
        learning_rate=2e-3,
        matrix_learning_rate=5e-3,
        schedule="cosine",
        warmup_share=0.3,
        gradient_norm=0.3,
        adversarial_weight=0.02,
        discriminator_learning_rate=0.05,
        **DREAMS,
    )
    learner = OnlineLearner(model, learning, rectifying, True, (STREAMS, 1, SIZE, SIZE), device(), **how)
    return learner, learning, rectifying


def balls():
    """Return the stream, whose sequences are short."""
    return BouncingBalls(STREAMS, resolution=SIZE, sequence_length=17, seed=1)
