"""Decode video files and folders of pictures into frames, one by one, in constant memory, whatever the files hold.

Files come from anywhere, so nothing in them is believed. Only containers that keep all of their content in one file are
opened, from a handle that knows no other file and no network; sizes are limited before memory is taken for them; and
whatever is wrong ends in a `ValueError` that names the file, or in the error of the file system.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from torchrsm.streams.stream import require_integer

Crop = Literal["square"] | tuple[int, int, int, int] | None
"""The middle square, or ``(top, left, height, width)`` in pixels of the upright picture, or all of it."""

MAX_SIDE = 8192
"""Largest height or width of a picture that is decoded, pixels."""
MAX_RATE = 1000
"""Most frames per second."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# Demuxers that read one file and nothing else: no playlist (hls, dash, concat, sdp), no single picture.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,h264,hevc,m4v,obu,ivf,flv,asf,ogg,nut,"
    "yuv4mpegpipe,mjpeg,dv,mxf,rm,wtv"
)
_KINDS = "MP4, WebM, Matroska, AVI, MPEG, GIF, ..."
_PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_MAX_DAMAGED = 100  # packets that cannot be decoded, before the rest of a film is given up
_LONGEST_STILL = 60  # seconds between two frames; a longer gap, or a step back, is an error of the film's clock
_SEEK_FROM = 10  # seconds; before that, decoding from the beginning is as fast
_FALLBACK_PERIOD = Fraction(1, 25)


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
        if self.channels not in (1, 3) or isinstance(self.channels, bool):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), received {self.channels!r}")
        if self.crop is None or (isinstance(self.crop, str) and self.crop == "square"):
            return
        if not isinstance(self.crop, tuple | list) or len(self.crop) != 4:
            raise ValueError(f"crop must be None, 'square' or (top, left, height, width), received {self.crop!r}")
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
            raise ValueError(f"frames must be at most {MAX_SIDE} pixels a side, received {new_height} x {new_width}")
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
                f"crop must be inside of the picture, {height} x {width} (height x width), received (top, left, "
                f"height, width) = {tuple(self.crop)}"
            )
        return (top, left, cut_height, cut_width)


