"""Films of all kinds as clips: opened, read into memory, or played for ever as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from torchrsm.streams.array import ArrayReader, open_frames
from torchrsm.streams.array_file import is_array_path
from torchrsm.streams.clips import ClipStream
from torchrsm.streams.film_store import Clip, FrameStore
from torchrsm.streams.films import NumberedFrame, VideoReader
from torchrsm.streams.framing import Crop, Framing
from torchrsm.streams.paths import files_with_suffix, in_natural_order, printable, require_local
from torchrsm.streams.picture_file import picture_files, picture_kind
from torchrsm.streams.pictures import AnimationReader, ImageFolderReader
from torchrsm.streams.stream import require_integer

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".flv"),
    *(".wmv", ".asf", ".ogv", ".y4m", ".mxf", ".vob", ".gif"),
)
"""What the name of a film in a folder of films ends in; a film that is named itself may be called anything."""
_SMALLER = "use fewer or shorter films, a smaller height or width, channels = 1 or a lower frames_per_second"

Part = tuple[float, float]
PartOf = Callable[[int], tuple[int, int]]


class Reader(Protocol):
    """The frames of a film, of a folder of pictures, or of a sequence of an array; nothing is read before iteration."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        ...

    @property
    def frame_count(self) -> int | None:
        """How many frames to expect; None if unknown."""
        ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


