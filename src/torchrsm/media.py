"""Draws predictions: overlays, strips and the error by frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchrsm import metrics

_BACKGROUND = (22, 23, 28)
_TEXT = (236, 236, 240)
_FAINT = (150, 152, 162)
_ROWS = (("truth", (70, 140, 255)), ("prediction", (255, 80, 80)), ("overlay", (255, 95, 255)))
_REFERENCE = "copy-last"


def overlay(prediction: Tensor, truth: Tensor) -> NDArray[np.uint8]:
    """Paint a prediction over the truth: red where only it is bright, blue where only the truth is, magenta where both.

    Red is the prediction and blue the truth. A little green goes with what the prediction misses, since pure blue
    on black is hard to see; it is none where the two agree.

    Args:
        prediction: ``[..., channels, height, width]``, clipped to 0..1; the mean of its channels is painted.
        truth: the same shape.

    Returns:
        ``[..., height, width, 3]`` RGB.

    Raises:
        ValueError: the shapes differ, have fewer than three dimensions, or a value is not finite.
    """
    _check_pair(prediction, truth)
    red = _levels(prediction).mean(axis=-3)
    blue = _levels(truth).mean(axis=-3)
    green = 0.4 * np.maximum(blue - red, 0)
    return _to_bytes(np.stack([red, green, blue], axis=-1))


def strip(
    truth: Tensor,
    prediction: Tensor,
    *,
    steps: Sequence[int] | None = None,
    first_step: int = 1,
    title: str = "",
    frame_pixels: int = 108,
) -> Image.Image:
    """Draw a sequence as three rows, truth, prediction and their `overlay`, one column per time step.

    Above each column stand its step and the squared error of its frame (`metrics.frame_squared_error`).

    Args:
        truth: ``[t, channels, height, width]`` in 0..1; three channels are RGB, of another number the mean is drawn.
        prediction: the same shape.
        steps: the steps to draw, in order; None for ten spread evenly from the second to the last (all if fewer).
        first_step: the number of the first frame.
        title: one line above all; none if empty.
        frame_pixels: about how large a frame's longer side is drawn, >= 16. Each pixel becomes a square of whole size,
            so the frame is never drawn smaller than it is and no detail is invented.

    Raises:
        ValueError: the shapes differ or are not of one sequence, a value is not finite, or a step is out of range.
    """
    _check_pair(prediction, truth)
    if truth.dim() != 4 or len(truth) == 0:
        raise ValueError(f"truth must have the shape [time, channels, height, width], received {list(truth.shape)}")
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16, received {frame_pixels}")
    last_step = first_step + len(truth) - 1
    if steps is None:
        begin = min(first_step + 1, last_step)
        steps = [round(step) for step in np.linspace(begin, last_step, min(10, last_step - begin + 1))]
    if not steps or not all(first_step <= step <= last_step for step in steps):
        raise ValueError(f"steps must be one or more of {first_step}..{last_step}, received {list(steps)}")

    chosen = torch.as_tensor([step - first_step for step in steps])
    truth, prediction = truth.detach().cpu()[chosen], prediction.detach().cpu()[chosen]
    errors = metrics.frame_squared_error(prediction, truth).tolist()
    rows = (_pictures(truth), _pictures(prediction), overlay(prediction, truth))

    scale = max(1, round(frame_pixels / max(truth.shape[-2:])))
    height, width = scale * truth.shape[-2], scale * truth.shape[-1]
    gap, margin, label, line = 6, 18, 92, 20
    column = max(width, 64) + gap  # wide enough for the two numbers above it
    left, top = margin + label, margin + (34 if title else 0) + 2 * line + gap
    size = (left + len(steps) * column - gap + margin, top + 3 * (height + gap) - gap + margin)
    if title:
        title_font = ImageFont.load_default(size=19)
        size = (max(size[0], 2 * margin + round(title_font.getlength(title))), size[1])
    picture = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    if title:
        draw.text((margin, margin - 4), title, _TEXT, title_font)
    heading = top - gap - line // 2
    draw.text((margin, heading - line), "frame", _TEXT, font, anchor="lm")
    draw.text((margin, heading), "error", _FAINT, font, anchor="lm")
    for row, (name, colour) in enumerate(_ROWS):
        draw.text((margin, top + row * (height + gap) + height // 2), name, colour, font, anchor="lm")
    for index, (step, error) in enumerate(zip(steps, errors, strict=True)):
        x = left + index * column + (column - gap - width) // 2
        draw.text((x + width // 2, heading - line), str(step), _TEXT, font, anchor="mm")
        draw.text((x + width // 2, heading), _short(error), _FAINT, font, anchor="mm")
        for row, pictures in enumerate(rows):
            frame = Image.fromarray(pictures[index]).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(frame, (x, top + row * (height + gap)))
    return picture


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG; the file appears complete or not at all, and no folder is made.

    Raises:
        ValueError: the name does not end in ".png".
        OSError: the folder is missing or cannot be written to, or the disk is full; a file that was there is kept.
    """
    _write(Path(path), lambda file: image.save(file, format="PNG", optimize=True))


