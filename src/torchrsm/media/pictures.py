"""Draws predictions and dreams as pictures: overlays, strips of a sequence."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchrsm.scoring import metrics
from torchrsm.storage.tensors import write_atomically

BACKGROUND = (22, 23, 28)

TEXT = (236, 236, 240)

FAINT = (150, 152, 162)

_ROWS = (("truth", (70, 140, 255)), ("prediction", (255, 80, 80)), ("overlay", (255, 95, 255)))


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
        raise ValueError(f"truth must have the shape [time, channels, height, width]; got {list(truth.shape)}")
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16; got {frame_pixels}")
    last_step = first_step + len(truth) - 1
    if steps is None:
        begin = min(first_step + 1, last_step)
        steps = [round(step) for step in np.linspace(begin, last_step, min(10, last_step - begin + 1))]
    if not steps or not all(first_step <= step <= last_step for step in steps):
        raise ValueError(f"steps must be one or more of {first_step}..{last_step}; got {list(steps)}")

    chosen = torch.as_tensor([step - first_step for step in steps])
    truth, prediction = truth.detach().cpu()[chosen], prediction.detach().cpu()[chosen]
    errors = metrics.frame_squared_error(prediction, truth).tolist()
    rows = (pictures(truth), pictures(prediction), overlay(prediction, truth))
    columns = [
        _Column(str(step), _short(error), tuple(pictures[index] for pictures in rows))
        for index, (step, error) in enumerate(zip(steps, errors, strict=True))
    ]
    return _grid(columns, _ROWS, ("frame", "error"), truth.shape[-2:], title, frame_pixels)


class _Column(NamedTuple):
    heading: str
    note: str
    pictures: tuple[NDArray[np.uint8] | None, ...]


def _grid(
    columns: Sequence[_Column],
    rows: Sequence[tuple[str, tuple[int, int, int]]],
    names: tuple[str, str],
    frame: Sequence[int],
    title: str,
    frame_pixels: int,
) -> Image.Image:
    """Draw columns of pictures of ``frame`` pixels under their heading and note, each row with its coloured label."""
    scale = max(1, round(frame_pixels / max(frame)))
    height, width = scale * frame[0], scale * frame[1]
    gap, margin, label, line = 6, 18, 92, 20
    column = max(width, 64) + gap  # wide enough for what stands above it
    left, top = margin + label, margin + (34 if title else 0) + 2 * line + gap
    size = (left + len(columns) * column - gap + margin, top + len(rows) * (height + gap) - gap + margin)
    if title:
        title_font = ImageFont.load_default(size=19)
        size = (max(size[0], 2 * margin + round(title_font.getlength(title))), size[1])
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    if title:
        draw.text((margin, margin - 4), title, TEXT, title_font)
    heading = top - gap - line // 2
    draw.text((margin, heading - line), names[0], TEXT, font, anchor="lm")
    draw.text((margin, heading), names[1], FAINT, font, anchor="lm")
    for row, (name, colour) in enumerate(rows):
        draw.text((margin, top + row * (height + gap) + height // 2), name, colour, font, anchor="lm")
    for index, (text, note, pictures) in enumerate(columns):
        x = left + index * column + (column - gap - width) // 2
        draw.text((x + width // 2, heading - line), text, TEXT, font, anchor="mm")
        draw.text((x + width // 2, heading), note, FAINT, font, anchor="mm")
        for row, shown in enumerate(pictures):
            if shown is not None:
                enlarged = Image.fromarray(shown).resize((width, height), Image.Resampling.NEAREST)
                picture.paste(enlarged, (x, top + row * (height + gap)))
    return picture


def two_row_picture(
    truth: Tensor,
    predicted: Tensor,
    dreamt: Tensor,
    prime: int,
    *,
    steps: Sequence[int] | None = None,
    title: str = "",
    frame_pixels: int = 108,
) -> Image.Image:
    """Draw the article's picture of one sequence: predicted from the first frame on, and dreamt.

    Above, each frame is predicted from all the true ones before it; below, that is so while the dream is primed. Both
    are painted over the truth (`overlay`) as far as it is known.

    Args:
        truth: ``[t', c, h, w]`` in 0..1, ``t'`` at most t.
        predicted: ``[t', c, h, w]``.
        dreamt: ``[t, c, h, w]``, the first ``prime`` frames predicted, then the model's own.
        prime: frames of priming, 1 to t - 1.
        steps: the frames to draw, in order, from 1; None for two of the priming and ten of the dream.
        title: one line above all; none if empty.
        frame_pixels: about how large a frame's longer side is drawn, >= 16.

    Raises:
        ValueError: shapes do not go together, or an argument is out of its range.
    """
    _check_pair(predicted, truth)
    known, t = len(truth), len(dreamt)
    if truth.dim() != 4 or dreamt.dim() != 4 or dreamt.shape[1:] != truth.shape[1:] or not 1 <= known <= t:
        raise ValueError(
            "truth and dreamt must be [time, channels, height, width] of the same frames, the first no longer; "
            f"got {list(truth.shape)} and {list(dreamt.shape)}"
        )
    if not 1 <= prime < t:
        raise ValueError(f"prime must be in 1..{t - 1}; got {prime}")
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16; got {frame_pixels}")
    if steps is None:
        later = np.unique(np.rint(prime + np.geomspace(1, t - prime, 10)).astype(int))
        steps = [*sorted({max(1, prime // 2), prime}), *later.tolist()]
    if not steps or not all(1 <= step <= t for step in steps):
        raise ValueError(f"steps must be one or more of 1..{t}; got {list(steps)}")

    def row(frames: Tensor, step: int) -> NDArray[np.uint8] | None:
        if step > len(frames):
            return None
        frame = frames[step - 1]
        return overlay(frame, truth[step - 1]) if step <= known else pictures(frame)

    columns = [
        _Column(
            str(step) if step <= prime else f"+{step - prime}",
            "priming" if step <= prime else "dream",
            (row(predicted, step), row(dreamt, step)),
        )
        for step in steps
    ]
    labels = (("predictive", _ROWS[1][1]), ("self-looped", _ROWS[2][1]))
    return _grid(columns, labels, ("frame", ""), truth.shape[-2:], title, frame_pixels)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG; the file appears complete or not at all, and no folder is made.

    Raises:
        ValueError: the name does not end in ".png".
        OSError: the folder is missing or cannot be written to, or the disk is full; a file that was there is kept.
    """
    write_png(Path(path), lambda file: image.save(file, format="PNG", optimize=True))


def write_png(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write what ``write`` makes, a PNG, whole or not at all."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"the name of a picture must end in .png; got {str(path)!r}")
    content = io.BytesIO()
    write(content)
    write_atomically(path, content.getvalue())


def _check_pair(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or truth.dim() < 3:
        raise ValueError(
            "prediction and truth must have the same shape [..., channels, height, width]; "
            f"got {list(prediction.shape)} and {list(truth.shape)}"
        )
    for name, frames in (("prediction", prediction), ("truth", truth)):
        bad = int((~frames.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} must be finite; got {bad} NaN or infinite of {frames.numel()} values")


def _levels(frames: Tensor) -> NDArray[np.float64]:
    return frames.detach().cpu().to(torch.float64).clamp(0, 1).numpy()


def pictures(frames: Tensor) -> NDArray[np.uint8]:
    """Return ``[..., channels, height, width]`` as RGB ``[..., height, width, 3]``, grey unless of three channels."""
    levels = _levels(frames)
    if levels.shape[-3] != 3:
        levels = levels.mean(axis=-3, keepdims=True).repeat(3, axis=-3)
    return _to_bytes(np.moveaxis(levels, -3, -1))


def _to_bytes(levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rint(255 * levels).astype(np.uint8))


def _short(error: float) -> str:
    """Return three significant digits in at most seven characters."""
    if error != 0 and not 0.001 <= error < 9999.5:
        return f"{error:.1e}"
    return f"{error:.0f}" if error >= 99.95 else f"{error:#.3g}"
