"""What a run learns from, as settings, and the stream that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
import tyro
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer

from torchrsm.config import Config
from torchrsm.streams.bouncing_balls import BouncingBalls
from torchrsm.streams.clips import ClipStream
from torchrsm.streams.moving_mnist import MovingMNIST
from torchrsm.streams.stream import Stream
from torchrsm.streams.video_file import load_clips


class BouncingBallsConfig(Config):
    """Bouncing balls; see `torchrsm.streams.BouncingBalls`."""

    kind: Annotated[Literal["balls"], tyro.conf.Suppress] = "balls"
    balls: int = Field(default=3, gt=0)
    radius: float = Field(default=1.2, gt=0, lt=5)
    resolution: int = Field(default=30, ge=4)
    sequence_length: int = Field(default=100, ge=2)


class MovingMNISTConfig(Config):
    """Moving digits; see `torchrsm.streams.MovingMNIST`."""

    kind: Annotated[Literal["digits"], tyro.conf.Suppress] = "digits"
    digits: int = Field(default=2, gt=0)
    resolution: int = Field(default=64, ge=16)
    sequence_length: int = Field(default=20, ge=2)


def _plain_path(given: Any) -> Any:
    """Take a path in the forms that Python has for it, and in that of `_utf8_path`."""
    if isinstance(given, bytes | os.PathLike):
        return os.fsdecode(given)
    if isinstance(given, str) and given.startswith("file:///"):
        return os.fsdecode(unquote_to_bytes(given.removeprefix("file://")))
    return given


def _utf8_path(path: str) -> str:
    """Return a path that JSON can hold: as it is, or as a ``file:`` address where its name is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(os.path.abspath(path)).as_uri()
    return path


class VideoConfig(Config):
    """A video, or several; see `torchrsm.streams.load_clips`.

    Attributes:
        path: of a film, a folder of films or of pictures, or a .npz or .npy of frames.
        height, width: of the frames; None for as the other one asks, both None for those of the film.
        crop: ``square`` cuts the middle out first.
        channels: 1 for grey, 3 for colour.
        frames_per_second: None for those of the film.
        mirror: half of the passages through a clip, drawn at random, are learned from mirrored, left to right.
        held_out: share of each clip, its end, that is never learned from.
    """

    kind: Annotated[Literal["video"], tyro.conf.Suppress] = "video"
    path: Annotated[str, BeforeValidator(_plain_path), PlainSerializer(_utf8_path, when_used="json")]
    height: int | None = Field(default=64, ge=4, le=1024)
    width: int | None = Field(default=None, ge=4, le=1024)
    crop: Literal["square"] | None = None
    channels: Literal[1, 3] = 1
    frames_per_second: float | None = Field(default=None, gt=0, le=1000)
    mirror: bool = True
    held_out: float = Field(default=0.2, ge=0, lt=1)


def _with_kind(given: Any) -> Any:
    """Take settings from before there were other sources than balls."""
    return {"kind": "balls", **given} if isinstance(given, dict) else given


AnyStreamConfig = BouncingBallsConfig | MovingMNISTConfig | VideoConfig

StreamConfig = Annotated[Annotated[AnyStreamConfig, Field(discriminator="kind")], BeforeValidator(_with_kind)]


LEAST_FRAMES = 3
"""Least frames of a clip to learn from: the first is never predicted, and a single prediction teaches nothing."""


def make_stream(config: AnyStreamConfig, batch_size: int, seed: int) -> Stream:
    """Return the stream that settings name.

    Args:
        config: what is learned from.
        batch_size: streams in parallel.
        seed: of the sequences; of a video, of what is mirrored.

    Raises:
        ValueError: a video cannot be read.
        FileNotFoundError: there is none.
    """
    if isinstance(config, VideoConfig):
        learned = [clip[: learned_frames(config, clip)] for clip in read_clips(config)]
        longest = max(len(clip) for clip in learned)
        if longest < LEAST_FRAMES:
            raise ValueError(
                f"{config.path} must have a clip of {LEAST_FRAMES} frames or more to learn from, what is held out left "
                f"aside; the longest has {longest}"
            )
        return ClipStream(learned, batch_size, mirror=config.mirror, seed=seed)
    settings = config.model_dump(exclude={"kind"})
    if isinstance(config, MovingMNISTConfig):
        return MovingMNIST(batch_size, seed=seed, split="train", **settings)
    return BouncingBalls(batch_size, seed=seed, **settings)


def frame_shape(config: AnyStreamConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the frames; a video is looked into."""
    return make_stream(config, 1, 0).frame_shape


def read_clips(config: VideoConfig) -> list[NDArray[np.uint8]]:
    """Return the clips that settings name, ``[time, channels, height, width]`` each."""
    return load_clips(
        config.path,
        height=config.height,
        width=config.width,
        crop=config.crop,
        channels=config.channels,
        frames_per_second=config.frames_per_second,
    )


def learned_frames(config: VideoConfig, clip: NDArray[np.uint8]) -> int:
    """Return how many frames of a clip, from its beginning, are learned from."""
    return len(clip) - round(config.held_out * len(clip))