def plot_error_by_frame(scores: Mapping[str, Sequence[float | None]], path: str | Path) -> None:
    """Plot the squared error at each frame, logarithmic, one line per model, as PNG.

    Args:
        scores: ``by_frame`` of `evaluation.NextFrameScores`, by the name to show: the first value is frame 1; None, and
            what a logarithmic axis cannot show (0), leaves a gap. "copy-last" is drawn as the reference.
        path: the file, written as `save_image` does.

    Raises:
        ValueError: there is no model, a model has no positive error, or the name of the file does not end in ".png".
        OSError: as `save_image`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    if not scores:
        raise ValueError("scores must hold at least one model, received none")
    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for name, by_frame in scores.items():
        errors = np.array([np.nan if error is None else error for error in by_frame], dtype=np.float64)
        if not (errors > 0).any():
            raise ValueError(f"scores of {name!r} must hold at least one error > 0, received {list(by_frame)}")
        style: dict[str, Any] = {"linewidth": 1.8}
        if name == _REFERENCE:
            style = {"linewidth": 1.4, "linestyle": "--", "color": "0.45"}
        axes.plot(np.arange(1, len(errors) + 1), np.where(errors > 0, errors, np.nan), label=name, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("frame")
    axes.set_ylabel("squared error per frame")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"the name of a picture must end in .png, received {str(path)!r}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        if partial.exists():
            partial.unlink()


def _check_pair(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or truth.dim() < 3:
        raise ValueError(
            "prediction and truth must have the same shape [..., channels, height, width], "
            f"received {list(prediction.shape)} and {list(truth.shape)}"
        )
    for name, frames in (("prediction", prediction), ("truth", truth)):
        bad = int((~frames.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} must be finite, received {bad} NaN or infinite of {frames.numel()} values")


def _levels(frames: Tensor) -> NDArray[np.float64]:
    return frames.detach().cpu().to(torch.float64).clamp(0, 1).numpy()


def _pictures(frames: Tensor) -> NDArray[np.uint8]:
    """Return ``[t, channels, height, width]`` as RGB ``[t, height, width, 3]``, grey unless of three channels."""
    levels = _levels(frames)
    if levels.shape[1] != 3:
        levels = levels.mean(axis=1, keepdims=True).repeat(3, axis=1)
    return _to_bytes(levels.transpose(0, 2, 3, 1))


def _to_bytes(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rint(255 * levels).astype(np.uint8))


def _short(error: float) -> str:
    """Return three significant digits in at most seven characters."""
    if error != 0 and not 0.001 <= error < 9999.5:
        return f"{error:.1e}"
    return f"{error:.0f}" if error >= 99.95 else f"{error:#.3g}"
