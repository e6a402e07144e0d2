"""Films of all kinds, read into memory as clips, and a stream that plays them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchrsm.streams.array import load_frames
from torchrsm.streams.clips import ClipStream
from torchrsm.streams.films import VideoReader
from torchrsm.streams.framing import Crop, Framing
from torchrsm.streams.paths import files_with_suffix, require_file, require_local
from torchrsm.streams.pictures import PICTURE_SUFFIXES, ImageFolderReader
from torchrsm.streams.stream import require_integer

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".flv"),
    *(".wmv", ".asf", ".ogv", ".y4m", ".mxf", ".vob", ".gif"),
)
"""What the name of a film in a folder of films ends in; a film that is named itself may be called anything."""
_ARRAY_SUFFIXES = (".npy", ".npz")
_SMALLER = "use fewer or shorter films, a smaller height or width, channels = 1 or a lower frames_per_second"

Part = tuple[float, float]


class VideoFile(ClipStream):
    """Play films, decoded into memory, for ever; see `ClipStream` for the order and `load_clips` for what is read.

    Args:
        path: what `load_clips` accepts, or several of it.
        batch_size: places played side by side, 1 or more.
        height: of the frames, pixels; None for as the width asks, or as it is.
        width: of the frames, pixels; None for as the height asks, or as it is.
        crop: ``square`` for the middle, or ``(top, left, height, width)``; cut out first.
        channels: 1 for grey, 3 for colour.
        frames_per_second: at which the films are shown; None for each of their frames.
        part: of each clip, from and to as shares of its frames: (0, 0.8) to learn from, (0.8, 1) to test on.
        max_bytes: most bytes of decoded frames.
        mirror: whether each passage is shown mirrored, left to right, with probability 1/2.
        seed: of the mirroring, 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is outside its range, or what is read is no film, too large, or of unequal shapes.
        OSError: a file is missing or cannot be read.
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
        part: Part = (0.0, 1.0),
        max_bytes: int = 2**30,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        clips = load_clips(
            path,
            height=height,
            width=width,
            crop=crop,
            channels=channels,
            frames_per_second=frames_per_second,
            part=part,
            max_bytes=max_bytes,
        )
        super().__init__(clips, batch_size, mirror=mirror, seed=seed)


def load_clips(
    path: str | Path | Sequence[str | Path],
    *,
    height: int | None = None,
    width: int | None = None,
    crop: Crop = None,
    channels: int = 1,
    frames_per_second: float | None = None,
    part: Part = (0.0, 1.0),
    max_bytes: int = 2**30,
) -> list[NDArray[np.uint8]]:
    """Return the clips of a video file, of a folder of them, of a folder of pictures, or of a file of frames.

    A folder with pictures in it is one clip; one with films is a clip each, in the natural order of their names (.gif
    counts as a film, unless there are other pictures). A ``.npy`` or ``.npz`` is what `load_frames` accepts, each
    sequence a clip, in 256 steps. Anything else is a video file, whatever its name.

    Args:
        path: the file or folder, or several, one after the other.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: as `VideoReader` explains it; pictures and arrays have no rate, and refuse it.
        part: of each clip, from and to as shares of its frames, ``0 <= from < to <= 1``. What ends at a share and what
            begins there go together without a gap or an overlap.
        max_bytes: most bytes of decoded frames, before a part is taken. Told by the header, nothing is decoded.

    Returns:
        The clips, ``[time, channels, height, width]`` each, of one shape but for the time.

    Raises:
        ValueError: an argument is outside its range; or what is read is no film, too large, of unequal shapes, or so
            short that the part has no frame.
        OSError: a file is missing or cannot be read.
    """
    framing = Framing(height, width, crop, channels)
    max_bytes = require_integer("max_bytes", max_bytes, 1)
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise ValueError("path must be a path or several, received none")
    readers = [reader for one in paths for reader in _readers(one, framing, frames_per_second, max_bytes)]
    return collect_clips(readers, part, max_bytes)


def open_clips(
    path: str | Path,
    *,
    height: int | None = None,
    width: int | None = None,
    crop: Crop = None,
    channels: int = 1,
    frames_per_second: float | None = None,
) -> list[tuple[str, Reader]]:
    """Return a reader, with its name, for each clip; see `load_clips` for what is read."""
    return _readers(path, Framing(height, width, crop, channels), frames_per_second, 2**30)


def collect_clips(readers: Sequence[tuple[str, Reader]], part: Part, max_bytes: int) -> list[NDArray[np.uint8]]:
    """Return a part of what each of some readers, given with their names, has to read; see `load_clips`."""
    low, high = _require_part(part)
    max_bytes = require_integer("max_bytes", max_bytes, 1)
    _check_shapes(readers)
    names = [name for name, _ in readers]
    expected = sum((reader.frame_count or 0) * int(np.prod(reader.frame_shape)) for _, reader in readers)
    if expected > max_bytes:
        raise ValueError(_too_large(names, expected, max_bytes))
    clips = []
    left = max_bytes
    for name, reader in readers:
        clip = _collect(reader, left)
        if clip is None:
            raise ValueError(_too_large(names, None, max_bytes))
        left -= clip.size
        first, last = round(low * len(clip)), round(high * len(clip))
        if first == last:
            raise ValueError(f"part must leave a frame of each clip, received {low:g}..{high:g} of {len(clip)}: {name}")
        clips.append(clip if last - first == len(clip) else clip[first:last].copy())
    return clips


