"""What the axes of an array of frames mean: said by a layout, or told by the shape where it has one reading only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT_LETTERS = "ntchw"
"""The axes of frames in memory: n sequences (clips), t times, c channels, h rows (height), w columns (width)."""

_COLOURS_LAST = (1, 3, 4)  # sizes of a last axis of channels: grey, colour, colour with alpha
_THIN = 3  # pixels; a frame with so short a side is more likely another axis
_MANY, _MANY_MORE = 1000, 50  # a second axis this long, and this many times the first, may be the sequences
_PLACES = 32  # where neighbours are compared
_CLEAR = 0.9  # share of the places that must agree


def require_layout(layout: str, dimensions: int | None = None) -> str:
    """Return a layout, or raise a ValueError if it is none.

    Args:
        layout: a letter for each axis of an array, in order: ``n t c h w`` each at most once, ``h`` and ``w`` always.
        dimensions: of the array; None for any number.
    """
    known = isinstance(layout, str) and set(layout) <= set(LAYOUT_LETTERS)
    if not known or len(set(layout)) != len(layout) or not {"h", "w"} <= set(layout):
        raise ValueError(
            "layout must have a letter for each axis of the array (n sequence, t time, c channel, h row, w column), "
            f"each at most once, h and w always, such as nthw or thwc; got {layout!r}"
        )
    if dimensions is not None and len(layout) != dimensions:
        raise ValueError(f"layout {layout!r} names {len(layout)} axes; got an array of {dimensions}")
    return layout


def infer_layout(name: str, shape: Sequence[int]) -> str:
    """Return the layout that a shape has, or raise a ValueError with the choices if it may have several.

    - Three axes are ``thw``.
    - Four are ``nthw``; but ``thwc`` if the last is 1, 3 or 4 and shorter than the two before it.
    - Five are ``ntchw``; but ``nthwc`` if the last is 1, 3 or 4 and shorter than the two before it.

    Refused, because another reading is as likely: three axes that may be one picture (``hwc``, ``chw``); four with 1 or
    3 in second place, which may be channels (``tchw``) or times; frames with a side of 3 pixels or less, and frames
    that are square only with the axis of time, as if time came last; five axes without channels.

    Args:
        name: of the array, for the message.
        shape: of the array; each axis is 1 or more.
    """
    if len(shape) not in (3, 4, 5):
        raise ValueError(
            f"{name} must have 3 to 5 axes, as [time, height, width] or [sequences, time, channels, height, width]; or "
            f"say what they are with layout (--layout), such as hw for one picture; got shape {list(shape)}"
        )
    choices = _of_three(*shape) if len(shape) == 3 else _of_four(*shape) if len(shape) == 4 else _of_five(*shape)
    if len(choices) > 1:
        raise ambiguous(name, shape, choices)
    return choices[0]


def _of_three(first: int, height: int, width: int) -> list[str]:
    if width in _COLOURS_LAST and width < min(first, height):
        return ["thw", "hwc"]
    if first == 3 < min(height, width):
        return ["thw", "chw"]
    if first == height != width or (min(height, width) <= _THIN and min(height, width) < first):
        return ["thw", "hwt"]
    return ["thw"]


def _of_four(first: int, second: int, third: int, last: int) -> list[str]:
    if last in _COLOURS_LAST and last < min(second, third):
        return ["thwc", "hwtc"] if first == second != third else ["thwc"]
    if second in (1, 3) and second < min(third, last) and first * second > 1:
        return ["nthw", "tchw"]
    if min(third, last) <= _THIN and min(third, last) < min(first, second):
        return ["nthw", "hwct"] if third < last else ["nthw", "thwc"]
    return ["nthw"]


def _of_five(_first: int, _second: int, third: int, fourth: int, last: int) -> list[str]:
    if last in _COLOURS_LAST and last < min(third, fourth):
        return ["nthwc"]
    return ["ntchw"] if third <= max(_COLOURS_LAST) else ["ntchw", "nthwc"]


def arrange(array: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return a view of an array as ``[sequences, time, channels, height, width]``; absent axes get the size 1."""
    present = [letter for letter in LAYOUT_LETTERS if letter in layout]
    view = array.transpose([layout.index(letter) for letter in present])
    return view[tuple(slice(None) if letter in layout else None for letter in LAYOUT_LETTERS)]


