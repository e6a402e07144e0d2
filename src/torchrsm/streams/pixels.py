"""From the pixels of a picture, of any kind and depth, to bytes: 255 is white, and transparency lies on black."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchrsm.streams.stream import require_integer

_WHITE_IN_MESSAGE = "say which value is white (white)"


def require_white(white: float | None) -> float | None:
    """Return the value of white, or raise a ValueError if it is no number above 0; None for what the file tells."""
    if white is None:
        return None
    number = isinstance(white, int | float | np.integer | np.floating) and not isinstance(white, bool)
    if not number or not math.isfinite(white) or white <= 0:
        raise ValueError(f"white must be a number above 0, or None for what the picture tells; got {white!r}")
    return white


def shallow_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Return pixels of 8 bits or less, ``[height, width, 3]`` or, grey, ``[height, width]``.

    CMYK is taken as Pillow does, without a colour profile.

    Raises:
        ValueError: the pixels are of a kind that cannot be converted.
    """
    if image.mode == "LAB":
        raise ValueError("pixels are CIE Lab, which is not read: save it as RGB")
    if image.mode == "La":  # grey that was multiplied by its alpha
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Image.new("RGB", rgba.size)
        black.paste(rgba, mask=rgba.getchannel("A"))
        return np.array(black)
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def deep_bytes(
    values: NDArray[np.generic], white: float | None, *, white_is_zero: bool = False, transparent: int | None = None
) -> NDArray[np.uint8]:
    """Return grey pixels of more than 8 bits, ``[height, width]``, as bytes: the upper 8 bits of integers.

    Args:
        values: integers or floating-point numbers in ``0..white``.
        white: which value is white; None if nobody knows, which is refused.
        white_is_zero: whether the picture is stored as a negative, in which 0 is white.
        transparent: a value that is transparent, and so black.

    Raises:
        ValueError: ``white`` is None, or a value is not finite or outside of ``0..white``.
    """
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("pixels must be finite; got NaN or infinity")
    if white is None:
        raise ValueError(f"nothing tells which value is white; got {low:g}..{high:g}: {_WHITE_IN_MESSAGE}")
    if low < 0 or high > white:
        raise ValueError(f"pixels must be within 0..{white:g}; got {low:g}..{high:g}: {_WHITE_IN_MESSAGE}")
    if values.dtype.kind == "f" or white != int(white):
        scaled = np.rint(values.astype(np.float64) * (255 / white))
    else:
        require_integer("white", int(white), 1, 2**32 - 1)
        scaled = values.astype(np.int64) * 256 // (int(white) + 1)
    if white_is_zero:
        scaled = 255 - scaled
    if transparent is not None:
        scaled[values == transparent] = 0
    return scaled.astype(np.uint8)
