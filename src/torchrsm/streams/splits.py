"""What is held out from learning: the fixed sequences with their seeds, and the end of each film."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from torchrsm.streams.bouncing_balls import BallSequences, bouncing_ball_sequences
from torchrsm.streams.chance_balls import kicked_ball_sequences, two_way_ball_sequences
from torchrsm.streams.moving_mnist import moving_mnist_sequences
from torchrsm.streams.settings import (
    PUBLISHED_BALLS,
    BallWorldConfig,
    BouncingBallsConfig,
    GrammarConfig,
    MovingMNISTConfig,
    OfBalls,
    StreamConfig,
    VideoConfig,
    learned_frames,
    open_videos,
    symbol_stream,
)
from torchrsm.streams.symbols import SymbolStream
from torchrsm.streams.video_file import load_parts

Split = Literal["test", "validation"]

TEST_SEED = 20190528
"""The seed of the test sequences. It is published and never changes; nothing may be trained or chosen on them."""

VALIDATION_SEED = 20190529
"""The seed of the sequences on which a setting may be chosen."""

_MAX_BYTES = 2**30  # of the frames of videos that are held out

FRAMES_IN_A_SEQUENCE = 100
"""Frames of each fixed sequence."""


def _check_split(split: str) -> None:
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}")


def split_seed(split: Split, sequences: int) -> int:
    """Return the seed of the fixed sequences, after a check of both."""
    _check_split(split)
    if sequences < 1:
        raise ValueError(f"sequences must be >= 1; got {sequences}")
    return TEST_SEED if split == "test" else VALIDATION_SEED


def bouncing_ball_frames(split: Split, sequences: int = 200, world: BouncingBallsConfig = PUBLISHED_BALLS) -> Tensor:
    """Return the fixed bouncing-balls sequences that scores are quoted on, or those of another world of balls.

    Args:
        split: "test" for figures to publish, "validation" for every choice before that.
        sequences: how many, >= 1; the first ones are the same whatever their number. Figures are quoted on 200.
        world: its balls and frames; the published ones if not given.

    Returns:
        ``[sequences, 100, 1, 30, 30]`` float32 in 0..1, the length and the size being those of the world.

    Raises:
        ValueError: the split is unknown, there is no sequence, or the balls do not fit into the box.
    """
    settings = world.arguments()
    return bouncing_ball_sequences(range(sequences), seed=split_seed(split, sequences), **settings).frames


def frames_sha256(frames: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the values as little-endian float32 in C order, without the shape.

    It names the data that a score was measured on: equal for equal values, whatever the device or the strides.
    """
    values = frames.detach().cpu().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


def held_out_frames(config: StreamConfig, split: Split = "test", sequences: int = 200) -> Tensor:
    """Return what a run that learns from ``config`` never sees, to score it on.

    Of bouncing balls the fixed sequences, whatever balls the run learns from; of digits sequences with digits of their
    own. Of a video the last frames of each clip, which ``held_out`` keeps from learning: their first half for
    validation, their second half for the test, all cut to the length of the shortest. Where frames of a film are
    missing, the longest series without a gap counts. Only what is returned is ever in memory.

    Args:
        config: what the run learns from.
        split: "test" for figures to publish, "validation" for every choice before that.
        sequences: how many, of balls and digits; of a video each clip is one.

    Returns:
        ``[n, t, c, h, w]`` in 0..1.

    Raises:
        ValueError: the split is unknown; or a video is too short, or too much of it is held out to be in memory.
    """
    if config.kind not in HELD_OUT:
        raise ValueError(f"frames are held out of streams of the kinds {', '.join(HELD_OUT)}; got {config.kind!r}")
    return HELD_OUT[config.kind](config, split, sequences)


def _other_balls(config: OfBalls, split: Split, sequences: int) -> Tensor:
    return bouncing_ball_frames(split, sequences)


def _of_own_world(sequences_of: Callable[..., BallSequences]) -> Callable[[Any, Split, int], Tensor]:
    """Return what is held out of a world of balls of its own, given the function that makes its sequences."""

    def held_out(config: BallWorldConfig, split: Split, sequences: int) -> Tensor:
        return sequences_of(sequences, seed=split_seed(split, sequences), **config.arguments()).frames

    return held_out


def _other_digits(config: MovingMNISTConfig, split: Split, sequences: int) -> Tensor:
    return moving_mnist_sequences(
        sequences,
        seed=0,
        digits=config.digits,
        resolution=config.resolution,
        sequence_length=config.sequence_length,
        split=split,
        deterministic=config.deterministic,
    )


def _end_of_videos(config: VideoConfig, split: Split, sequences: int) -> Tensor:
    _check_split(split)

    def part(frames: int) -> tuple[int, int]:
        learned = learned_frames(config, frames)
        middle = learned + (frames - learned) // 2
        return (learned, middle) if split == "validation" else (middle, frames)

    readers = open_videos(config)
    setting = f"the {split} part, half of held_out = {config.held_out:g},"
    ends = [max(stretches, key=len) for stretches in load_parts(readers, part, _MAX_BYTES, setting)]
    for (name, _), end in zip(readers, ends, strict=True):
        if len(end) < 2:
            raise ValueError(f"{setting} must leave 2 frames in a row of each clip; got {len(end)}: {name}")
    length = min(len(end) for end in ends)
    return torch.from_numpy(np.stack([end[:length] for end in ends])).float() / 255


def held_out_symbols(config: GrammarConfig, split: Split = "test", batch_size: int = 100) -> SymbolStream:
    """Return the stream of symbols of a grammar that a run that learns from ``config`` never sees, to score it on.

    Its strings are drawn with a seed of their own, its handwritten digits are others.

    Args:
        config: what the run learns from.
        split: "test" for figures to publish, "validation" for every choice before that.
        batch_size: strings side by side.

    Raises:
        ValueError: the split is unknown, or the settings do not fit.
    """
    return symbol_stream(config, batch_size, split_seed(split, 1), split)


HELD_OUT: dict[str, Callable[[Any, Split, int], Tensor]] = {
    "balls": _other_balls,
    "varied-balls": _other_balls,
    "kicked-balls": _of_own_world(kicked_ball_sequences),
    "two-way-balls": _of_own_world(two_way_ball_sequences),
    "digits": _other_digits,
    "video": _end_of_videos,
}
"""What is held out of each kind of stream, from its settings, the split and how many sequences there shall be."""
