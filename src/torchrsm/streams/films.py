"""Read a film frame by frame, in constant memory, whatever the file holds.

Files come from anywhere, so nothing in them is trusted. Only containers that keep all of their content in one file are
opened, from a handle that knows no other file and no network; sizes are limited before memory is taken for them; and
whatever is wrong ends in a `ValueError` that names the file, or in the error of the file system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from torchrsm.streams.framing import MAX_SIDE, Crop, Framing, PixelBudget
from torchrsm.streams.paths import require_file
from torchrsm.streams.stream import require_integer

MAX_RATE = 1000
"""Most frames per second."""

# Demuxers that read one file and nothing else: no playlist (hls, dash, concat, sdp), no single picture.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,h264,hevc,m4v,obu,ivf,flv,asf,ogg,nut,"
    "yuv4mpegpipe,mjpeg,dv,mxf,rm,wtv"
)
_KINDS = "MP4, WebM, Matroska, AVI, MPEG, GIF, ..."
_MAX_DAMAGED = 100  # packets that cannot be decoded, before the rest of a film is given up
_LONGEST_STILL = 60  # seconds between two frames; a longer gap, or a step back, is an error of the film's clock
_SEEK_FROM = 10  # seconds; before that, decoding from the beginning is as fast
_FALLBACK_PERIOD = Fraction(1, 25)


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
            first = next(self._decoded(container, stream, PixelBudget(self._path, self._max_pixels)), None)
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
        budget = PixelBudget(self._path, self._max_pixels)
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
        budget = PixelBudget(self._path, self._max_pixels)
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

    def _decoded(
        self, container: InputContainer, stream: av.VideoStream, budget: PixelBudget
    ) -> Iterator[av.VideoFrame]:
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

    def _from_start(self, budget: PixelBudget) -> Iterator[tuple[Fraction, av.VideoFrame]]:
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

    def _selected(self, budget: PixelBudget) -> Iterator[av.VideoFrame]:
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


def require_rate(frames_per_second: float) -> Fraction:
    """Return a rate, exactly, or raise a ValueError if it is not a number above 0 and at most 1000."""
    number = isinstance(frames_per_second, int | float | Fraction) and not isinstance(frames_per_second, bool)
    if not number or not 0.001 <= frames_per_second <= MAX_RATE:
        raise ValueError(f"frames_per_second must be a number in 0.001..{MAX_RATE}, received {frames_per_second!r}")
    return Fraction(frames_per_second).limit_denominator(100_000)


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
