"""``predict``: a film of the prediction of each frame from those before it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field, model_validator

from torchrsm.cli.outputs import check_outputs
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import Clips, clips_for, size_for
from torchrsm.config import Config
from torchrsm.media.films import Comparison, write_film
from torchrsm.predictor import Predictor
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
        out: the film, .mp4: truth, prediction and overlay side by side, and the error as it runs along.
        layout: what each axis of an array is, where its shape does not tell: letters of ntchw (n: sequence).
        clip: the number of one clip, from 1; None for all.
        frames: at most so many of each clip; None for all.
        json_file: write the errors here.
        frames_per_second: of the film that is made.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    video: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILM")]
    layout: str | None = None
    clip: Annotated[int | None, Field(ge=1)] = None
    frames: Annotated[int | None, Field(ge=2)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() != ".mp4":
            raise ValueError(f"out must end in .mp4; got {str(self.out)!r}")
        return self


class _Errors:
    """What is known of each frame that was read: its number in its clip, and two squared errors.

    An error is None for the first frame of a clip, and for the first after frames that are missing.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.predicted: list[float | None] = []
        self.copied: list[float | None] = []  # of repeating the frame before
        self.frames: list[int] = []  # of each clip

    def note(self, number: int, predicted: float | None, copied: float | None) -> None:
        """Note what is known of the next frame of the last clip."""
        self.numbers.append(number)
        self.predicted.append(predicted)
        self.copied.append(copied)
        self.frames[-1] += 1

    def means(self) -> tuple[float, float]:
        """Return both means over the frames that have an error.

        Raises:
            ValueError: no frame has one.
        """
        both = [(a, b) for a, b in zip(self.predicted, self.copied, strict=True) if a is not None and b is not None]
        if not both:
            raise ValueError(f"a clip must have 2 frames or more to predict one; got {max(self.frames, default=0)}")
        return sum(a for a, _ in both) / len(both), sum(b for _, b in both) / len(both)


def predict(arguments: list[str]) -> None:
    """Predict a film frame by frame, in constant memory, and make a film of that."""
    command = parse(PredictCommand, arguments, "predict")
    check_outputs({"out": command.out, "json": command.json_file}, [command.model, command.video])
    predictor = load(command.model)
    clips = clips_for(size_for(predictor, command.model), command.video, command.layout)
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
        said = {
            "model": command.model,
            "video": str(command.video),
            "clips": [{"name": name, "frames": n} for (name, _), n in zip(clips.readers, errors.frames, strict=True)],
            "numbers": errors.numbers,
            "errors": errors.predicted,
            "copy_errors": errors.copied,
        }
        write_atomically(command.json_file, (json.dumps(said) + "\n").encode())
    print(f"{sum(errors.frames)} frames of {printable(command.video)}: squared error {mean:.4g} a frame", end="")
    print(f", {mean_copied:.4g} for the frame before: {printable(command.out)}")


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
                state = predictor.observe(frame, prediction, state)
            predicted = None if begins else float(frame_squared_error(prediction.frame, frame))
            copied = None if begins else float(frame_squared_error(before, frame))
            errors.note(shown.number, predicted, copied)
            yield comparison.picture(frame[0], [prediction.frame[0]], (predicted, copied))
            before = frame
    errors.means()  # nothing to show is an error, before the film takes the place of a former one
