"""Read a folder of pictures, or an animation in one file, frame by frame; see `torchrsm.streams.picture_file`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchrsm.streams.films import require_rate
from torchrsm.streams.framing import Crop, Framing, PixelBudget
from torchrsm.streams.paths import printable, require_file, require_folder
from torchrsm.streams.picture_file import PICTURE_SUFFIXES, PictureFile, picture_files, picture_kind
from torchrsm.streams.pixels import require_white
from torchrsm.streams.stream import require_integer

__all__ = ["PICTURE_SUFFIXES", "AnimationReader", "ImageFolderReader", "picture_kind"]

_DARK_IS_REFUSED = (
    "has pixels of 16 bits, all below 4096, which would be nearly black: say which value is white, such as white=4095 "
    "for 12 bits, or white=65535 if the picture is so dark"
)


class ImageFolderReader:
    """The pictures of a folder as frames, in the natural order of their names: ``frame2`` before ``frame10``.

    Making one reads the headers of all pictures, all of those that seem cut, and three of 16 bits. Other files, hidden
    ones and folders inside are left out; a file without a suffix counts if it is a picture. Pictures are turned
    upright as EXIF says; transparent ones lie on black.

    Args:
        folder: of pictures: .png .jpg .jpeg .bmp .webp .tif .tiff .gif.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        max_pixels: most pixels of all pictures together, as stored; None for no limit.
        white: as `PictureFile` explains it.

    Raises:
        FileNotFoundError: nothing is there, or a picture is a link to nothing.
        NotADirectoryError: it is no folder.
        ValueError: an argument is outside its range; the folder has no picture; one is an animation, damaged, or too
            large; or they differ in size and would not all become frames of one shape. Damage in the middle of a
            picture shows while iterating.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        max_pixels: int | None = None,
        white: float | None = None,
    ) -> None:
        self._framing = Framing(height, width, crop, channels)
        self._white = require_white(white)
        budget = PixelBudget(Path(folder), None if max_pixels is None else require_integer("max_pixels", max_pixels, 1))
        self._folder = require_folder(folder)
        self._paths = picture_files(self._folder)
        if not self._paths:
            raise ValueError(
                f"{printable(self._folder)} must have pictures in it ({' '.join(PICTURE_SUFFIXES)}); got none"
            )
        shapes = [self._check(path, budget) for path in self._paths]
        self._shape = shapes[0]
        _, first_height, first_width = shapes[0]
        for path, (_, one_height, one_width) in zip(self._paths, shapes, strict=True):
            same_aspect = round(one_width * first_height / one_height) == first_width
            if not same_aspect and not (height and width):
                raise ValueError(
                    f"{printable(path)} must have the shape of {printable(self._paths[0].name)}, which gives "
                    f"{first_height} x {first_width}; got {one_height} x {one_width} (height x width); set height "
                    "and width, or crop"
                )
        self._refuse_dark_ones()

    @property
    def paths(self) -> list[Path]:
        """The pictures, in the order of the frames."""
        return list(self._paths)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._shape

    @property
    def frame_count(self) -> int:
        """How many pictures there are."""
        return len(self._paths)

    @property
    def frames_per_second(self) -> None:
        """None: a folder of pictures has no rate."""
        return None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        for path in self._paths:
            with PictureFile(path, self._white) as file:
                yield self._framing.frame(file.pixels(0), self._shape)

    def _check(self, path: Path, budget: PixelBudget) -> tuple[int, int, int]:
        """Return the shape that a picture becomes, after what can be told of it in little time."""
        with PictureFile(path, self._white) as file:
            if file.count > 1:
                raise ValueError(
                    f"{printable(self._folder)} must have single pictures in it; got the animation "
                    f"{printable(path.name)} of {file.count}; animations are films: keep them in a folder of their own"
                )
            height, width = file.size(0)
            budget.spend(height, width)
            if file.is_cut():
                file.pixels(0)
        return _shape_of(self._framing, path, height, width)

    def _refuse_dark_ones(self) -> None:
        last = len(self._paths) - 1
        for number in sorted({0, last // 2, last}):
            with PictureFile(self._paths[number], self._white) as file:
                if not file.is_dark_16_bit(0):
                    return
        raise ValueError(f"{printable(self._paths[0])} {_DARK_IS_REFUSED}")


class AnimationReader:
    """The pictures of an animated GIF, PNG or WebP, or the pages of a TIFF, as frames; each iteration opens the file.

    Making one reads the headers of all pages. Frames are as a viewer shows them: what is under them and not covered
    stays, transparency lies on black, and frames that ask for less than 0.011 seconds are shown for 0.1.

    Args:
        path: of a file with two or more pictures of one size.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: above 0, at most 1000; frame k is what a viewer shows at ``k / frames_per_second``, so frames
            are dropped or repeated. None for each frame once. The pages of a TIFF have no times, and refuse it.
        max_pixels: most pixels of all pictures together, as stored; None for no limit.
        white: as `PictureFile` explains it.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: a folder is there.
        ValueError: an argument is outside its range; the file has one picture only, or pictures of several sizes; it is
            damaged, too large, or of another kind. Damage in the middle shows while iterating.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        frames_per_second: float | None = None,
        max_pixels: int | None = None,
        white: float | None = None,
    ) -> None:
        self._framing = Framing(height, width, crop, channels)
        self._white = require_white(white)
        self._rate = None if frames_per_second is None else require_rate(frames_per_second)
        self._path = require_file(path)
        budget = PixelBudget(self._path, None if max_pixels is None else require_integer("max_pixels", max_pixels, 1))
        with PictureFile(self._path, self._white) as file:
            self._count, self._has_times = file.count, file.has_times
            if self._count == 1:
                raise ValueError(
                    f"{printable(self._path)} must be an animation or a film; got a single picture; a folder of "
                    "pictures is a film"
                )
            if self._rate is not None and not self._has_times:
                raise ValueError(
                    f"frames_per_second must be None for a TIFF, which has no rate; got it for {printable(self._path)}"
                )
            size = file.size(0)
            budget.spend(*size, pictures=self._count)
            for number in range(1, self._count):
                if (other := file.size(number)) != size:
                    raise ValueError(
                        f"{printable(self._path)} must have pictures of one size; got {size[0]} x {size[1]} first "
                        f"and {other[0]} x {other[1]} (height x width) as number {number}"
                    )
            if file.is_dark_16_bit(0) and (self._has_times or file.is_dark_16_bit(self._count - 1)):
                raise ValueError(f"{printable(self._path)} {_DARK_IS_REFUSED}")
            if file.is_cut():
                for number in range(self._count):
                    file.pixels(number)
        self._shape = _shape_of(self._framing, self._path, *size)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._shape

    @property
    def frames_per_second(self) -> float | None:
        """The rate that was asked for, or the mean one of the file; None for a TIFF."""
        if self._rate is not None:
            return float(self._rate)
        return float(self._count / self._ends[-1]) if self._has_times else None

    @property
    def seconds(self) -> float | None:
        """How long the animation is; None for a TIFF."""
        return float(self._ends[-1]) if self._has_times else None

    @property
    def frame_count(self) -> int:
        """How many frames an iteration yields."""
        return self._count if self._rate is None else len(self._shown(self._rate))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        with PictureFile(self._path, self._white) as file:
            if self._rate is None:
                for number in range(self._count):
                    yield self._framing.frame(file.pixels(number), self._shape)
                return
            latest, frame = -1, np.zeros(self._shape, np.uint8)
            for number in self._shown(self._rate):
                if number != latest:
                    # Frames lie on earlier ones, so that each is read, shown or not.
                    for between in range(latest + 1, number + 1):
                        picture = file.pixels(between)
                    latest, frame = number, self._framing.frame(picture, self._shape)
                yield frame.copy()

    @cached_property
    def _ends(self) -> list[Fraction]:
        """When each picture stops being shown, seconds."""
        with PictureFile(self._path, self._white) as file:
            return list(accumulate(file.seconds(number) for number in range(self._count)))

    def _shown(self, rate: Fraction) -> list[int]:
        """Return the number of the picture that is shown at each multiple of a period."""
        frames = range(math.ceil(self._ends[-1] * rate))
        return [bisect_right(self._ends, number / rate) for number in frames]


def _shape_of(framing: Framing, path: Path, height: int, width: int) -> tuple[int, int, int]:
    try:
        return framing.shape(height, width)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from None