class VideoReader:
    """The frames of a video file; each iteration opens the file, decodes it in constant memory, and closes it again.

    Making one reads the header and decodes the first frame. Times are those of the file, counted from its first frame.
    Frames of varying distance, missing ones and a recording that is to be shown turned are what a player makes of them.
    Damaged places are left out, and what follows too beyond 100 of them. If the size of the picture changes within the
    film, all frames become as large as the first.

    Args:
        path: of a file (MP4, WebM, Matroska, AVI, MPEG, animated GIF, ...) that holds all of the film; no address.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: above 0, at most 1000; frame k is what a player shows at ``start + k / frames_per_second``,
            so frames are dropped or repeated. None for each frame of the film once.
        start: frames before this time are left out, seconds, 0 or more.
        end: frames from this time on are left out, seconds, above ``start``; None for the end of the film.
        max_pixels: most pixels to decode, frames x height x width as stored, repeated frames included; None for no
            limit. It is held against the header first, and enforced while decoding.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: a folder is there.
        PermissionError: the file must not be read.
        ValueError: an argument is outside its range; or the file is no video, has no frame that can be decoded, or is
            too large. While iterating: it became too large; or no frame is between ``start`` and ``end``.
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
        start: float = 0.0,
        end: float | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._framing = Framing(height, width, crop, channels)
        self._rate = None if frames_per_second is None else require_rate(frames_per_second)
        self._start, self._end = _require_times(start, end)
        self._max_pixels = None if max_pixels is None else require_integer("max_pixels", max_pixels, 1)
        self._path = require_file(path)
        with self._opened() as (container, stream):
            self._tick = _fraction(stream.time_base) or Fraction(1, 1000)
            rate = _fraction(stream.average_rate) or _fraction(stream.guessed_rate)
            self._film_rate = rate if rate is not None and rate <= MAX_RATE else None
            self._film_seconds, self._film_frames = _length(container, stream, self._tick, self._film_rate)
            self._check_header(stream.codec_context.height, stream.codec_context.width)
            first = next(self._decoded(container, stream, _Budget(self._path, self._max_pixels)), None)
            if first is None:
                raise ValueError(f"{self._path} must be a video, received one without a frame that can be decoded")
            self._origin = Fraction(0) if first.pts is None else first.pts * self._tick
            picture = _upright(first, VideoReformatter())
        self._stored_size = (first.height, first.width)
        try:
            self._shape = self._framing.shape(*picture.shape[:2])
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._shape

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the pictures in the file, pixels, before any turn, crop or change of size."""
        return self._stored_size

    @property
    def frames_per_second(self) -> float | None:
        """Of the frames given; on average, as the header has it, where they are those of the film. None if unknown."""
        rate = self._rate or self._film_rate
        return None if rate is None else float(rate)

    @property
    def seconds(self) -> float | None:
        """Time between ``start`` and ``end`` or the end of the film, as the header has it; None if unknown."""
        if self._film_seconds is None:
            return None
        end = self._film_seconds if self._end is None else min(self._end, self._film_seconds)
        return max(0.0, float(end - self._start))

    @property
    def frame_count(self) -> int | None:
        """How many frames to expect, by the header, which may be wrong; None if it does not tell."""
        whole = self._start == 0 and (self._end is None or (self._film_seconds or math.inf) <= self._end)
        if self._rate is None and whole and self._film_frames is not None:
            return self._film_frames
        rate = self._rate or self._film_rate
        if rate is None or self.seconds is None:
            return None
        return math.ceil(round(self.seconds * float(rate), 6))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        reformatter = VideoReformatter()
        budget = _Budget(self._path, self._max_pixels)
        shown: av.VideoFrame | None = None
        for frame in self._selected(budget):
            if frame is shown:
                budget.spend(frame.height, frame.width)
            else:
                try:
                    result = self._framing.frame(_upright(frame, reformatter), self._shape)
                except ValueError as error:  # the picture became smaller than the crop
                    raise ValueError(f"{self._path}: {error}") from None
                shown = frame
            yield result.copy()
        if shown is None:
            end = "the end" if self._end is None else f"{float(self._end):g}"
            raise ValueError(f"{self._path} has no frame from second {float(self._start):g} to {end}")

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, av.VideoStream]]:
        with self._path.open("rb") as file:
            container = _open_container(self._path, file)
            with container:
                yield container, _video_stream(self._path, container)

    def _check_header(self, height: int, width: int) -> None:
        """Refuse a film that is too large by its header, before a frame of it is decoded."""
        budget = _Budget(self._path, self._max_pixels)
        budget.check_sides(height, width)
        expected = self._film_frames
        if expected is None:
            return
        if self._film_rate is not None:
            if self._end is not None:
                expected = min(expected, math.ceil(self._end * self._film_rate))
            if self._start >= _SEEK_FROM:
                expected -= math.floor(self._start * self._film_rate)
        given = self.frame_count if self._rate is not None else None
        budget.spend(height, width, max(1, expected, given or 0))

    def _decoded(self, container: InputContainer, stream: av.VideoStream, budget: _Budget) -> Iterator[av.VideoFrame]:
        """Yield the frames from where the container stands, without the damaged ones."""
        damaged = 0
        packets = container.demux(stream)
        while damaged < _MAX_DAMAGED:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except (av.error.FFmpegError, OSError) as error:
                damaged += 1
                if isinstance(error, EOFError):
                    return
                continue
            for frame in frames:
                if isinstance(frame, av.VideoFrame) and not frame.is_corrupt:
                    budget.spend(frame.height, frame.width)
                    yield frame

    def _timed(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Yield frames with their times, seconds from the first frame of the film, which never go back."""
        period = self._period
        previous: Fraction | None = None
        origin = self._origin
        for frame in frames:
            time = None if frame.pts is None else frame.pts * self._tick - origin
            if previous is None:
                time = time or Fraction(0)
            elif time is None:
                time = previous + period
            elif not previous - 1 <= time <= previous + _LONGEST_STILL:
                origin += time - (previous + period)
                time = previous + period
            previous = time if previous is None else max(time, previous)
            yield previous, frame

    def _from_start(self, budget: _Budget) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Yield the frames with their times, from the beginning, or from a key frame not after ``start``."""
        if self._start >= _SEEK_FROM:
            with self._opened() as (container, stream):
                try:
                    container.seek(int((self._origin + self._start) / self._tick), stream=stream)
                except (av.error.FFmpegError, OSError, OverflowError):
                    pass
                else:
                    frames = self._timed(self._decoded(container, stream, budget))
                    first = next(frames, None)
                    if first is not None and 0 <= first[0] <= self._start:
                        yield first
                        yield from frames
                        return
        with self._opened() as (container, stream):
            yield from self._timed(self._decoded(container, stream, budget))

    def _selected(self, budget: _Budget) -> Iterator[av.VideoFrame]:
        """Yield the frames from ``start`` to ``end`` at the rate that was asked for; a repeated one is the same object.

        A container that counts milliseconds rounds the times of its frames: one tick early or late is on time.
        """
        late = min(self._tick, self._period / 4)
        if self._rate is None:
            for time, frame in self._from_start(budget):
                if self._end is not None and time + late >= self._end:
                    return
                if time + late >= self._start:
                    yield frame
            return
        slot, step = self._start + late, 1 / self._rate
        end = math.inf if self._end is None else self._end + late
        held: av.VideoFrame | None = None
        until = Fraction(0)
        for time, frame in self._from_start(budget):
            while held is not None and slot < time and slot < end:
                yield held
                slot += step
            if slot >= end:
                return
            lasts = (frame.duration or 0) * self._tick
            held, until = frame, time + (lasts if 0 < lasts <= _LONGEST_STILL else self._period)
        while held is not None and slot < until + late and slot < end:
            yield held
            slot += step

    @property
    def _period(self) -> Fraction:
        return _FALLBACK_PERIOD if self._film_rate is None else 1 / self._film_rate


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
        budget = _Budget(Path(folder), None if max_pixels is None else require_integer("max_pixels", max_pixels, 1))
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


def require_rate(frames_per_second: float) -> Fraction:
    """Return a rate, exactly, or raise a ValueError if it is not a number above 0 and at most 1000."""
    number = isinstance(frames_per_second, int | float | Fraction) and not isinstance(frames_per_second, bool)
    if not number or not 0.001 <= frames_per_second <= MAX_RATE:
        raise ValueError(f"frames_per_second must be a number in 0.001..{MAX_RATE}, received {frames_per_second!r}")
    return Fraction(frames_per_second).limit_denominator(100_000)


def require_local(path: str | Path) -> Path:
    """Return a path, or raise a ValueError if it is the address of something on a network."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)):
        raise ValueError(f"the path of a file on this computer is needed, received the address {str(path)!r}")
    if "\0" in str(path):
        raise ValueError(f"a path must not hold a zero byte, received {str(path)!r}")
    return Path(path)


def require_file(path: str | Path) -> Path:
    """Return the path of an existing file, or raise a FileNotFoundError, an IsADirectoryError or a ValueError."""
    path = require_local(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file, received a folder")
    if not path.exists():
        raise FileNotFoundError(f"{path} must be an existing file, received nothing at that path")
    if not path.is_file():
        raise ValueError(f"{path} must be a file, received a device or a pipe")
    return path


def require_folder(path: str | Path) -> Path:
    """Return the path of an existing folder, or raise a FileNotFoundError or a NotADirectoryError."""
    path = require_local(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} must be an existing folder, received nothing at that path")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} must be a folder, received a file")
    return path


def files_with_suffix(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of a folder with one of the suffixes, not hidden, in the natural order of their names."""
    chosen = tuple(suffixes)
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in chosen and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers in names by their value."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", name.casefold()))]


