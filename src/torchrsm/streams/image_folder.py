"""The pictures of a folder as one clip, and a stream that plays it."""

from __future__ import annotations

from pathlib import Path

from torchrsm.streams.clips import ClipStream
from torchrsm.streams.framing import Crop
from torchrsm.streams.paths import printable
from torchrsm.streams.pictures import ImageFolderReader
from torchrsm.streams.video_file import Part, store_clips


class ImageFolder(ClipStream):
    """Play the pictures of a folder for ever, in the natural order of their names; see `ImageFolderReader`.

    Args:
        folder: with pictures in it.
        batch_size: places played side by side, 1 or more.
        height: of the frames, pixels; None for as the width asks, or as it is.
        width: of the frames, pixels; None for as the height asks, or as it is.
        crop: ``square`` for the middle, or ``(top, left, height, width)``; cut out first.
        channels: 1 for grey, 3 for colour.
        part: of the pictures, from and to as shares: (0, 0.8) to learn from, (0.8, 1) to test on.
        max_bytes: most bytes of frames that are kept in memory; more of them are kept on disk.
        mirror: whether each passage is shown mirrored, left to right, with probability 1/2.
        seed: of the mirroring, 0 to 2^63 - 1.
        white: which value of a pixel is white, for grey of more than 8 bits; None for what the pictures tell.

    Raises:
        ValueError: an argument is outside its range, or there is one picture only, or what `ImageFolderReader` refuses.
        OSError: the folder is missing, a picture cannot be read, or the disk is full.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        part: Part = (0.0, 1.0),
        max_bytes: int = 2**26,
        mirror: bool = False,
        seed: int = 0,
        white: float | None = None,
    ) -> None:
        reader = ImageFolderReader(folder, height=height, width=width, crop=crop, channels=channels, white=white)
        clips = store_clips([(printable(folder), reader)], part, max_bytes)
        super().__init__(clips, batch_size, mirror=mirror, seed=seed)
