"""``export``: write one step of a model as a program that runs without torchrsm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import tyro
from pydantic import Field, model_validator

from torchrsm.cli.outputs import check_outputs
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import size_for
from torchrsm.config import Config
from torchrsm.exporting import FIRST_SUFFIX, save_step
from torchrsm.model import VideoPredictor
from torchrsm.runs.settings import learned_from
from torchrsm.streams.paths import printable
from torchrsm.streams.settings import frame_shape
from torchrsm.systems import load


class ExportCommand(Config):
    """Write one step of a model as a program: it observes a frame and predicts the next.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model.
        out: .onnx for onnxruntime and others (extra: onnx), .pt2 for torch.export. What the program begins with goes to
            a second file beside it, which ends in .first.npz.
        batch: streams side by side.
        height: rows of the frames; None for what the model has learned from.
        width: columns; None likewise.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    batch: Annotated[int, Field(ge=1)] = 1
    height: Annotated[int | None, Field(ge=1)] = None
    width: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _is_a_program(self) -> Self:
        if self.out.suffix not in (".onnx", ".pt2"):
            raise ValueError(f"out must end in .onnx or .pt2; got {str(self.out)!r}")
        return self


def export(arguments: list[str]) -> None:
    """Write a step of a model and what it begins with."""
    command = parse(ExportCommand, arguments, "export")
    first = command.out.with_name(command.out.stem + FIRST_SUFFIX)
    check_outputs({"out": command.out, "what it begins with": first}, [command.model])
    model = load(command.model, engine="reference")
    if not isinstance(model, VideoPredictor):
        raise ValueError(f"model must be RSM to be exported; {command.model!r} is a {type(model).__name__}")
    channels, height, width = _frames_of(model, command.model)
    shape = (command.batch, channels, command.height or height, command.width or width)
    save_step(model, shape, command.out)
    size = " x ".join(map(str, shape))
    print(f"{printable(command.out)} reads frames of {size} and the state; it begins with {printable(first)}")


def _frames_of(model: VideoPredictor, name_or_folder: str) -> tuple[int, int, int]:
    """Return channels, height and width of the frames that a model has learned from."""
    size = size_for(model, name_or_folder)
    if size.height is not None and size.width is not None:
        return size.channels, size.height, size.width
    stream = learned_from(name_or_folder)
    if stream is None:
        raise ValueError("height and width must be given: the model does not say what it learned from; got none")
    return frame_shape(stream)