class _Budget:
    """Counts decoded pixels, and refuses pictures and films that are too large."""

    def __init__(self, path: Path, max_pixels: int | None) -> None:
        self._path, self._max_pixels, self._spent = path, max_pixels, 0

    def check_sides(self, height: int, width: int) -> None:
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            # FFmpeg tells no size at all of a picture above the limit that it was given.
            size = f"{height} x {width} (height x width)" if min(height, width) > 0 else "none or larger ones"
            raise ValueError(f"{self._path} must have pictures of 1 to {MAX_SIDE} pixels a side, received {size}")

    def spend(self, height: int, width: int, pictures: int = 1) -> None:
        self.check_sides(height, width)
        self._spent += pictures * height * width
        if self._max_pixels is not None and self._spent > self._max_pixels:
            what = f"{pictures} pictures" if pictures > 1 else "pictures"
            raise ValueError(
                f"{self._path} must have at most {self._max_pixels} pixels in all (max_pixels), received more: {what} "
                f"of {height} x {width} (height x width)"
            )


class _Bytes:
    """The bytes of a file without its name, so that nothing beside it can be found."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _open_container(path: Path, file: BinaryIO) -> InputContainer:
    # Before version 19, metadata that is no UTF-8 was an error unless this was set; then the setting went.
    lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    options = {
        "format_whitelist": _CONTAINERS,
        "protocol_whitelist": "none",
        "max_pixels": str(MAX_SIDE * MAX_SIDE),  # of one picture, which may be decoded to find out its size
    }
    try:
        container: InputContainer = av.open(_Bytes(file), options=options, io_open=_refuse, **lenient)
    except Exception as error:  # a broken file breaks the parsers in a dozen ways
        file.seek(0)
        head = file.read(12)
        received = f"one that begins with {head!r}" if head else "an empty file"
        raise ValueError(f"{path} must be a complete video file ({_KINDS}), received {received}") from error
    return container


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a video must not open another file, asked for {url!r}")


def _video_stream(path: Path, container: InputContainer) -> av.VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
        raise ValueError(f"{path} must have a video in it, received {' and '.join(kinds)} only")
    stream = streams[0]
    if stream.codec_context is None:  # where there is no decoder, whatever its type says
        raise ValueError(f"{path} must be of a codec that FFmpeg can decode, received an unknown one")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_SIDE * MAX_SIDE)}
    return stream


def _length(
    container: InputContainer, stream: av.VideoStream, tick: Fraction, rate: Fraction | None
) -> tuple[Fraction | None, int | None]:
    """Return seconds and number of frames, as the header has them, None where it does not."""
    seconds = None
    if stream.duration is not None and stream.duration > 0:
        seconds = stream.duration * tick
    elif container.duration is not None and container.duration > 0:
        seconds = Fraction(container.duration, av.time_base)
    frames = stream.frames if stream.frames > 0 else None
    if frames is None and seconds is not None and rate is not None:
        frames = max(1, round(seconds * rate))
    return seconds, frames


def _fraction(value: Any) -> Fraction | None:
    """Return a positive rational of PyAV, whose type depends on its version, or None where it is not set."""
    if not value or value.denominator == 0:
        return None
    result = Fraction(value.numerator, value.denominator)
    return result if result > 0 else None


def _upright(frame: av.VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """Return the picture ``[height, width, 3]`` of a frame as it is to be shown; what is transparent, on black."""
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        rgba = reformatter.reformat(frame, format="rgba").to_ndarray()
        opaque = rgba[..., 3:].astype(np.uint16)
        picture: NDArray[Any] = ((rgba[..., :3] * opaque + 127) // 255).astype(np.uint8)
    else:
        picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
    return np.rot90(picture, round(frame.rotation / 90) % 4)  # both counter-clockwise


def _require_times(start: float, end: float | None) -> tuple[Fraction, Fraction | None]:
    for name, value in (("start", start), ("end", end)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (name == "end" and value is None) and not (number and value is not None and 0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of seconds, 0 or more, received {value!r}")
    if end is not None and not end > start:
        raise ValueError(f"end must be above start = {start:g}, received {end:g}")
    microseconds = 1_000_000
    return (
        Fraction(start).limit_denominator(microseconds),
        None if end is None else Fraction(end).limit_denominator(microseconds),
    )


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    try:
        # Sizes are limited here, more strictly than where Pillow warns.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_PICTURE_FORMATS) as image:
                _Budget(path, None).check_sides(image.height, image.width)
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
