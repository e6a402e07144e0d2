"""``predict``: a film of the predictions of each frame from those before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from torchrsm.cli.films import reading
from torchrsm.cli.outputs import check_writable
from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.media.films import Comparison, write_film
from torchrsm.predictor import Predictor
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams import (
    load_clips,
)
from torchrsm.systems import load


class PredictCommand(Config):
    """Predict each frame of a video from the true ones before it, and make a film of that.

    The video is read at the size that the model has learned from.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model or a baseline.
        video: a film, a folder of films or of pictures, or .npz or .npy of frames.
        out: the film, .mp4: truth, prediction and overlay side by side, and the error as it runs along.
        frames: at most so many; None for all.
        json_file: write the errors here.
        frames_per_second: of the film that is made.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    video: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILM")]
    frames: Annotated[int | None, Field(ge=2)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() != ".mp4":
            raise ValueError(f"out must end in .mp4; got {str(self.out)!r}")
        if self.json_file == self.out:
            raise ValueError(f"out and json must be two files; got {str(self.out)!r} for both")
        return self


def predict(arguments: list[str]) -> None:
    """Predict a film frame by frame, and make a film of that."""
    command = parse(PredictCommand, arguments, "predict")
    for target in (command.out, command.json_file):
        if target is not None:
            check_writable(target)
    predictor = load(command.model)
    first = load_clips(command.video, **reading(command.model))[0][: command.frames]
    errors: list[float | None] = []
    copied: list[float | None] = []
    write_film(_compared(predictor, first, command.model, errors, copied), command.out, command.frames_per_second)
    known = [(a, b) for a, b in zip(errors, copied, strict=True) if a is not None and b is not None]
    mean, mean_copied = (sum(values) / max(len(values), 1) for values in zip(*known, strict=True)) if known else (0, 0)
    if command.json_file is not None:
        said = {"model": command.model, "video": str(command.video), "errors": errors, "copy_errors": copied}
        write_atomically(command.json_file, (json.dumps(said) + "\n").encode())
    print(f"{len(first)} frames of {command.video}: squared error {mean:.4g} a frame", end="")
    print(f", {mean_copied:.4g} for the frame before: {command.out}")


def _compared(
    predictor: Predictor[Any, Any],
    clip: NDArray[np.uint8],
    name: str,
    errors: list[float | None],
    copied: list[float | None],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of the film, and note the errors on the way."""
    _, channels, height, width = clip.shape
    comparison = Comparison((height, width), ["prediction"], copy_last=True, title=name)
    state = predictor.initial_state((1, channels, height, width))
    before: Tensor | None = None
    for levels in clip:
        frame = torch.from_numpy(levels[None]).float() / 255
        with torch.no_grad():
            prediction = predictor.predict(state)
            state = predictor.observe(frame, prediction, state)
        errors.append(None if before is None else float(frame_squared_error(prediction.frame, frame)))
        copied.append(None if before is None else float(frame_squared_error(before, frame)))
        yield comparison.picture(frame[0], [prediction.frame[0]], (errors[-1], copied[-1]))
        before = frame