class VideoFile(ClipStream):
    """Play films for ever; see `ClipStream` for the order and `open_clips` for what is read.

    The films are decoded once, when the stream is made. Short ones stay in memory. The frames of long ones are kept in
    a temporary file and read one by one (`torchrsm.streams.film_store`).

    Args:
        path: what `open_clips` accepts, or several of it.
        batch_size: places played side by side, 1 or more.
        height: of the frames, pixels; None for as the width asks, or as it is.
        width: of the frames, pixels; None for as the height asks, or as it is.
        crop: ``square`` for the middle, or ``(top, left, height, width)``; cut out first.
        channels: 1 for grey, 3 for colour.
        frames_per_second: at which the films are shown; None for each of their frames.
        layout: of arrays, as `open_clips` explains it.
        white: of pictures, as `open_clips` explains it.
        part: of each clip, from and to as shares of its frames: (0, 0.8) to learn from, (0.8, 1) to test on.
        max_bytes: most bytes of frames that are kept in memory; more of them are kept on disk.
        mirror: whether each passage is shown mirrored, left to right, with probability 1/2.
        seed: of the mirroring, 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is outside its range; or what is read is no film, of unequal shapes, or so short that no
            frame follows another.
        OSError: a file is missing or cannot be read, or the disk is full.

    Warns:
        DamagedFilmWarning: frames of a film are missing. What is before a gap and what is after it are clips of their
            own.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        frames_per_second: float | None = None,
        layout: str | None = None,
        white: float | None = None,
        part: Part = (0.0, 1.0),
        max_bytes: int = 2**26,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        readers = open_clips(
            path,
            height=height,
            width=width,
            crop=crop,
            channels=channels,
            frames_per_second=frames_per_second,
            layout=layout,
            white=white,
        )
        super().__init__(store_clips(readers, part, max_bytes), batch_size, mirror=mirror, seed=seed)


def open_clips(
    path: str | Path | Sequence[str | Path],
    *,
    height: int | None = None,
    width: int | None = None,
    crop: Crop = None,
    channels: int = 1,
    frames_per_second: float | None = None,
    layout: str | None = None,
    white: float | None = None,
) -> list[tuple[str, Reader]]:
    """Open the clips of a video file, of a folder of them, of a folder of pictures, or of a file of frames.

    A folder of pictures is one clip; one of films is a clip each, in the natural order of their names. An animated GIF,
    PNG or WebP and a TIFF of several pages are films. A ``.npy`` or ``.npz`` is what `load_frames` accepts, each
    sequence a clip, in 256 steps. Anything else is a video file, whatever its name.

    Args:
        path: the file or folder, or several, one after the other.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: as `VideoReader` explains it; pictures and arrays have no rate, and refuse it.
        layout: of arrays, as `load_frames` explains it; None where the shape tells. Films and pictures refuse it.
        white: which value of a pixel is white, for pictures of more than 8 bits; None for what they tell. Films and
            arrays refuse it.

    Returns:
        For each clip its name, ready to be printed, and a reader, which reads anew from the file each time it is
        iterated over, in constant memory; see `numbered_frames` for the numbers and times of its frames.

    Raises:
        ValueError: an argument is outside its range, or what is read is no film.
        OSError: a file is missing or cannot be read.
    """
    options = _Options(Framing(height, width, crop, channels), frames_per_second, layout, white)
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise ValueError("path must be a path or several; got none")
    return [clip for one in paths for clip in _open_one(one, options)]


def numbered_frames(reader: Reader) -> Iterator[NumberedFrame]:
    """Yield the frames of a reader with their numbers and, of a film, their times; see `VideoReader.numbered`."""
    if isinstance(reader, VideoReader):
        yield from reader.numbered()
    else:
        for number, frame in enumerate(reader):
            yield NumberedFrame(number, None, frame, False)


def load_clips(
    path: str | Path | Sequence[str | Path],
    *,
    height: int | None = None,
    width: int | None = None,
    crop: Crop = None,
    channels: int = 1,
    frames_per_second: float | None = None,
    layout: str | None = None,
    white: float | None = None,
    part: Part = (0.0, 1.0),
    max_bytes: int = 2**30,
) -> list[NDArray[np.uint8]]:
    """Return the clips of what `open_clips` accepts, in memory.

    Args:
        path: as `open_clips` explains it.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: as `VideoReader` explains it.
        layout: of arrays, as `open_clips` explains it.
        white: of pictures, as `open_clips` explains it.
        part: of each clip, from and to as shares of its frames, ``0 <= from < to <= 1``. What ends at a share and what
            begins there go together without a gap or an overlap.
        max_bytes: most bytes of frames. If the header tells that they are more, nothing is decoded.

    Returns:
        The clips, ``[time, channels, height, width]`` each, of one shape but for the time. A film with missing frames
        gives several: what is before a gap and what is after it.

    Raises:
        ValueError: an argument is outside its range; or what is read is no film, too large, of unequal shapes, or so
            short that the part has no frame.
        OSError: a file is missing or cannot be read.

    Warns:
        DamagedFilmWarning: frames of a film are missing.
    """
    part_of, setting = _by_shares(part)
    max_bytes = require_integer("max_bytes", max_bytes, 1)
    readers = open_clips(
        path,
        height=height,
        width=width,
        crop=crop,
        channels=channels,
        frames_per_second=frames_per_second,
        layout=layout,
        white=white,
    )
    return [stretch for film in load_parts(readers, part_of, max_bytes, setting) for stretch in film]


def store_clips(readers: Sequence[tuple[str, Reader]], part: Part, max_bytes: int) -> list[Clip]:
    """Return a part of what each of some readers, given with their names, has to read, in memory or on disk.

    Args:
        readers: what `open_clips` returns.
        part: of each clip, as `load_clips` explains it.
        max_bytes: most bytes of frames that are kept in memory; more of them are kept on disk.

    Raises:
        ValueError: an argument is outside its range, or the frames are of unequal shapes.
        OSError: the disk is full.
    """
    part_of, setting = _by_shares(part)
    return store_parts(readers, part_of, max_bytes, setting)


def store_parts(readers: Sequence[tuple[str, Reader]], part: PartOf, max_bytes: int, setting: str) -> list[Clip]:
    """Return a part of what each of some readers has to read, in memory or on disk, from gap to gap.

    Args:
        readers: what `open_clips` returns.
        part: from the number of frames of a clip to the first and to the end of those that are wanted.
        max_bytes: most bytes of frames that are kept in memory.
        setting: what decides on the part, for messages.

    Raises:
        ValueError: a part is empty, or the frames are of unequal shapes.
        OSError: the disk is full.
    """
    max_bytes = require_integer("max_bytes", max_bytes, 1)
    names, shape = _check_shapes(readers)
    store = FrameStore(shape, max_bytes, names)
    store.expect(_expected_bytes(readers))
    wanted: list[tuple[int, int]] = []
    for name, reader in readers:
        begin, gaps = len(store), []
        for numbered in numbered_frames(reader):
            if numbered.after_gap:
                gaps.append(len(store) - begin)
            store.append(numbered.frame)
        first, last = _require_frames(part, len(store) - begin, setting, name)
        wanted += [(begin + a, begin + b) for a, b in _from_gap_to_gap(first, last, gaps)]
    clip = store.finish()
    return [clip[first:last] for first, last in wanted]


def load_parts(
    readers: Sequence[tuple[str, Reader]], part: PartOf, max_bytes: int, setting: str
) -> list[list[NDArray[np.uint8]]]:
    """Return a part of what each of some readers has to read, in memory; only that part is ever held.

    Args:
        readers: what `open_clips` returns.
        part: from the number of frames of a clip to the first and to the end of those that are wanted; the first must
            not go down when the number goes up.
        max_bytes: most bytes of frames. If the headers tell that they are more, nothing is decoded.
        setting: what decides on the part, for messages.

    Returns:
        For each reader its stretches from gap to gap, ``[time, channels, height, width]`` each.

    Raises:
        ValueError: a part is empty or too large, or the frames are of unequal shapes.
    """
    max_bytes = require_integer("max_bytes", max_bytes, 1)
    names, shape = _check_shapes(readers)
    size = int(np.prod(shape))
    expected = sum((reader.frame_count or 0) - part(reader.frame_count or 0)[0] for _, reader in readers) * size
    if expected > max_bytes:
        raise ValueError(_too_large(names, expected, max_bytes))
    clips = []
    left = max_bytes
    for name, reader in readers:
        count, dropped, gaps, content = 0, 0, [], bytearray()  # which grows, and loses its beginning, in place
        for numbered in numbered_frames(reader):
            if numbered.after_gap:
                gaps.append(count)
            count += 1
            content += numbered.frame.data
            first = part(count)[0]
            del content[: (first - dropped) * size]
            dropped = first
            if len(content) > left:
                raise ValueError(_too_large(names, None, max_bytes))
        left -= len(content)
        first, last = _require_frames(part, count, setting, name)
        frames = np.frombuffer(content, np.uint8).reshape(-1, *shape)
        clips.append([frames[a - first : b - first] for a, b in _from_gap_to_gap(first, last, gaps)])
    return clips


@dataclass(frozen=True)
class _Options:
    """How frames are read, and what only some kinds of files can be asked for."""

    framing: Framing
    frames_per_second: float | None
    layout: str | None
    white: float | None

    @property
    def size(self) -> dict[str, Any]:
        framing = self.framing
        return {"height": framing.height, "width": framing.width, "crop": framing.crop, "channels": framing.channels}

    def refuse(self, path: Path, what: str, *names: str) -> None:
        """Refuse settings that would have no effect."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{name} must be None for {what}; got {value!r} for {printable(path)}")


