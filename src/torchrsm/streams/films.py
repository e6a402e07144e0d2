"""Read a film frame by frame, in constant memory, whatever the file holds.

A file may be damaged, or made to do harm. The reader opens only containers that keep all of their content in one file.
It gives FFmpeg a handle to that file alone: no other file, no network. It checks sizes before it takes memory for them.
Whatever is wrong raises a `ValueError` that names the file, or the error of the file system.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from torchrsm.streams.film_clock import FilmClock, Gap, Moment
from torchrsm.streams.framing import MAX_SIDE, Crop, Framing, PixelBudget
from torchrsm.streams.paths import printable, require_file
from torchrsm.streams.stream import require_integer

MAX_RATE = 1000
"""Most frames per second."""

# Demuxers that read one file and nothing else: no playlist (hls, dash, concat, sdp), no single picture.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,h264,hevc,m4v,obu,ivf,flv,asf,ogg,nut,"
    "yuv4mpegpipe,mjpeg,dv,mxf,rm,wtv"
)
_KINDS = "MP4, WebM, Matroska, AVI, MPEG, GIF, ..."
_MAX_DAMAGED = 100  # packets in a row that cannot be decoded, before the rest of a film is given up
# Seconds between two frames; after more, the clock of the film counts as set anew. A transport stream may be joined of
# recordings that have a clock each.
_LONGEST_STILL = Fraction(3600)
_LONGEST_STILL_OF_JOINED = Fraction(60)
_JOINABLE = ("mpegts", "mpeg")
_EXACT_LENGTH = ("mov", "matroska", "avi")  # containers whose header tells when the last frame ends
_SEEK_FROM = 10  # seconds; before that, decoding from the beginning is as fast
_FALLBACK_PERIOD = Fraction(1, 25)
_GAPS_IN_MESSAGE = 3


class DamagedFilmWarning(UserWarning):
    """Frames of a film are missing, or cannot be decoded; the message tells which."""


class NumberedFrame(NamedTuple):
    """A frame of a film, and when a player shows it."""

    number: int
    """Of the frame, 0 for the first. Missing frames are counted: after a gap the numbers go on as in the whole film."""
    seconds: float | None
    """Time from the beginning of the film; None of pictures and arrays, which have no time."""
    frame: NDArray[np.uint8]
    """``[channels, height, width]``."""
    after_gap: bool
    """Whether frames are missing directly before this one, so that it does not follow the one before."""


class VideoReader:
    """The frames of a video file; each iteration opens the file, decodes it in constant memory, and closes it again.

    Making one reads the header and decodes the first frame. Times are counted from the first frame of the film. As in a
    player, frames may follow each other at varying distances, and pictures are turned and mirrored as the file asks, in
    steps of a quarter turn. If the size of the picture changes within the film, all frames are as large as the first.

    Frames that are damaged are left out. After 100 damaged packets in a row the rest of the film is left out, too. The
    frames after a gap keep the numbers and times that they have in the whole film; see `numbered`. `damage` tells what
    is missing, and a `DamagedFilmWarning` says so once, when the reading ends.

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
        self._name = printable(self._path)
        with self._opened() as (container, stream):
            self._tick = _fraction(stream.time_base) or Fraction(1, 1000)
            rate = _fraction(stream.average_rate) or _fraction(stream.guessed_rate)
            self._film_rate = rate if rate is not None and rate <= MAX_RATE else None
            self._film_seconds, self._film_frames = _length(container, stream, self._tick, self._film_rate)
            self._check_header(stream.codec_context.height, stream.codec_context.width)
            joined = any(name in _JOINABLE for name in container.format.name.split(","))
            self._longest_still = _LONGEST_STILL_OF_JOINED if joined else _LONGEST_STILL
            clock = self._clock()
            first = next(self._decoded(container, stream, PixelBudget(self._path, self._max_pixels), clock), None)
            if first is None:
                raise ValueError(f"{self._name} must be a video; got one without a frame that can be decoded")
            self._origin = clock.origin
            picture = self._upright(first[1], VideoReformatter())
        self._damage: list[Gap] = []
        self._stored_size = (first[1].height, first[1].width)
        try:
            self._shape = self._framing.shape(*picture.shape[:2])
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from None

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

    @property
    def damage(self) -> tuple[Gap, ...]:
        """Which frames the latest iteration found missing, as far as it has come."""
        return tuple(self._damage)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        return (numbered.frame for numbered in self.numbered())

    def numbered(self) -> Iterator[NumberedFrame]:
        """Yield the frames with their numbers and times, as the whole film has them.

        Where frames are missing, the numbers and times skip them, and the next frame is ``after_gap``: its place in the
        film is right, but it is no successor of the frame before. At ``frames_per_second``, frame k has the time
        ``start + k / frames_per_second``, and the k within a gap are skipped. Without it, numbers are those of the
        film's own frames; after a ``start`` beyond 10 seconds they follow from the time and the average rate.

        Warns:
            DamagedFilmWarning: at the end of the reading, if frames were missing.
        """
        reformatter = VideoReformatter()
        budget = PixelBudget(self._path, self._max_pixels)
        shown: av.VideoFrame | None = None
        self._damage = []
        try:
            for moment, frame in self._selected(budget):
                if frame is shown:
                    budget.spend(frame.height, frame.width)
                else:
                    try:
                        result = self._framing.frame(self._upright(frame, reformatter), self._shape)
                    except ValueError as error:  # the picture became smaller than the crop
                        raise ValueError(f"{self._name}: {error}") from None
                    shown = frame
                yield NumberedFrame(moment.number, float(moment.time), result.copy(), moment.after_gap)
            if shown is None:
                end = "the end" if self._end is None else f"{float(self._end):g}"
                raise ValueError(f"{self._name} has no frame from second {float(self._start):g} to {end}")
        finally:
            if self._damage:
                warnings.warn(DamagedFilmWarning(_what_is_missing(self._path, self._damage)), stacklevel=2)

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

    def _clock(self, origin: Fraction | None = None) -> FilmClock:
        return FilmClock(self._tick, self._period, self._longest_still, origin=origin)

    def _decoded(
        self, container: InputContainer, stream: av.VideoStream, budget: PixelBudget, clock: FilmClock
    ) -> Iterator[tuple[Moment, av.VideoFrame]]:
        """Yield the frames from where the container stands, without the damaged ones."""
        names = container.format.name.split(",")
        # Each packet has the time stamp of the frame that it gives. Not so in AVI, which has the times of decoding only
        # (FFmpeg's other stamps are guesses) and in a bare stream: there the frames take the times in their order.
        stamped = "avi" not in names
        times_of_decoding: deque[int | None] = deque()
        packets = 0
        for packet, frames, failed in _packets(self._path, container, stream):
            real = packet is not None and packet.size > 0
            packets += real
            if real and not packet.is_discard:
                if stamped and packet.pts is not None:
                    clock.expect(packet.pts)
                elif failed:
                    clock.lose(packet.dts)
                elif not stamped:
                    times_of_decoding.append(packet.dts)
            for frame in frames:
                stamp = frame.pts
                if not stamped:
                    stamp = times_of_decoding.popleft() if times_of_decoding else None
                if not frame.is_corrupt:
                    budget.spend(frame.height, frame.width)
                    yield clock.frame(stamp, frame.duration), frame
                elif stamp is None or not stamped:
                    clock.lose(stamp)
        exact = any(name in _EXACT_LENGTH for name in names)
        complete = 0 < stream.frames <= packets
        if exact and not complete:
            clock.finish(_length_of_pictures(container, stream, self._tick, clock.origin))
        else:
            clock.finish(None)

    def _from_start(self, budget: PixelBudget) -> Iterator[tuple[Moment, av.VideoFrame]]:
        """Yield the frames with their times, from the beginning, or from a key frame not after ``start``."""
        if self._start >= _SEEK_FROM:
            with self._opened() as (container, stream):
                try:
                    container.seek(int((self._origin + self._start) / self._tick), stream=stream)
                except (av.error.FFmpegError, OSError, OverflowError):
                    pass
                else:
                    clock = self._clock(self._origin)
                    frames = self._decoded(container, stream, budget, clock)
                    first = next(frames, None)
                    if first is not None and 0 <= first[0].time <= self._start:
                        self._damage = clock.gaps
                        yield first
                        yield from frames
                        return
        with self._opened() as (container, stream):
            clock = self._clock()
            self._damage = clock.gaps
            yield from self._decoded(container, stream, budget, clock)

    def _selected(self, budget: PixelBudget) -> Iterator[tuple[Moment, av.VideoFrame]]:
        """Yield the frames from ``start`` to ``end`` at the rate that was asked for; a repeated one is the same object.

        A container that counts milliseconds rounds the times of its frames: one tick early or late is on time.
        """
        late = min(self._tick, self._period / 4)
        if self._rate is not None:
            yield from self._at_rate(self._rate, late, budget)
            return
        for moment, frame in self._from_start(budget):
            if self._end is not None and moment.time + late >= self._end:
                return
            if moment.time + late >= self._start:
                yield moment, frame

    def _at_rate(self, rate: Fraction, late: Fraction, budget: PixelBudget) -> Iterator[tuple[Moment, av.VideoFrame]]:
        """Yield what is shown at each of the times ``start + k / rate``, but for those at which frames are missing."""
        end = math.inf if self._end is None else self._end + late
        number, after_gap = 0, False
        held: av.VideoFrame | None = None
        until = Fraction(0)

        def shown_before(limit: Fraction) -> Iterator[tuple[Moment, av.VideoFrame]]:
            nonlocal number, after_gap
            while held is not None and self._start + late + number / rate < min(limit, end):
                yield Moment(number, self._start + number / rate, after_gap), held
                number, after_gap = number + 1, False

        for moment, frame in self._from_start(budget):
            yield from shown_before(min(until, moment.time) if moment.after_gap else moment.time)
            if moment.after_gap:
                number = max(number, math.ceil((moment.time - self._start - late) * rate))
                after_gap = True
            if self._start + late + number / rate >= end:
                return
            lasts = (frame.duration or 0) * self._tick
            held, until = frame, moment.time + (lasts if 0 < lasts <= self._longest_still else self._period)
        yield from shown_before(until + late)

    def _upright(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        try:
            return _upright(frame, reformatter)
        except (av.error.FFmpegError, ValueError) as error:  # pixels of a kind that cannot be converted
            raise ValueError(f"{self._name} has a frame of {frame.format.name} that cannot be shown: {error}") from None

    @property
    def _period(self) -> Fraction:
        return _FALLBACK_PERIOD if self._film_rate is None else 1 / self._film_rate


def require_rate(frames_per_second: float) -> Fraction:
    """Return a rate, exactly, or raise a ValueError if it is not a number above 0 and at most 1000."""
    number = isinstance(frames_per_second, int | float | Fraction) and not isinstance(frames_per_second, bool)
    if not number or not 0.001 <= frames_per_second <= MAX_RATE:
        raise ValueError(f"frames_per_second must be a number in 0.001..{MAX_RATE}; got {frames_per_second!r}")
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
        raise ValueError(f"{printable(path)} must be a complete video file ({_KINDS}); got {received}") from error
    return container


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"a video must not open another file, asked for {url!r}")


