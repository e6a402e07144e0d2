"""Read a folder of pictures frame by frame; nothing in the files is trusted, see `torchrsm.streams.films`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from torchrsm.streams.framing import Crop, Framing, PixelBudget
from torchrsm.streams.paths import files_with_suffix, require_folder
from torchrsm.streams.stream import require_integer

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")


class ImageFolderReader:
    """The pictures of a folder as frames, in the natural order of their names: ``frame2`` before ``frame10``.

    Making one reads the headers of all pictures. Other files, hidden ones and folders inside are left out. Pictures are
    turned upright as EXIF says; transparent ones lie on black; of an animation the first picture counts.

    Args:
        folder: of pictures: .png .jpg .jpeg .bmp .webp .tif .tiff .gif.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        max_pixels: most pixels of all pictures together, as stored; None for no limit.

    Raises:
        FileNotFoundError: nothing is there.
        NotADirectoryError: it is no folder.
        ValueError: an argument is outside its range; the folder has no picture; one of them is not what its name says,
            damaged, or too large; or they differ in size and would not all become frames of one shape. Damage beyond
            the header shows while iterating.
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
    ) -> None:
        self._framing = Framing(height, width, crop, channels)
        budget = PixelBudget(Path(folder), None if max_pixels is None else require_integer("max_pixels", max_pixels, 1))
        self._folder = require_folder(folder)
        self._paths = files_with_suffix(self._folder, PICTURE_SUFFIXES)
        if not self._paths:
            raise ValueError(f"{self._folder} must have pictures in it ({' '.join(PICTURE_SUFFIXES)}), received none")
        shapes = []
        for path in self._paths:
            picture_height, picture_width = _picture_size(path)
            budget.spend(picture_height, picture_width)
            try:
                shapes.append(self._framing.shape(picture_height, picture_width))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        self._shape = shapes[0]
        _, first_height, first_width = shapes[0]
        for path, (_, one_height, one_width) in zip(self._paths, shapes, strict=True):
            same_aspect = round(one_width * first_height / one_height) == first_width
            if not same_aspect and not (height and width):
                raise ValueError(
                    f"{path} must have the shape of {self._paths[0].name}, which gives {first_height} x {first_width}, "
                    f"received {one_height} x {one_width} (height x width); set height and width, or crop"
                )

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

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        for path in self._paths:
            yield self._framing.frame(_read_picture(path), self._shape)


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    try:
        # Sizes are limited here, more strictly than where Pillow warns.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_PICTURE_FORMATS) as image:
                PixelBudget(path, None).check_sides(image.height, image.width)
                yield image
    except (ValueError, PermissionError, FileNotFoundError) as error:
        if str(path) in str(error):
            raise
        raise _broken_picture(path, error) from error
    except Exception as error:  # a broken file breaks the parsers in a dozen ways
        raise _broken_picture(path, error) from error


def _broken_picture(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} must be a complete picture ({', '.join(_PICTURE_FORMATS)}): {reason}")


def _picture_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture as it is to be shown, from its header."""
    with _opened_picture(path) as image:
        sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if sideways else (image.height, image.width)


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """Return a picture, ``[height, width, 3]`` or, grey, ``[height, width]``."""
    with _opened_picture(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("1", "L"):
            return np.array(upright.convert("L"))
        if upright.mode.startswith("I"):  # 16 bits
            return np.asarray(np.clip(np.asarray(upright), 0, 65535) // 256, np.uint8)
        if upright.mode == "F":
            raise ValueError("pixels must be integers, received floating-point ones")
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            black = Image.new("RGB", rgba.size)
            black.paste(rgba, mask=rgba.getchannel("A"))
            return np.array(black)
        return np.array(upright.convert("RGB"))
