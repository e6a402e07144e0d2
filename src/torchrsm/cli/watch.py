"""``watch``: learn from a video or a camera while it plays."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TextIO

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field, model_validator

from torchrsm.cli.outputs import check_output_folder, check_outputs
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import FrameSize, clips_for, size_for
from torchrsm.config import Config
from torchrsm.media.films import write_film
from torchrsm.model import VideoPredictor
from torchrsm.runs.settings import DeviceFlag, learned_from
from torchrsm.storage.tensors import make_folder
from torchrsm.streams import LiveFilm, NumberedFrame, Webcam, is_live
from torchrsm.streams.video_file import numbered_frames
from torchrsm.systems import load
from torchrsm.watching import Surprise, Watcher

_HEIGHT = 48  # pixels, where nothing says another
_AROUND = 12  # frames before and behind an anomaly that its film shows
_FILM_HEIGHT = 240  # pixels, at least
_FRAME_PIXELS = 4  # of the border that marks an anomaly
_SAVE_SECONDS = 60.0


class WatchCommand(Config):
    """Learn from a video while it plays, and print how surprising each frame was, one line of JSON each.

    A line has `clip` (where there are several), `frame` (its number, from 0; missing ones are counted), `seconds`
    (from the first frame), `error` (squared error of the prediction), `copy_error` (of repeating the frame before),
    `surprise` (an error above what is usual, a jump of it, or a picture that freezes) and `anomaly`.

    Attributes:
        video: a film, a folder of films or of pictures, an array, the number of a camera, - for a film from the
            standard input, or an address such as rtsp://... or https://...
        height, width: to which frames are reduced; None for as the other one asks. With neither it is the size that a
            given model has learned from, else a height of 48.
        channels: 1 for grey, 3 for colour.
        layout: what each axis of an array is, where its shape does not tell: letters of ntchw (n: sequence).
        white: which value of a pixel is white, for pictures of more than 8 bits that do not tell.
        threshold: surprise from which a frame is an anomaly.
        frames: stop after so many; None for the end of the video.
        seed: of the weights.
        model: a trained model to begin with; None for a new one. Frames are read as it has learned to.
        out: a folder to save the model to as it has learned, every minute and at the end.
        alerts: a file to which the lines of anomalies are added.
        film: an .mp4 of the anomalies, in a frame, each with what came just before and behind it.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|0|-|URL")]
    height: Annotated[int | None, Field(ge=8, le=512)] = None
    width: Annotated[int | None, Field(ge=8, le=512)] = None
    channels: Literal[1, 3] = 1
    layout: str | None = None
    white: Annotated[float | None, Field(gt=0)] = None
    threshold: Annotated[float, Field(gt=0)] = 4.0
    frames: Annotated[int | None, Field(ge=2)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    alerts: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None
    film: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4")] = None
    device: DeviceFlag = "cpu"

    @model_validator(mode="after")
    def _is_a_film(self) -> Self:
        if self.film is not None and self.film.suffix.lower() != ".mp4":
            raise ValueError(f"film must end in .mp4; got {str(self.film)!r}")
        return self


class _Seen(NamedTuple):
    """A frame that was watched, and whether it was an anomaly."""

    levels: NDArray[np.uint8]
    anomaly: bool


def watch(arguments: list[str]) -> None:
    """Print how surprising each frame is to a model that learns from it at once."""
    command = parse(WatchCommand, arguments, "watch")
    video = None if is_live(command.video) or _camera(command.video) is not None else command.video
    check_outputs({"alerts": command.alerts, "film": command.film}, [video, command.model])
    if command.out is not None:
        check_output_folder(command.out, [video])
    begins_with = _begins_with(command)
    interrupted: list[KeyboardInterrupt] = []  # a camera is watched until somebody ends it, and nothing shall be lost
    pictures = _film(_watched(command, begins_with, interrupted))
    if command.film is None:
        deque(pictures, maxlen=0)
    elif (first := next(pictures, None)) is None:
        print("torchrsm: no anomaly, so no film", file=sys.stderr)
    else:
        write_film(itertools.chain([first], pictures), command.film)
    if interrupted:
        raise interrupted[0]


def _begins_with(command: WatchCommand) -> VideoPredictor | None:
    if command.model is None:
        return None
    model = load(command.model)
    if not isinstance(model, VideoPredictor):
        raise ValueError(f"model must be RSM, to learn while it watches; {command.model!r} is a {type(model).__name__}")
    return model


def _watched(
    command: WatchCommand, begins_with: VideoPredictor | None, interrupted: list[KeyboardInterrupt]
) -> Iterator[_Seen]:
    """Watch, print a line for each frame, and yield it; an interrupt ends it, and is put into the list."""
    watcher: Watcher | None = None
    clip_before: str | None = None
    saved = time.monotonic()
    try:
        with _appended(command.alerts) as alerts:
            for clip, shown in itertools.islice(_frames(command, begins_with), command.frames):
                channels, height, width = shown.frame.shape
                if watcher is None:
                    watcher = Watcher((channels, height, width), command.seed, command.device, begins_with)
                seen = watcher.see(shown.frame, start=shown.after_gap or clip != clip_before)
                clip_before = clip
                anomaly = seen.surprise >= command.threshold
                line = json.dumps(_line(clip, shown, seen, anomaly))
                print(line, flush=True)
                if anomaly and alerts is not None:
                    print(line, file=alerts, flush=True)
                if time.monotonic() > saved + _SAVE_SECONDS:
                    _save(watcher, command.out)
                    saved = time.monotonic()
                yield _Seen(shown.frame, anomaly)
    except KeyboardInterrupt as interrupt:
        interrupted.append(interrupt)
    finally:
        if watcher is not None:
            _save(watcher, command.out)


def _line(clip: str | None, shown: NumberedFrame, seen: Surprise, anomaly: bool) -> dict[str, Any]:
    return {
        **({} if clip is None else {"clip": clip}),
        "frame": shown.number,
        **({} if shown.seconds is None else {"seconds": round(shown.seconds, 3)}),
        "error": _rounded(seen.error),
        "copy_error": _rounded(seen.copy_error),
        "surprise": round(seen.surprise, 3),
        "anomaly": anomaly,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _save(watcher: Watcher, folder: Path | None) -> None:
    if folder is not None:
        make_folder(folder)
        watcher.model.save(folder)


def _appended(path: Path | None) -> AbstractContextManager[TextIO | None]:
    """Open a file to add lines to; None is none."""
    return nullcontext() if path is None else path.open("a")


def _camera(video: str) -> int | None:
    return int(video) if re.fullmatch("[0-9]+", video) else None


def _frames(command: WatchCommand, begins_with: VideoPredictor | None) -> Iterator[tuple[str | None, NumberedFrame]]:
    """Yield the frames of a camera, of what comes live, or of films, each with its clip where there are several."""
    size = _size(command, begins_with)
    framing: dict[str, Any] = {"height": size.height, "width": size.width, "channels": size.channels}
    camera = _camera(command.video)
    if camera is not None:
        begun = time.monotonic()
        for number, batch in enumerate(Webcam(camera, **framing)):
            levels = (batch.frames[0] * 255).round().to(torch.uint8).numpy()
            yield None, NumberedFrame(number, time.monotonic() - begun, levels, False)
        return
    if is_live(command.video):
        with LiveFilm(command.video, **framing) as film:
            for shown in film:
                yield None, shown
        return
    clips = clips_for(size, command.video, command.layout)
    print(f"torchrsm: {clips.description}", file=sys.stderr)  # the output is for programs
    for name, reader in clips.readers:
        for shown in numbered_frames(reader):
            yield (name if len(clips.readers) > 1 else None), shown


def _size(command: WatchCommand, begins_with: VideoPredictor | None) -> FrameSize:
    """Return how frames are read."""
    channels, height = command.channels, command.height
    if begins_with is not None and command.model is not None:
        channels = begins_with.config.channels  # type: ignore[assignment]
        knows = begins_with.config.height is not None or learned_from(command.model) is not None
        if height is None and command.width is None and knows:
            return size_for(begins_with, command.model, command.white)
    if height is None and command.width is None:
        height = _HEIGHT
    return FrameSize(channels, height, command.width, white=command.white)


def _film(seen: Iterator[_Seen]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of anomalies, and those just before and behind them."""
    before: deque[_Seen] = deque(maxlen=_AROUND)
    left = 0
    for one in seen:
        if one.anomaly:
            yield from map(_picture, before)
            before.clear()
            left = _AROUND + 1
        if left:
            yield _picture(one)
            left -= 1
        else:
            before.append(one)


def _picture(seen: _Seen) -> NDArray[np.uint8]:
    """Return a frame as a picture ``[height, width, 3]`` of even sides, an anomaly in a red frame."""
    levels = seen.levels.transpose(1, 2, 0)
    times = -(-_FILM_HEIGHT // levels.shape[0])
    picture = np.repeat(np.repeat(levels, times, 0), times, 1)
    picture = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture
    picture = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)))
    if seen.anomaly:
        inside = slice(_FRAME_PIXELS, -_FRAME_PIXELS)
        marked = np.zeros_like(picture)
        marked[..., 0] = 255
        marked[inside, inside] = picture[inside, inside]
        picture = marked
    return picture