def _video_stream(path: Path, container: InputContainer) -> av.VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
        raise ValueError(f"{printable(path)} must have a video in it; got {' and '.join(kinds)} only")
    stream = streams[0]
    if stream.codec_context is None:  # where there is no decoder, whatever its type says
        raise ValueError(f"{printable(path)} must be of a codec that FFmpeg can decode; got an unknown one")
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
    if seconds is not None and rate is not None:
        shown = max(1, round(seconds * rate))
        frames = shown if frames is None or shown < frames else frames  # an edit list may leave some out
    return seconds, frames


def _length_of_pictures(
    container: InputContainer, stream: av.VideoStream, tick: Fraction, origin: Fraction
) -> Fraction | None:
    """Return the seconds until the last picture ends, by the header; None where it does not tell that of the pictures.

    Args:
        container: the film.
        stream: its pictures.
        tick: seconds of one unit of the stream's time.
        origin: second, by the film's clock, of its first picture.
    """
    if stream.duration is not None and stream.duration > 0:
        length = stream.duration * tick
    elif len(container.streams) == 1 and container.duration is not None and container.duration > 0:
        length = Fraction(container.duration, av.time_base)
    else:
        return None
    # Matroska has the time at the end, on a clock that may not begin at 0.
    return length - max(Fraction(0), origin) if "matroska" in container.format.name else length


