"""Draws predictions and dreams: overlays, pictures of sequences, and plots."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchrsm import metrics
from torchrsm.physics import PhysicsSummary

BACKGROUND = (22, 23, 28)
TEXT = (236, 236, 240)
FAINT = (150, 152, 162)
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
            f"received {list(truth.shape)} and {list(dreamt.shape)}"
        )
    if not 1 <= prime < t:
        raise ValueError(f"prime must be in 1..{t - 1}, received {prime}")
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16, received {frame_pixels}")
    if steps is None:
        later = np.unique(np.rint(prime + np.geomspace(1, t - prime, 10)).astype(int))
        steps = [*sorted({max(1, prime // 2), prime}), *later.tolist()]
    if not steps or not all(1 <= step <= t for step in steps):
        raise ValueError(f"steps must be one or more of 1..{t}, received {list(steps)}")

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
    _of_errors(axes, "frame")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


class Panel(NamedTuple):
    """One curve or several against the step.

    Attributes:
        title: what is drawn, with its unit.
        lines: values from step 1 on by name; None leaves a gap.
        world: the value of the true world, drawn as a dashed line; None for none.
        limits: of the axis; None to fit the lines.
    """

    title: str
    lines: Mapping[str, Sequence[float | None]]
    world: float | None = None
    limits: tuple[float, float] | None = None


def plot_by_step(panels: Sequence[Panel], path: str | Path) -> None:
    """Plot panels side by side against the step of a dream, as PNG.

    Raises:
        ValueError: there is no panel, or the name of the file does not end in ".png".
        OSError: as `save_image`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not panels:
        raise ValueError("panels must hold at least one, received none")
    last_step = max((len(line) for panel in panels for line in panel.lines.values()), default=1)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=130, layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for name, line in panel.lines.items():
            values = np.array([np.nan if value is None else value for value in line], dtype=np.float64)
            # Dots as wide as the line show a value between two gaps, where there is no line.
            dots: dict[str, Any] = {"marker": "o", "markersize": 1.6, "markeredgewidth": 0}
            axes.plot(np.arange(1, len(values) + 1), values, label=name, linewidth=1.6, **dots)
        if panel.world is not None:
            axes.axhline(panel.world, color="0.45", linestyle="--", linewidth=1.2, label="world")
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step of the dream")
        _plain(axes)
        axes.set_xlim(0, last_step + 1)  # the same for all, also for a line of gaps
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if len(panel.lines) + (panel.world is not None) > 1:
            axes.legend(frameon=False, fontsize=8)
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def physics_panels(physics: PhysicsSummary) -> list[Panel]:
    """Return what `plot_by_step` needs to show the physics of dreams."""
    by_step, world = physics.by_step, physics.geometry
    blurred = max(0.3, 1.05 * max(by_step.sharpness))
    energy = max([2 * world.energy, *(value for value in by_step.kinetic_energy if value is not None)])
    return [
        Panel("kinetic energy, px² (median)", {"dream": by_step.kinetic_energy}, world.energy, (0, 1.05 * energy)),
        Panel("share with the right number of balls", {"dream": by_step.right_count}, 1.0, (0, 1.05)),
        Panel("mass (median)", {"dream": by_step.mass}, 1.0, (0, max(2.0, 1.05 * max(by_step.mass)))),
        Panel("share alive", {"dream": by_step.alive}, None, (0, 1.05)),
        Panel("bounces in a step (share)", {"dream": by_step.bounce_rate}, None, (0, 1.05)),
        Panel("pixels between 0.1 and 0.9 (share)", {"dream": by_step.sharpness}, None, (0, blurred)),
    ]


def plot_error_by_minute(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Plot the squared error per frame, logarithmic, against the minutes of training, as PNG.

    Args:
        curves: minutes and errors (above 0) by the name to show.
        path: the file, written as `save_image` does.
        marks: errors to draw as horizontal lines, by name.

    Raises:
        ValueError: there is no curve, one has no or unequal values, or the name does not end in ".png".
        OSError: as `save_image`.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("curves must hold at least one, received none")
    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (minutes, errors)) in enumerate(curves.items()):
        if len(minutes) != len(errors) or not len(minutes) or not min(errors) > 0:
            raise ValueError(
                f"curve {name!r} must have as many minutes as errors, which are > 0; "
                f"received {len(minutes)} and {list(errors)[:3]}"
            )
        line: dict[str, Any] = {"linestyle": ("-", "--")[number // 10 % 2], "linewidth": 1.8}
        axes.plot(minutes, errors, label=name, marker="o" if len(errors) == 1 else None, **line)
    for (name, error), style in zip((marks or {}).items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(error, color="0.45", linestyle=style, linewidth=1.2, label=f"{name}: {error:.4g}")
    _of_errors(axes, "minutes of training")
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": 8}
    axes.legend(frameon=False, **(beside if len(curves) > 5 else {}))
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def plot_memory(peaks: Mapping[str, Mapping[int, float]], path: str | Path) -> None:
    """Plot the peak memory of training, MiB, against the length of its sequences, both logarithmic, as PNG.

    Args:
        peaks: MiB by length, frames, by the name to show.
        path: the file, written as `save_image` does.

    Raises:
        ValueError: there is nothing to plot, or the name does not end in ".png".
        OSError: as `save_image`.
    """
    from matplotlib.figure import Figure

    if not any(peaks.values()):
        raise ValueError("peaks must hold at least one, received none")
    figure = Figure(figsize=(8, 4.5), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, by_length) in enumerate(peaks.items()):
        style: dict[str, Any] = {"linestyle": ("-", "--")[number // 10 % 2], "linewidth": 1.8, "marker": "o"}
        axes.plot(list(by_length), list(by_length.values()), label=name, **style)
    lengths = sorted({length for by_length in peaks.values() for length in by_length})
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("frames of a training sequence that the gradient goes back through")
    axes.set_ylabel("peak memory of training, MiB")
    _plain(axes)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def _of_errors(axes: Any, against: str) -> None:
    """Make the axes those of errors, logarithmic."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(against)
    axes.set_ylabel("squared error per frame")
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


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
