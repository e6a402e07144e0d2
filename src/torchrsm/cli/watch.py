"""``watch``: learn from a video or a camera while it plays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field

from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.rsm import kernels
from torchrsm.streams import (
    ImageFolderReader,
    VideoReader,
    Webcam,
)
from torchrsm.watching import Watcher


class WatchCommand(Config):
    """Learn from a video while it plays, and print how surprising each frame was, one line of JSON each.

    A line has `frame` (its number), `error` (squared error of the prediction), `copy_error` (of repeating the frame
    before), `surprise` (standard deviations of the logarithm of the error from what is usual) and `anomaly`.

    Attributes:
        video: a film, a folder of pictures, or the number of a camera.
        height, width: to which frames are reduced; None for as the other one asks.
        channels: 1 for grey, 3 for colour.
        threshold: surprise from which a frame is an anomaly.
        frames: stop after so many; None for the end of the video.
        seed: of the weights.
    """

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|0")]
    height: Annotated[int | None, Field(ge=8, le=512)] = 48
    width: Annotated[int | None, Field(ge=8, le=512)] = None
    channels: Literal[1, 3] = 1
    threshold: Annotated[float, Field(gt=0)] = 4.0
    frames: Annotated[int | None, Field(ge=2)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


def watch(arguments: list[str]) -> None:
    """Print how surprising each frame is to a model that learns from it at once."""
    command = parse(WatchCommand, arguments, "watch")
    kernels.set_threads(1)
    watcher: Watcher | None = None
    for levels in itertools.islice(_frames_to_watch(command), command.frames):
        frame = torch.from_numpy(levels).float() / 255
        watcher = watcher or Watcher((frame.shape[0], frame.shape[1], frame.shape[2]), command.seed)
        seen = watcher.see(frame)
        line = {
            "frame": seen.frame,
            "error": _rounded(seen.error),
            "copy_error": _rounded(seen.copy_error),
            "surprise": round(seen.surprise, 3),
            "anomaly": seen.surprise >= command.threshold,
        }
        print(json.dumps(line), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _frames_to_watch(command: WatchCommand) -> Iterator[NDArray[np.uint8]]:
    size: dict[str, Any] = {"height": command.height, "width": command.width, "channels": command.channels}
    if command.video.isdigit():
        return (
            (frames[0] * 255).round().to(torch.uint8).numpy() for frames, _, _ in Webcam(int(command.video), **size)
        )
    if Path(command.video).is_dir():
        return iter(ImageFolderReader(command.video, **size))
    return iter(VideoReader(command.video, **size))