def _packets(path: Path, container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[Any, list[Any], bool]]:
    """Yield each packet, the frames that come out of it, and whether it failed; no packet if there is none to blame."""
    damaged = 0
    packets = container.demux(stream)
    while damaged < _MAX_DAMAGED:
        packet, failed = None, False
        frames: list[Any] = []
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
            damaged = 0
        except EOFError:
            return
        except (av.error.FFmpegError, PermissionError):
            damaged, failed = damaged + 1, True
            if packet is None:
                packets = container.demux(stream)  # an iterator ends with its error
        except OSError as error:
            raise OSError(error.errno, f"{printable(path)} cannot be read: {error.strerror or error}") from error
        yield packet, frames, failed


def _what_is_missing(path: Path, gaps: list[Gap]) -> str:
    frames = sum(gap.frames for gap in gaps)
    places = ", ".join(str(gap) for gap in gaps[:_GAPS_IN_MESSAGE])
    more = len(gaps) - _GAPS_IN_MESSAGE
    return (
        f"{printable(path)}: {frames} frame{'s are' if frames > 1 else ' is'} damaged or missing: {places}"
        + (f" and {more} more place{'s' if more > 1 else ''}" if more > 0 else "")
        + "; the others are used"
    )


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
    return _turned(picture, frame.side_data.get("DISPLAYMATRIX"))


