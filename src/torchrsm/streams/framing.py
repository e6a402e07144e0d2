"""How a picture becomes a frame, and how large pictures and films may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchrsm.streams.paths import printable
from torchrsm.streams.stream import require_integer

Crop = Literal["square"] | tuple[int, int, int, int] | None
"""The middle square, or ``(top, left, height, width)`` in pixels of the upright picture, or all of it."""

MAX_SIDE = 8192
"""Largest height or width of a picture that is decoded, pixels."""


@dataclass(frozen=True)
class Framing:
    """How a picture becomes a frame: which part of it, how large, in how many channels.

    Shrunk pictures are averaged over the area of each new pixel, enlarged ones interpolated linearly. Grey is
    ``0.299 red + 0.587 green + 0.114 blue`` (ITU-R BT.601). Pixels are taken as square.

    Args:
        height: of a frame, pixels, 1 to 8192; None for as the width asks, or as it is.
        width: of a frame, pixels, 1 to 8192; None for as the height asks, or as it is.
        crop: what is cut out first.
        channels: 1 for grey, 3 for red, green and blue.

    Raises:
        ValueError: an argument is outside its range.
    """

    height: int | None = None
    width: int | None = None
    crop: Crop = None
    channels: int = 1

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            if size is not None:
                require_integer(name, size, 1, MAX_SIDE)
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour); got {self.channels!r}")
        if self.crop is None or (isinstance(self.crop, str) and self.crop == "square"):
            return
        if not isinstance(self.crop, tuple | list) or len(self.crop) != 4:
            raise ValueError(f"crop must be None, 'square' or (top, left, height, width); got {self.crop!r}")
        for name, value, low in zip(("top", "left", "height", "width"), self.crop, (0, 0, 1, 1), strict=True):
            require_integer(f"crop: {name}", value, low)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return channels, height and width of the frame that a picture of some size becomes.

        Raises:
            ValueError: the crop is not inside of the picture.
        """
        _, _, cut_height, cut_width = self._cut(height, width)
        new_height, new_width = self.height, self.width
        if new_height is None:
            new_height = cut_height if new_width is None else max(1, round(cut_height * new_width / cut_width))
        if new_width is None:
            new_width = cut_width if self.height is None else max(1, round(cut_width * new_height / cut_height))
        if max(new_height, new_width) > MAX_SIDE:
            raise ValueError(f"frames must be at most {MAX_SIDE} pixels a side; got {new_height} x {new_width}")
        return (self.channels, new_height, new_width)

    def frame(self, picture: NDArray[np.uint8], shape: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
        """Return the frame ``[channels, height, width]`` of a picture.

        Args:
            picture: ``[height, width, 3]`` or, grey, ``[height, width]``.
            shape: of the frame; None for what `shape` says.

        Raises:
            ValueError: the crop is not inside of the picture.
        """
        height, width = picture.shape[:2]
        _, *new = shape or self.shape(height, width)
        top, left, *cut = self._cut(height, width)
        image = Image.fromarray(np.ascontiguousarray(picture[top : top + cut[0], left : left + cut[1]]))
        image = image.convert("L" if self.channels == 1 else "RGB")
        if new != cut:
            shrinks = new[0] <= cut[0] and new[1] <= cut[1]
            image = image.resize((new[1], new[0]), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        frame = np.array(image)
        return frame[None] if self.channels == 1 else np.ascontiguousarray(frame.transpose(2, 0, 1))

    def _cut(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return (0, 0, height, width)
        if isinstance(self.crop, str):
            side = min(height, width)
            return ((height - side) // 2, (width - side) // 2, side, side)
        top, left, cut_height, cut_width = self.crop
        if top + cut_height > height or left + cut_width > width:
            raise ValueError(
                f"crop must be inside of the picture, {height} x {width} (height x width); got (top, left, "
                f"height, width) = {tuple(self.crop)}"
            )
        return (top, left, cut_height, cut_width)


class PixelBudget:
    """Counts decoded pixels, and refuses pictures and films that are too large."""

    def __init__(self, path: Path, max_pixels: int | None) -> None:
        self._path, self._max_pixels, self._spent = path, max_pixels, 0

    def check_sides(self, height: int, width: int) -> None:
        """Raise a ValueError for a picture of no pixels, or with a side above `MAX_SIDE`."""
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            # FFmpeg tells no size at all of a picture above the limit that it was given.
            size = f"{height} x {width} (height x width)" if min(height, width) > 0 else "none or larger ones"
            raise ValueError(f"{printable(self._path)} must have pictures of 1 to {MAX_SIDE} pixels a side; got {size}")

    def spend(self, height: int, width: int, pictures: int = 1) -> None:
        """Count some pictures of one size; raise a ValueError when they are too large, or too many pixels in all."""
        self.check_sides(height, width)
        self._spent += pictures * height * width
        if self._max_pixels is not None and self._spent > self._max_pixels:
            what = f"{pictures} pictures" if pictures > 1 else "pictures"
            raise ValueError(
                f"{printable(self._path)} must have at most {self._max_pixels} pixels in all (max_pixels); got "
                f"more: {what} of {height} x {width} (height x width)"
            )