def _open_one(path: str | Path, options: _Options) -> list[tuple[str, Reader]]:
    """Decide what a path is, and return a reader, with its name, for each clip of it."""
    path = require_local(path)
    if path.is_dir():
        return _open_folder(path, options)
    if is_array_path(path):
        options.refuse(path, "an array, which has no rate and no bits", "frames_per_second", "white")
        frames = open_frames(path, options.layout)
        return [
            (f"{printable(path)}, sequence {number}", ArrayReader(frames, number, options.framing))
            for number in range(frames.shape[0])
        ]
    return [_open_film(path, options)]


def _open_folder(path: Path, options: _Options) -> list[tuple[str, Reader]]:
    pictures = picture_files(path)
    films = files_with_suffix(path, set(VIDEO_SUFFIXES) - {".gif"})
    if pictures and all(picture_kind(picture) == "animation" for picture in pictures):
        pictures, films = [], in_natural_order([*pictures, *films])
    if pictures and films:
        raise ValueError(
            f"{printable(path)} must be a folder of pictures or of films; got both: "
            f"{printable(pictures[0].name)}, {printable(films[0].name)}"
        )
    if pictures:
        options.refuse(path, "a folder of pictures, which has no rate", "frames_per_second")
        options.refuse(path, "a folder of pictures", "layout")
        return [(printable(path), ImageFolderReader(path, white=options.white, **options.size))]
    if not films:
        raise ValueError(f"{printable(path)} must be a folder with films or pictures in it; got one with neither")
    return [_open_film(film, options) for film in films]


def _open_film(path: Path, options: _Options) -> tuple[str, Reader]:
    options.refuse(path, "a film", "layout")
    reader: Reader
    if picture_kind(path) is not None:  # an animation, or a single picture, which this refuses
        reader = AnimationReader(path, frames_per_second=options.frames_per_second, white=options.white, **options.size)
    else:
        options.refuse(path, "a film", "white")
        reader = VideoReader(path, frames_per_second=options.frames_per_second, **options.size)
    return printable(path), reader


def _check_shapes(readers: Sequence[tuple[str, Reader]]) -> tuple[list[str], tuple[int, int, int]]:
    """Return the names of some readers and the shape that their frames have in common."""
    (first_name, first), *_ = readers
    for name, reader in readers:
        if reader.frame_shape != first.frame_shape:
            raise ValueError(
                f"clips must have frames of one shape; got {list(first.frame_shape)} of {first_name} and "
                f"{list(reader.frame_shape)} of {name}; set height and width, or crop"
            )
    return [name for name, _ in readers], first.frame_shape


def _expected_bytes(readers: Sequence[tuple[str, Reader]]) -> int:
    return sum((reader.frame_count or 0) * int(np.prod(reader.frame_shape)) for _, reader in readers)


def _require_frames(part: PartOf, count: int, setting: str, name: str) -> tuple[int, int]:
    first, last = part(count)
    if first >= last:
        raise ValueError(f"{setting} must leave a frame of each clip; got a clip of {count} frames: {name}")
    return first, last


def _from_gap_to_gap(first: int, last: int, gaps: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches of a part that are without a gap; ``gaps`` are the frames that come after one."""
    borders = [first, *(gap for gap in gaps if first < gap < last), last]
    return list(pairwise(borders))


def _too_large(names: Sequence[str], expected: int | None, max_bytes: int) -> str:
    received = "more" if expected is None else f"about {expected}"
    more = "" if len(names) == 1 else f" and {len(names) - 1} more"
    return (
        f"{names[0]}{more} must decode to at most {max_bytes} bytes of frames (max_bytes); got {received}; {_SMALLER}"
    )


def _by_shares(part: Part) -> tuple[PartOf, str]:
    """Return what a part given as shares is of a clip of any length, and its name for messages."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ValueError(f"part must be (from, to); got {part!r}")
    for share in part:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"part must be shares in 0..1; got {part!r}")
    low, high = part
    if not low < high:
        raise ValueError(f"part must end after it begins; got {part!r}")
    return lambda count: (round(low * count), round(high * count)), f"part {low:g}..{high:g}"
