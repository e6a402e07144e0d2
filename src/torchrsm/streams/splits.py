"""What is held out from learning: the fixed sequences with their seeds, and the end of each film."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchrsm.streams.bouncing_balls import bouncing_ball_sequences
from torchrsm.streams.moving_mnist import moving_mnist_sequences
from torchrsm.streams.settings import (
    AnyStreamConfig,
    BouncingBallsConfig,
    MovingMNISTConfig,
    learned_frames,
    read_clips,
)

Split = Literal["test", "validation"]

TEST_SEED = 20190528
"""The seed of the test sequences. It is published and never changes; nothing may be trained or chosen on them."""

VALIDATION_SEED = 20190529
"""The seed of the sequences on which a setting may be chosen."""

FRAMES_IN_A_SEQUENCE = 100
"""Frames of each fixed sequence."""


def split_seed(split: Split, sequences: int) -> int:
    """Return the seed of the fixed sequences, after a check of both."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, received {split!r}")
    if sequences < 1:
        raise ValueError(f"sequences must be >= 1, received {sequences}")
    return TEST_SEED if split == "test" else VALIDATION_SEED


def bouncing_ball_frames(split: Split, sequences: int = 200) -> Tensor:
    """Return the fixed bouncing-balls sequences that scores are quoted on.

    Args:
        split: "test" for figures to publish, "validation" for every choice before that.
        sequences: how many, >= 1; the first ones are the same whatever their number. Figures are quoted on 200.

    Returns:
        ``[sequences, 100, 1, 30, 30]`` float32 in 0..1.

    Raises:
        ValueError: the split is unknown, or there is no sequence.
    """
    return bouncing_ball_sequences(range(sequences), seed=split_seed(split, sequences)).frames


def frames_sha256(frames: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the values as little-endian float32 in C order, without the shape.

    It names the data that a score was measured on: equal for equal values, whatever the device or the strides.
    """
    values = frames.detach().cpu().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


def held_out_frames(config: AnyStreamConfig, split: Split = "test", sequences: int = 200) -> Tensor:
    """Return what a run that learns from ``config`` never sees, to score it on.

    Of bouncing balls the fixed sequences, whatever balls the run learns from; of digits sequences with digits of their
    own; of a video the end of each clip, all cut to the length of the shortest.

    Args:
        config: what the run learns from.
        split: of balls and digits; a video has one only, ``test``.
        sequences: how many, of balls and digits.

    Returns:
        ``[n, t, c, h, w]`` in 0..1.

    Raises:
        ValueError: a video has nothing held out.
    """
    if isinstance(config, BouncingBallsConfig):
        return bouncing_ball_frames(split, sequences)
    if isinstance(config, MovingMNISTConfig):
        return moving_mnist_sequences(
            sequences,
            seed=0,
            digits=config.digits,
            resolution=config.resolution,
            sequence_length=config.sequence_length,
            split=split,
        )
    ends = [clip[learned_frames(config, clip) :] for clip in read_clips(config)]
    length = min(len(end) for end in ends)
    if length < 2:
        raise ValueError(f"held_out must leave 2 frames of each clip or more to test on; got {length}")
    return torch.from_numpy(np.stack([end[:length] for end in ends])).float() / 255