class _ArrayReader:
    """The frames of one sequence of an array, framed."""

    def __init__(self, name: str, pictures: NDArray[np.uint8], framing: Framing) -> None:
        self._pictures, self._framing = pictures, framing
        try:
            self.frame_shape = framing.shape(*pictures.shape[1:3])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self.frame_count = len(pictures)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self._framing.frame(picture) for picture in self._pictures)


Reader = VideoReader | ImageFolderReader | _ArrayReader


def _readers(
    path: str | Path, framing: Framing, frames_per_second: float | None, max_bytes: int
) -> list[tuple[str, Reader]]:
    """Decide what a path is, and return a reader, with its name, for each clip of it."""
    path = require_local(path)
    options = {"height": framing.height, "width": framing.width, "crop": framing.crop, "channels": framing.channels}
    if path.suffix.lower() in _ARRAY_SUFFIXES and not path.is_dir():
        _refuse_rate(path, "an array", frames_per_second)
        sequences = _load_array(require_file(path), max_bytes)
        names = [f"{path}, sequence {number}" for number in range(len(sequences))]
        return [(n, _ArrayReader(n, pictures, framing)) for n, pictures in zip(names, sequences, strict=True)]
    if not path.is_dir():
        return [(str(path), VideoReader(path, frames_per_second=frames_per_second, **options))]  # type: ignore[arg-type]
    pictures = files_with_suffix(path, set(PICTURE_SUFFIXES) - {".gif"})
    films = files_with_suffix(path, VIDEO_SUFFIXES if not pictures else set(VIDEO_SUFFIXES) - {".gif"})
    if pictures and films:
        raise ValueError(
            f"{path} must be a folder of pictures or of films, received both: {pictures[0].name}, {films[0].name}"
        )
    if pictures:
        _refuse_rate(path, "a folder of pictures", frames_per_second)
        return [(str(path), ImageFolderReader(path, **options))]  # type: ignore[arg-type]
    if not films:
        raise ValueError(f"{path} must be a folder with films or pictures in it, received one with neither")
    return [(str(film), VideoReader(film, frames_per_second=frames_per_second, **options)) for film in films]  # type: ignore[arg-type]


def _refuse_rate(path: Path, what: str, frames_per_second: float | None) -> None:
    if frames_per_second is not None:
        raise ValueError(f"frames_per_second must be None for {what}, which has no rate, received it for {path}")


def _load_array(path: Path, max_bytes: int) -> NDArray[np.uint8]:
    """Return pictures ``[time, height, width]`` or ``[time, height, width, 3]`` for each sequence of a file."""
    unpacked = path.stat().st_size
    if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > 8 * max_bytes + 2**20:  # eight bytes a pixel at most, and the header
        raise ValueError(_too_large([str(path)], unpacked // 8, max_bytes))
    frames = load_frames(path)
    channels = frames.shape[2]
    if channels not in (1, 3):
        raise ValueError(f"{path} must have frames of 1 or 3 channels, received {channels}")
    pictures: NDArray[np.uint8] = (frames * 255).round_().byte().permute(0, 1, 3, 4, 2).numpy()
    return pictures[..., 0] if channels == 1 else pictures


def _check_shapes(readers: Sequence[tuple[str, Reader]]) -> None:
    (first_name, first), *_ = readers
    for name, reader in readers:
        if reader.frame_shape != first.frame_shape:
            raise ValueError(
                f"clips must have frames of one shape, received {list(first.frame_shape)} of {first_name} and "
                f"{list(reader.frame_shape)} of {name}; set height and width, or crop"
            )


def _collect(reader: Reader, max_bytes: int) -> NDArray[np.uint8] | None:
    """Return all frames of a reader, or None if they are more than ``max_bytes``."""
    content = bytearray()  # grows in place
    for frame in reader:
        if len(content) + frame.size > max_bytes:
            return None
        content += frame.data
    return np.frombuffer(content, np.uint8).reshape(-1, *reader.frame_shape)


def _too_large(names: Sequence[str], expected: int | None, max_bytes: int) -> str:
    received = "more" if expected is None else f"about {expected}"
    more = "" if len(names) == 1 else f" and {len(names) - 1} more"
    return (
        f"{names[0]}{more} must decode to at most {max_bytes} bytes of frames (max_bytes), received {received}; "
        f"{_SMALLER}"
    )


def _require_part(part: Part) -> Part:
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ValueError(f"part must be (from, to), received {part!r}")
    for share in part:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"part must be shares in 0..1, received {part!r}")
    if not part[0] < part[1]:
        raise ValueError(f"part must end after it begins, received {part!r}")
    return (part[0], part[1])
