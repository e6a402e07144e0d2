"""What the tags of a page of a TIFF tell, and which pages would be read wrongly.

Source: TIFF 6.0 (Aldus, 1992).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_PIXELS = "grey of 1, 8, 12, 16 or 32 bits, or colours of 8 or 16 bits"

_THUMBNAIL_OR_MASK = 1 | 4


class TiffPage(NamedTuple):
    """The tags of a page that matter here."""

    height: int
    width: int
    """Of the pixels as they are stored."""
    orientation: int
    bits: int
    """Of the largest sample of a pixel."""
    is_unsigned: bool
    is_packed: bool
    is_planar: bool
    """Whether each colour is stored by itself."""
    is_negative: bool
    """Whether 0 is white."""
    is_extra: bool
    """Whether it is a small copy or a mask of another page."""
    text: str
    end: int
    """Where the last of its pixels are stored, in bytes from the beginning of the file."""

    @property
    def white(self) -> int | None:
        """The largest value of unsigned integers of 16 bits or less; others have no value that is white by itself.

        ``MaxSampleValue`` is not used: it tells the largest value of one page, so that each would have another white.
        """
        return 2**self.bits - 1 if self.is_unsigned and self.bits <= 16 else None


def tiff_page(tags: Mapping[int, Any]) -> TiffPage:
    """Return what the tags of a page tell; each is a number, a text, or a tuple of numbers."""
    return TiffPage(
        height=int(tags[257]),
        width=int(tags[256]),
        orientation=int(tags.get(274, 1)),
        bits=max(_numbers(tags.get(258, 1))),
        is_unsigned=set(_numbers(tags.get(339, 1))) == {1},
        is_packed=tags.get(259, 1) != 1,
        is_planar=tags.get(284, 1) == 2,
        is_negative=tags.get(262) == 0,
        is_extra=bool(int(tags.get(254, 0)) & _THUMBNAIL_OR_MASK),
        text=str(tags.get(270, "")),
        end=max((start + size for parts in _parts(tags) for start, size in parts), default=0),
    )


def refuse_misread(page: TiffPage, mode: str, big_endian: bool) -> None:
    """Raise a ValueError for pixels that Pillow opens and reads wrongly, as a mode of its own."""
    if mode in ("I", "F") and big_endian and page.is_packed:
        raise ValueError(f"big-endian pixels of {page.bits} bits are not read when packed: save it without compression")
    if page.bits <= 8 and not page.is_unsigned:
        raise ValueError("pixels must be 0 or more; got signed ones of 8 bits")
    if page.bits > 8 and page.is_planar and mode not in ("I", "F") and not mode.startswith("I;16"):
        raise ValueError(f"colours of {page.bits} bits are not read when each is stored by itself: save them together")


def refuse_channels_as_pages(page: TiffPage, mode: str) -> None:
    """Raise a ValueError if the pages are not the times of one picture, but channels or depths of a microscope too.

    Args:
        page: the first of several.
        mode: of its pixels, as Pillow has it.
    """
    found: dict[str, str] = dict(re.findall(r'\b(channels|slices|frames|SizeC|SizeZ|SizeT)="?(\d{1,9})\b', page.text))
    channels = int(found.get("channels") or found.get("SizeC") or 1)
    depths = int(found.get("slices") or found.get("SizeZ") or 1)
    times = int(found.get("frames") or found.get("SizeT") or 1)
    if "SizeC" in found and mode.startswith("RGB"):
        channels = 1  # OME counts the colours of a pixel
    if channels > 1 or (depths > 1 and times > 1):
        raise ValueError(
            f"pages must be the times of a film; got {channels} channels, {depths} depths and {times} times: save "
            "one channel at one depth"
        )


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in value) if isinstance(value, tuple) else (int(value),)


def _parts(tags: Mapping[int, Any]) -> list[list[tuple[int, int]]]:
    """Return start and size of each strip and tile."""
    return [
        list(zip(_numbers(tags[starts]), _numbers(tags[sizes]), strict=False))
        for starts, sizes in ((273, 279), (324, 325))
        if starts in tags and sizes in tags
    ]
