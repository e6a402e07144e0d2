"""Plots errors, physics and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrsm.media.pictures import write_png
from torchrsm.private_folder import private_folder
from torchrsm.scoring.physics import PhysicsSummary

_REFERENCE = "copy-last"


def plot_error_by_frame(scores: Mapping[str, Sequence[float | None]], path: str | Path) -> None:
    """Plot the squared error at each frame on a logarithmic axis, one line per model, as PNG.

    Args:
        scores: ``by_frame`` of `evaluation.NextFrameScores`, by the name to show: the first value is frame 1; None, and
            what a logarithmic axis cannot show (0), leaves a gap. "copy-last" is drawn as the reference.
        path: the file, written as `save_image` does.

    Raises:
        ValueError: there is no model, a model has no positive error, or the name of the file does not end in ".png".
        OSError: as `save_image`.
    """
    if not scores:
        raise ValueError("scores must hold at least one model; got none")
    figure = _figure((8, 4.5), 140)
    axes = figure.add_subplot()
    for name, by_frame in scores.items():
        errors = np.array([np.nan if error is None else error for error in by_frame], dtype=np.float64)
        if not (errors > 0).any():
            raise ValueError(f"scores of {name!r} must hold at least one error > 0; got {list(by_frame)}")
        style: dict[str, Any] = {"linewidth": 1.8}
        if name == _REFERENCE:
            style = {"linewidth": 1.4, "linestyle": "--", "color": "0.45"}
        axes.plot(np.arange(1, len(errors) + 1), np.where(errors > 0, errors, np.nan), label=name, **style)
    _of_errors(axes, "frame")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    write_png(Path(path), lambda file: figure.savefig(file, format="png"))


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
    if not panels:
        raise ValueError("panels must hold at least one; got none")
    last_step = max((len(line) for panel in panels for line in panel.lines.values()), default=1)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure((4.2 * columns, 2.9 * rows), 130)
    from matplotlib.ticker import MaxNLocator  # not above: `_figure` says first where Matplotlib keeps its files

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
        axes.set_xlim(0, last_step + 1)  # given, because a line of gaps would not set it
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if len(panel.lines) + (panel.world is not None) > 1:
            axes.legend(frameon=False, fontsize=8)
    write_png(Path(path), lambda file: figure.savefig(file, format="png"))


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
    figure, axes = _curves(curves, "minutes")
    for (name, error), style in zip((marks or {}).items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(error, color="0.45", linestyle=style, linewidth=1.2, label=f"{name}: {error:.4g}")
    _of_errors(axes, "minutes of training")
    _finish_curves(figure, axes, len(curves), path)


def plot_error_by_frames_seen(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    changes: Sequence[int] = (),
) -> None:
    """Plot the squared error per frame, logarithmic, against the frames that were learned from, as PNG.

    Args:
        curves: frames seen and errors (above 0) by the name to show.
        path: the file, written as `save_image` does.
        changes: frames after which the world changed, drawn as vertical lines.

    Raises:
        ValueError: there is no curve, one has no or unequal values, or the name does not end in ".png".
        OSError: as `save_image`.
    """
    figure, axes = _curves(curves, "frames")
    for number, change in enumerate(changes):
        label = None if number else "the world changes"
        axes.axvline(change, color="0.45", linestyle="--", linewidth=1.2, label=label)
    _of_errors(axes, "frames seen, each once")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish_curves(figure, axes, len(curves), path)


def plot_against(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]],
    path: str | Path,
    *,
    across: str,
    upwards: str,
    errors: bool,
) -> None:
    """Plot a measure against something, a line with marks for each name, as PNG.

    Args:
        curves: places and values by the name to show; None leaves a gap.
        path: the file, written as `save_image` does.
        across: what the places are.
        upwards: what the values are, unless they are errors.
        errors: the values are squared errors per frame, above 0; their axis is logarithmic.

    Raises:
        ValueError: there is no curve, or the name of the file does not end in ".png".
        OSError: as `save_image`.
    """
    if not curves:
        raise ValueError("curves must hold at least one; got none")
    figure = _figure((8, 4.5), 140)
    axes = figure.add_subplot()
    for name, (places, line) in curves.items():
        values = np.array([np.nan if value is None else value for value in line], dtype=np.float64)
        axes.plot(places, values, label=name, linewidth=1.8, marker="o", markersize=4)
    if errors:
        _of_errors(axes, across)
    else:
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        _plain(axes)
    _finish_curves(figure, axes, len(curves), path)


def _curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], against: str) -> tuple[Any, Any]:
    """Return a figure of curves and its axes."""
    if not curves:
        raise ValueError("curves must hold at least one; got none")
    figure = _figure((8, 4.5), 140)
    axes = figure.add_subplot()
    for number, (name, (places, errors)) in enumerate(curves.items()):
        if len(places) != len(errors) or not len(places) or not min(errors) > 0:
            raise ValueError(
                f"curve {name!r} must have as many {against} as errors, which are > 0; "
                f"got {len(places)} and {list(errors)[:3]}"
            )
        line: dict[str, Any] = {"linestyle": ("-", "--")[number // 10 % 2], "linewidth": 1.8}
        axes.plot(places, errors, label=name, marker="o" if len(errors) == 1 else None, **line)
    return figure, axes


def _finish_curves(figure: Any, axes: Any, count: int, path: str | Path) -> None:
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": 8}
    axes.legend(frameon=False, **(beside if count > 5 else {}))
    write_png(Path(path), lambda file: figure.savefig(file, format="png"))


def plot_memory(peaks: Mapping[str, Mapping[int, float]], path: str | Path) -> None:
    """Plot the peak memory of training, MiB, against the length of its sequences, both logarithmic, as PNG.

    Args:
        peaks: MiB by length, frames, by the name to show.
        path: the file, written as `save_image` does.

    Raises:
        ValueError: there is nothing to plot, or the name does not end in ".png".
        OSError: as `save_image`.
    """
    if not any(peaks.values()):
        raise ValueError("peaks must hold at least one; got none")
    figure = _figure((8, 4.5), 140)
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
    write_png(Path(path), lambda file: figure.savefig(file, format="png"))


def _figure(size: tuple[float, float], dpi: int) -> Any:
    """Return an empty Matplotlib figure.

    Matplotlib keeps a list of fonts in the user's home, complains where that cannot be written, and fails where there
    is no home; there, the private folder of the user takes its place.

    Args:
        size: width and height, inches.
        dpi: pixels an inch.
    """
    if not os.environ.get("MPLCONFIGDIR") and not _can_be_made(os.environ.get("XDG_CONFIG_HOME") or "~/.config"):
        with contextlib.suppress(OSError):  # then Matplotlib makes a new list each time
            os.environ["MPLCONFIGDIR"] = str(private_folder() / "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=dpi, layout="constrained")


def _can_be_made(folder: str) -> bool:
    """Say whether a folder exists and can be written, or can be made."""
    place = os.path.expanduser(folder)
    while os.path.isabs(place) and not os.path.exists(place):
        place = os.path.dirname(place)
    return os.path.isabs(place) and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


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
