"""Open a file of one picture or several: how many, how large, how long shown, and the pixels of each, upright.

A file may be damaged, or made to do harm. Sizes are limited before memory is taken, and only the formats below are
tried. Whatever is wrong raises a `ValueError` that names the file, or the error of the file system. Pixels that Pillow
would read wrongly are refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from torchrsm.streams.framing import PixelBudget
from torchrsm.streams.paths import files_with_suffix, files_without_suffix, in_natural_order, printable, require_file
from torchrsm.streams.pixels import deep_bytes, require_white, shallow_bytes
from torchrsm.streams.tiff import (
    TIFF_BEGINNINGS,
    TIFF_PIXELS,
    TiffPage,
    refuse_channels_as_pages,
    refuse_misread,
    tiff_page,
)

PICTURE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""What the name of a picture in a folder ends in, in upper or lower case."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_PNG = b"\x89PNG"
_BEGINNINGS = (_PNG, b"\xff\xd8\xff", b"BM", b"RIFF", b"GIF8", *TIFF_BEGINNINGS)
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_PREVIOUS, _OVER = 2, 1  # of the frame control of an animated PNG
_DARK = 2**4  # of 256: below it all of 16 bits that are 12 in truth
_SHORTEST = Fraction(11, 1000)  # seconds; browsers show what asks for less for a tenth of a second
_DEFAULT_SECONDS = Fraction(1, 10)


class PictureFile:
    """An open picture file; close it, or use it in a ``with`` statement.

    What counts as a picture of the file: the frames of an animated GIF, PNG or WebP, laid over each other as a viewer
    shows them; the pages of a TIFF without thumbnails and masks; the first picture of all other files.

    Args:
        path: of the file.
        white: which value of a pixel is white, for grey of more than 8 bits. None for the largest value of 12 or 16
            bits, and for 1 of floating-point ones. Each picture's own largest value would make a film flicker.

    Raises:
        ValueError: the file is no picture, is damaged, is too large, or is of a kind that cannot be read rightly.
        OSError: the file is missing or cannot be read.
    """

    def __init__(self, path: str | Path, white: float | None = None) -> None:
        self._white = require_white(white)
        self._path = require_file(path)
        self._file = self._path.open("rb")
        try:
            with _typed_errors(self._path):
                self._begin = self._part(0, 26)
                self._image = self._opened()
                self._page = self._current_page()
                self._pages = self._find_pages()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._image.close()
        self._file.close()

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self._pages)

    @property
    def has_times(self) -> bool:
        """Whether the file tells how long each picture is shown."""
        return self._page is None

    def size(self, number: int) -> tuple[int, int]:
        """Return height and width of a picture as it is to be shown; told by the header."""
        with _typed_errors(self._path):
            self._go_to(number, only_header=True)
            if self._page is not None:
                height, width, orientation = self._page.height, self._page.width, self._page.orientation
            else:
                height, width, orientation = self._image.height, self._image.width, self._orientation()
            return (width, height) if orientation in _SIDEWAYS else (height, width)

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """Return a picture, ``[height, width, 3]`` or, grey, ``[height, width]``."""
        with _typed_errors(self._path, number if self.count > 1 else None):
            self._go_to(number)
            if self._page is not None:
                refuse_misread(self._page, self._image.mode, self._begin.startswith(b"MM"))
            if self._image.mode.startswith(("I", "F")):
                return self._deep_pixels()
            if self._white is not None and self._white != self._own_white():
                raise ValueError(f"white is for grey of more than 8 bits; got {self._white:g} for other pixels")
            if self._is_16_bit() and isinstance(self._image.info.get("transparency"), tuple):
                raise ValueError("colours of 16 bits are not read when one of them is transparent")
            self._image.load()
            return shallow_bytes(ImageOps.exif_transpose(self._image))

    def seconds(self, number: int) -> Fraction:
        """Return how long a picture is shown."""
        with _typed_errors(self._path, number):
            self._go_to(number)
            self._image.load()  # a WebP tells it only then
            seconds = Fraction(round(self._image.info.get("duration", 0) * 1000), 10**6)
            return seconds if seconds >= _SHORTEST else _DEFAULT_SECONDS

    def is_dark_16_bit(self, number: int) -> bool:
        """Return whether a picture of 16 bits has pixels below a sixteenth of white only, and not 0 alone."""
        return self._white is None and self._is_16_bit() and 0 < int(self.pixels(number).max()) < _DARK

    def is_cut(self) -> bool:
        """Return whether the file seems to end too early; told without reading the pixels, and not certain."""
        with _typed_errors(self._path):
            length = os.fstat(self._file.fileno()).st_size
            match self._image.format:
                case "PNG":
                    return not any(name == b"IEND" for name, _ in self._png_chunks())
                case "JPEG" | "MPO":
                    return b"\xff\xd9" not in self._part(max(0, length - 2**16), 2**16)
                case "GIF":
                    return b";" not in self._part(max(0, length - 64), 64)
                case "WEBP":
                    return int.from_bytes(self._part(4, 4), "little") + 8 > length
                case "BMP":
                    return int.from_bytes(self._part(2, 4), "little") > length
            for number in range(self.count):
                self._go_to(number, only_header=True)
                if self._page is not None and self._page.end > length:
                    return True
            return False

    def _opened(self) -> Image.Image:
        try:
            image = Image.open(self._file, formats=_FORMATS)
        except UnidentifiedImageError:
            if not self._begin.startswith(TIFF_BEGINNINGS):
                raise ValueError("it is none of these, or damaged") from None
            raise ValueError(f"damaged, or a TIFF of pixels that are not read; read are {TIFF_PIXELS}") from None
        PixelBudget(self._path, None).check_sides(image.height, image.width)
        return image

    def _current_page(self) -> TiffPage | None:
        if self._image.format != "TIFF":
            return None
        page = tiff_page(self._image.tag_v2)  # type: ignore[attr-defined]
        PixelBudget(self._path, None).check_sides(page.height, page.width)
        return page

    def _find_pages(self) -> list[int]:
        """Return which of the pictures that Pillow counts are pictures of the file."""
        count = 1 if self._image.format == "MPO" else int(getattr(self._image, "n_frames", 1))
        if self._page is None:
            # The first picture of such a PNG is for viewers that know no animations.
            apart = self._image.format == "PNG" and count > 1 and bool(self._image.info.get("default_image"))
            if self._image.format == "PNG" and count > 1:
                self._refuse_misread_animation()
            return list(range(int(apart), count))
        pages = []
        for page in range(count):
            self._image.seek(page)
            self._page = self._current_page()
            if self._page is not None and not self._page.is_extra:
                pages.append(page)
        self._image.seek(0)
        self._page = self._current_page()
        if len(pages) > 1 and self._page is not None:
            refuse_channels_as_pages(self._page, self._image.mode)
        return pages or [0]

    def _go_to(self, number: int, *, only_header: bool = False) -> None:
        """Go to a picture. All of an animation have one size, so that for a header only a TIFF has to move."""
        if self._image.tell() != self._pages[number] and not (only_header and self._page is None):
            self._image.seek(self._pages[number])
            self._page = self._current_page()

    def _orientation(self) -> int:
        # Pillow reads all pixels of a PNG to look for EXIF behind them; where there is no such chunk, it need not.
        if self._image.format == "PNG" and not any(name == b"eXIf" for name, _ in self._png_chunks()):
            exif = Image.Image.getexif(self._image)
        else:
            exif = self._image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        return orientation if isinstance(orientation, int) else 1

    def _is_16_bit(self) -> bool:
        if self._page is not None:
            return self._page.bits == 16 and self._page.is_unsigned
        return self._begin.startswith(_PNG) and self._begin[24:25] == b"\x10"

    def _own_white(self) -> int | None:
        """Return the value of white as the kind of file has it; None for integers that have none."""
        if self._image.mode == "F":
            return 1
        if self._page is not None:
            return self._page.white
        return 2**16 - 1 if self._is_16_bit() else 2**8 - 1

    def _deep_pixels(self) -> NDArray[np.uint8]:
        page = self._page
        transparent = self._image.info.get("transparency")
        white = self._own_white() if self._white is None else self._white
        self._image.load()
        values: NDArray[np.generic] = np.asarray(ImageOps.exif_transpose(self._image))
        if values.dtype == np.int32 and page is not None and page.is_unsigned and page.bits == 32:
            values = values.view(np.uint32)  # Pillow has no such pixels of its own
        return deep_bytes(
            values,
            white,
            white_is_zero=page is not None and page.is_negative,
            transparent=transparent if isinstance(transparent, int) else None,
        )

    def _refuse_misread_animation(self) -> None:
        """Refuse a PNG with pictures that are mixed with what is under them and then taken away: Pillow leaves them."""
        controls = [self._part(place, 26) for name, place in self._png_chunks() if name == b"fcTL"]
        if any(control[24] == _PREVIOUS and control[25] == _OVER for control in controls[1:]):
            raise ValueError(
                "its pictures are mixed with those under them and then taken away (blend over, dispose to previous), "
                "which is not read: save it as GIF or WebP"
            )

    def _png_chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield the name of each chunk of a PNG that is there in full, and where its data begin."""
        place, length = 8, os.fstat(self._file.fileno()).st_size
        while place + 12 <= length:
            head = self._part(place, 8)
            data = place + 8
            place = data + int.from_bytes(head[:4], "big") + 4
            if place <= length:
                yield head[4:], data

    def _part(self, start: int, size: int) -> bytes:
        """Return bytes of the file; Pillow goes on where it was."""
        place = self._file.tell()
        self._file.seek(start)
        part = self._file.read(size)
        self._file.seek(place)
        return part


