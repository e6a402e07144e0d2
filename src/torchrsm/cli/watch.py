"""``watch``: learn from a video or a camera while it plays."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import tyro
from pydantic import Field

from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import FrameSize, clips_for
from torchrsm.config import Config
from torchrsm.runs.settings import DeviceFlag
from torchrsm.streams import NumberedFrame, Webcam
from torchrsm.streams.video_file import numbered_frames
from torchrsm.watching import Watcher


class WatchCommand(Config):
    """Learn from a video while it plays, and print how surprising each frame was, one line of JSON each.

    A line has `clip` (where there are several), `frame` (its number, from 0; missing ones are counted), `seconds` (of a
    film), `error` (squared error of the prediction), `copy_error` (of repeating the frame before), `surprise` (how
    unusual it is: an error above what is usual, a jump of it, or a picture that freezes) and `anomaly`.

    Attributes:
        video: a film, a folder of films or of pictures, an array, or the number of a camera.
        height, width: to which frames are reduced; None for as the other one asks.
        channels: 1 for grey, 3 for colour.
        layout: what each axis of an array is, where its shape does not tell: letters of ntchw (n: sequence).
        white: which value of a pixel is white, for pictures of more than 8 bits that do not tell.
        threshold: surprise from which a frame is an anomaly.
        frames: stop after so many; None for the end of the video.
        seed: of the weights.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|0")]
    height: Annotated[int | None, Field(ge=8, le=512)] = 48
    width: Annotated[int | None, Field(ge=8, le=512)] = None
    channels: Literal[1, 3] = 1
    layout: str | None = None
    white: Annotated[float | None, Field(gt=0)] = None
    threshold: Annotated[float, Field(gt=0)] = 4.0
    frames: Annotated[int | None, Field(ge=2)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: DeviceFlag = "cpu"


def watch(arguments: list[str]) -> None:
    """Print how surprising each frame is to a model that learns from it at once."""
    command = parse(WatchCommand, arguments, "watch")
    watcher: Watcher | None = None
    clip_before: str | None = None
    for clip, shown in itertools.islice(_frames(command), command.frames):
        channels, height, width = shown.frame.shape
        watcher = watcher or Watcher((channels, height, width), command.seed, command.device)
        seen = watcher.see(shown.frame, start=shown.after_gap or clip != clip_before)
        clip_before = clip
        line = {
            **({} if clip is None else {"clip": clip}),
            "frame": shown.number,
            **({} if shown.seconds is None else {"seconds": round(shown.seconds, 3)}),
            "error": _rounded(seen.error),
            "copy_error": _rounded(seen.copy_error),
            "surprise": round(seen.surprise, 3),
            "anomaly": seen.surprise >= command.threshold,
        }
        print(json.dumps(line), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _frames(command: WatchCommand) -> Iterator[tuple[str | None, NumberedFrame]]:
    """Yield the frames of a camera or of films, with the name of the clip where there are several."""
    if re.fullmatch("[0-9]+", command.video):
        camera = Webcam(int(command.video), height=command.height, width=command.width, channels=command.channels)
        for number, batch in enumerate(camera):
            levels = (batch.frames[0] * 255).round().to(torch.uint8).numpy()
            yield None, NumberedFrame(number, None, levels, False)
        return
    size = FrameSize(command.channels, command.height, command.width, white=command.white)
    clips = clips_for(size, command.video, command.layout)
    print(f"torchrsm: {clips.description}", file=sys.stderr)  # the output is for programs
    for name, reader in clips.readers:
        for shown in numbered_frames(reader):
            yield (name if len(clips.readers) > 1 else None), shown