def _turned(picture: NDArray[np.uint8], display_matrix: Any) -> NDArray[np.uint8]:
    """Return a picture turned and mirrored as a display matrix asks, to the nearest quarter turn.

    The matrix has nine 32-bit integers a, b, u, c, d, v, x, y, w: the stored point ``(x, y)``, y downwards, is shown in
    the direction ``(a x + c y, b x + d y)``.

    Source: ISO/IEC 14496-12, 8.3.2; libavutil/display.h.
    """
    if display_matrix is None or len(bytes(display_matrix)) != 36:
        return picture
    a, b, _, c, d, *_ = np.frombuffer(bytes(display_matrix), np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        right, down = a >= 0, d >= 0
    else:
        picture = picture.transpose(1, 0, 2)
        right, down = c >= 0, b >= 0
    return picture[:: 1 if down else -1, :: 1 if right else -1]


def _require_times(start: float, end: float | None) -> tuple[Fraction, Fraction | None]:
    for name, value in (("start", start), ("end", end)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (name == "end" and value is None) and not (number and value is not None and 0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of seconds, 0 or more; got {value!r}")
    if end is not None and not end > start:
        raise ValueError(f"end must be above start = {start:g}; got {end:g}")
    microseconds = 1_000_000
    return (
        Fraction(start).limit_denominator(microseconds),
        None if end is None else Fraction(end).limit_denominator(microseconds),
    )