def picture_kind(path: str | Path) -> Literal["picture", "animation"] | None:
    """Return whether a file is a single picture, an animation (several that follow each other), or neither.

    The content decides, not the name. A file that begins like a picture and is broken raises the error of
    `PictureFile`.
    """
    if not _begins_like_picture(require_file(path)):
        return None
    with PictureFile(path) as opened:
        return "animation" if opened.count > 1 else "picture"


def picture_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are pictures by their suffix, or, without one, by how they begin, in order."""
    unnamed = filter(_begins_like_picture, files_without_suffix(folder))
    return in_natural_order([*files_with_suffix(folder, PICTURE_SUFFIXES), *unnamed])


def _begins_like_picture(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(12)
    return begin.startswith(_BEGINNINGS) and (not begin.startswith(b"RIFF") or begin.endswith(b"WEBP"))


@contextmanager
def _typed_errors(path: Path, number: int | None = None) -> Iterator[None]:
    """Let errors of the file system through; all others end in a ValueError of one line that names the file."""
    name = printable(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are limited here, more strictly than where Pillow warns
            yield
    except (PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # a broken file breaks the parsers in a dozen ways
        if isinstance(error, ValueError) and name in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = "" if number is None else f", picture {number}"
        raise ValueError(f"{name}{where} must be a complete picture ({', '.join(_FORMATS)}): {reason}") from error