def check_time_axis(name: str, shape: Sequence[int], layout: str, frames: NDArray[Any]) -> None:
    """Raise a ValueError if an array that was read sequences first may have time first.

    A film changes little from one frame to the next, and sequences have little to do with each other. So the time is
    the axis along which neighbours are alike. Where this shows nothing (noise, one sequence), sequences come first, but
    a second axis of 1000 or more that is 50 times the first is refused: ``mnist_test_seq.npy`` is [20, 10000, 64, 64].

    Args:
        name: of the array, for the message.
        shape: of the array as it is stored.
        layout: that `infer_layout` found.
        frames: the array, arranged.
    """
    sequences, length = frames.shape[:2]
    if "n" not in layout or sequences == 1 or length == 1:
        return
    second_is_time = _later_axis_is_smoother(frames)
    if second_is_time is None and length >= max(_MANY, _MANY_MORE * sequences):
        second_is_time = False
    if second_is_time is False:
        raise ambiguous(name, shape, [layout, layout.replace("nt", "tn")])


def _later_axis_is_smoother(frames: NDArray[Any]) -> bool | None:
    """Return whether frames are more alike along the second axis than along the first, None if it is not clear."""
    places = (frames.shape[0] - 1) * (frames.shape[1] - 1)
    chosen = np.unique(np.linspace(0, places - 1, min(_PLACES, places)).astype(np.int64))
    votes = []
    for place in chosen:
        i, j = divmod(int(place), frames.shape[1] - 1)
        here, along_first, along_second = (_coarse(frames[k]) for k in ((i, j), (i + 1, j), (i, j + 1)))
        first, second = float(np.abs(along_first - here).sum()), float(np.abs(along_second - here).sum())
        if first != second and min(first, second) > 0:  # the same frame again says nothing about what moves
            votes.append(second < first)
    if len(votes) < 8:
        return None
    share = sum(votes) / len(votes)
    return True if share >= _CLEAR else False if share <= 1 - _CLEAR else None


def _coarse(frame: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means over about 8 x 8 parts of a frame, in which a small movement makes a small difference."""
    channels, height, width = frame.shape
    rows, columns = max(1, height // 8), max(1, width // 8)
    cut = frame[:, : height // rows * rows, : width // columns * columns].astype(np.float64)
    parts: NDArray[np.float64] = cut.reshape(channels, height // rows, rows, width // columns, columns).mean((2, 4))
    return parts


def ambiguous(name: str, shape: Sequence[int], layouts: Sequence[str]) -> ValueError:
    """Return the error for an array that can be read in several ways; it tells them, and how to choose."""
    readings = []
    for layout in layouts:
        sizes = dict(zip(layout, shape, strict=True))
        if layout.endswith("c") and sizes["c"] == 4:
            sizes["c"] = 3  # alpha, which is laid on black
        readings.append(f"{layout} ({describe_frames([sizes.get(letter, 1) for letter in LAYOUT_LETTERS])})")
    return ValueError(
        f"{name} has the shape {list(shape)}, which may be {' or '.join(readings)}: say which with layout (--layout), "
        f"such as --layout {layouts[-1]}"
    )


def describe_frames(shape: Sequence[int]) -> str:
    """Return the size of frames in words: ``4 clips of 100 frames, 1 x 30 x 30 (channels x height x width)``.

    Args:
        shape: ``[sequences, time, channels, height, width]``.
    """
    sequences, length, channels, height, width = shape
    return (
        f"{sequences} clip{'' if sequences == 1 else 's'} of {length} frame{'' if length == 1 else 's'}, "
        f"{channels} x {height} x {width} (channels x height x width)"
    )
