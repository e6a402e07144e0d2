"""``predict``: a film of the prediction of each frame from those before it."""

from __future__ import annotations

import io
import itertools
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field, model_validator

from torchrsm.cli.outputs import check_outputs, with_output
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import Clips, clips_for, size_for
from torchrsm.config import Config
from torchrsm.media.films import Comparison, write_film
from torchrsm.predictor import Predictor
from torchrsm.runs.settings import DeviceFlag
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.paths import printable
from torchrsm.streams.video_file import numbered_frames
from torchrsm.systems import load


class PredictCommand(Config):
    """Predict each frame of a video from the true ones before it, and make a film of that.

    The video is read at the size that the model has learned from. Several clips, such as the films of a folder, follow
    one another in the film that is made; the model begins each one anew.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model or a baseline.
        video: a film, a folder of films or of pictures, or .npz or .npy of frames.
        out: the film, .mp4: truth, prediction and overlay side by side, and the error as it runs along; without it one
            in runs/.
        layout: what each axis of an array is, where its shape does not tell: letters of ntchw (n: sequence).
        white: which value of a pixel is white, for pictures of more than 8 bits that do not tell.
        clip: the number of one clip, from 1; None for all.
        frames: at most so many of each clip; None for all.
        json_file: write the errors here.
        frames_per_second: of the film that is made.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    video: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILM")]
    layout: str | None = None
    white: Annotated[float | None, Field(gt=0)] = None
    clip: Annotated[int | None, Field(ge=1)] = None
    frames: Annotated[int | None, Field(ge=2)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = 20.0
    device: DeviceFlag = "cpu"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() != ".mp4":
            raise ValueError(f"out must end in .mp4; got {str(self.out)!r}")
        return self


class _Errors:
    """What is known of each frame that was read, in 24 bytes: its number in its clip, and two squared errors.

    An error is NaN for the first frame of a clip, and for the first after frames that are missing.
    """

    def __init__(self) -> None:
        self.numbers = array("q")
        self.predicted = array("d")
        self.copied = array("d")  # of repeating the frame before
        self.frames: list[int] = []  # of each clip
        self._sums = [0, 0.0, 0.0]

    def note(self, number: int, predicted: float, copied: float) -> None:
        """Note what is known of the next frame of the last clip."""
        self.numbers.append(number)
        self.predicted.append(predicted)
        self.copied.append(copied)
        self.frames[-1] += 1
        if not math.isnan(predicted):
            self._sums = [self._sums[0] + 1, self._sums[1] + predicted, self._sums[2] + copied]

    def means(self) -> tuple[float, float]:
        """Return both means over the frames that have an error.

        Raises:
            ValueError: no frame has one.
        """
        count, predicted, copied = self._sums
        if not count:
            raise ValueError(f"a clip must have 2 frames or more to predict one; got {max(self.frames, default=0)}")
        return predicted / count, copied / count

    def to_json(self, model: str, video: str, names: Sequence[str]) -> bytes:
        """Return all of it as JSON, one number after the other: of a film of hours there are many."""
        clips = [{"name": name, "frames": n} for name, n in zip(names, self.frames, strict=True)]
        text = io.StringIO()
        text.write(json.dumps({"model": model, "video": video, "clips": clips})[:-1])
        for name, values in (("numbers", self.numbers), ("errors", self.predicted), ("copy_errors", self.copied)):
            text.write(f', "{name}": [')
            for place, value in enumerate(values):
                text.write(f"{', ' if place else ''}{'null' if math.isnan(value) else value}")
            text.write("]")
        text.write("}\n")
        return text.getvalue().encode()


def predict(arguments: list[str]) -> None:
    """Predict a film frame by frame, in constant memory, and make a film of that."""
    if len(arguments) >= 2 and not any(argument.startswith("-") for argument in arguments[:2]):
        arguments = with_output(arguments, f"{Path(arguments[1]).stem}-prediction", ".mp4")
    command = parse(PredictCommand, arguments, "predict")
    check_outputs({"out": command.out, "json": command.json_file}, [command.model, command.video])
    predictor = load(command.model, device=command.device)
    clips = clips_for(size_for(predictor, command.model, command.white), command.video, command.layout)
    if command.clip is not None:
        clips = _one(clips, command.clip, command.video)
    shapes = dict.fromkeys(reader.frame_shape for _, reader in clips.readers)
    if len(shapes) > 1:
        unequal = " and ".join(f"{height} x {width}" for _, height, width in list(shapes)[:2])
        raise ValueError(f"clips of {unequal} cannot go together in one film; choose one of them with --clip")
    print(clips.description)
    errors = _Errors()
    pictures = _compared(predictor, clips, command.model, command.frames, errors)
    write_film(pictures, command.out, command.frames_per_second)
    mean, mean_copied = errors.means()
    if command.json_file is not None:
        names = [name for name, _ in clips.readers]
        write_atomically(command.json_file, errors.to_json(command.model, str(command.video), names))
    print(f"{sum(errors.frames)} frames of {printable(command.video)}: squared error {mean:.4g} a frame", end="")
    print(f", {mean_copied:.4g} for the frame before: {in_words(mean, mean_copied)}")
    print(f"film: {printable(command.out)}")


def in_words(error: float, copied: float) -> str:
    """Say whether predictions beat repeating the frame before, and by how much."""
    if copied == 0:
        return "nothing moves, so there is nothing to predict"
    if error >= copied:
        return f"worse than repeating it, {error / copied:.3g} times its error"
    return f"better than repeating it, {1 - error / copied:.0%} less error"


def _one(clips: Clips, number: int, video: Path) -> Clips:
    if number > len(clips.readers):
        raise ValueError(f"clip must be <= {len(clips.readers)}, the clips of {video}; got {number}")
    chosen = clips.readers[number - 1]
    return Clips([chosen], f"{clips.description}; clip {number} is {chosen[0]}")


def _compared(
    predictor: Predictor[Any, Any], clips: Clips, name: str, most: int | None, errors: _Errors
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of the film, clip after clip, and note the errors on the way."""
    for title, reader in clips.readers:
        channels, height, width = reader.frame_shape
        headline = name if len(clips.readers) == 1 else f"{name}: {Path(title).name}"
        comparison = Comparison((height, width), ["prediction"], copy_last=True, title=printable(headline))
        fresh = predictor.initial_state((1, channels, height, width))
        state, before = fresh, torch.empty(0)
        errors.frames.append(0)
        for shown in itertools.islice(numbered_frames(reader), most):
            begins = errors.frames[-1] == 0 or shown.after_gap
            frame = torch.from_numpy(shown.frame[None]).float() / 255
            state = fresh if begins else state
            with torch.no_grad():
                prediction = predictor.predict(state)
                state = predictor.observe(frame.to(prediction.frame.device), prediction, state)
            predicted = math.nan if begins else float(frame_squared_error(prediction.frame, frame))
            copied = math.nan if begins else float(frame_squared_error(before, frame))
            errors.note(shown.number, predicted, copied)
            shown_errors = (None, None) if begins else (predicted, copied)
            yield comparison.picture(frame[0], [prediction.frame[0]], shown_errors)
            before = frame
    errors.means()  # nothing to show is an error, before the film takes the place of a former one
