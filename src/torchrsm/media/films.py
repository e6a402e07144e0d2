"""Films of dreams and of predictions: composed frame by frame, written as MP4 or GIF."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchrsm.media.pictures import BACKGROUND, FAINT, TEXT, overlay, pictures
from torchrsm.storage.tensors import write_atomically

FILM_SUFFIXES = (".mp4", ".gif")
GIF_RATES = (1, 50)  # frames per second
_PRIMING = (70, 140, 255)
_DREAMING = (255, 95, 160)
_MARGIN, _GAP, _BAR, _LABEL = 14, 8, 34, 20
_CURVE_HEIGHT, _CURVE_FRAMES = 96, 300
_CURVE_COLOURS = ((255, 95, 95), (255, 190, 70), (110, 220, 140))


def dream_frames(truth: Tensor, shown: Tensor, prime: int, *, frame_pixels: int = 240) -> NDArray[np.uint8]:
    """Compose the pictures of a film: for each sequence what the model shows over the truth, and alone.

    A title tells priming (the model's prediction of a frame from those before it) from dreaming (its own output alone).

    Args:
        truth: ``[n, t', c, h, w]`` in 0..1; ``t'`` from ``prime`` to t. Beyond it nothing is laid under the dream.
        shown: ``[n, t, c, h, w]``, the model's frames: predictions for the first ``prime``, then the dream.
        prime: frames of priming, 0 to t.
        frame_pixels: about how large a frame's longer side is drawn, >= 16; each pixel is a square of whole size.

    Returns:
        ``[t, height, width, 3]`` RGB, height and width even.

    Raises:
        ValueError: shapes do not go together, there is no frame, or an argument is out of its range.
    """
    if truth.dim() != 5 or shown.dim() != 5 or 0 in shown.shape or truth.shape[2:] != shown.shape[2:]:
        raise ValueError(
            "truth and shown must be [sequences, time, channels, height, width] of the same frames; "
            f"got {list(truth.shape)} and {list(shown.shape)}"
        )
    n, t = shown.shape[:2]
    if len(truth) != n or not prime <= truth.shape[1] <= t or not 0 <= prime <= t:
        raise ValueError(
            f"truth must have {n} sequences of prime = {prime} to {t} frames; got {len(truth)} of {truth.shape[1]}"
        )
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16; got {frame_pixels}")
    known = truth.shape[1]
    over = [overlay(shown[:, :known], truth), *([pictures(shown[:, known:])] if known < t else [])]
    panels = (np.concatenate(over, axis=1), pictures(shown))
    names = ("prediction red, truth blue", "the model alone")

    scale = max(1, round(frame_pixels / max(shown.shape[-2:])))
    height, width = scale * shown.shape[-2], scale * shown.shape[-1]
    font = ImageFont.load_default(size=13)
    column = max(width, *(math.ceil(font.getlength(name)) for name in names)) + _GAP  # wide enough for its name
    top = _MARGIN + _BAR + _LABEL
    right = _MARGIN + 2 * column - _GAP + _MARGIN
    bottom = top + n * (height + _GAP) - _GAP + _MARGIN
    film = np.empty((t, bottom + bottom % 2, right + right % 2, 3), np.uint8)
    for step in range(t):
        picture = Image.new("RGB", film.shape[2:0:-1], BACKGROUND)
        draw = ImageDraw.Draw(picture)
        _title(draw, step, prime, t, right)
        for number, (name, frames) in enumerate(zip(names, panels, strict=True)):
            x = _MARGIN + number * column
            draw.text((x, _MARGIN + _BAR), name, FAINT, font)
            for row in range(n):
                frame = Image.fromarray(frames[row, step]).resize((width, height), Image.Resampling.NEAREST)
                picture.paste(frame, (x, top + row * (height + _GAP)))
        film[step] = np.asarray(picture)
    return film


def _title(draw: ImageDraw.ImageDraw, step: int, prime: int, steps: int, right: int) -> None:
    """Write which frame it is, above a bar that fills in the colour of priming, then of dreaming."""
    dreaming = step >= prime
    text = (
        f"dreaming, step {step - prime + 1} of {steps - prime}" if dreaming else f"priming, frame {step + 1} of {prime}"
    )
    draw.text((_MARGIN, _MARGIN - 4), text, _DREAMING if dreaming else TEXT, ImageFont.load_default(size=16))
    left, length, y = _MARGIN, right - 2 * _MARGIN, _MARGIN + 21
    for begin, end, colour in ((0, min(step + 1, prime), _PRIMING), (prime, step + 1, _DREAMING)):
        if end > begin:
            draw.rectangle((left + length * begin / steps, y, left + length * end / steps, y + 3), fill=colour)


class Comparison:
    """Composes the pictures of a film: truth, prediction and overlay side by side, above the error as it runs along.

    One picture after another, in constant memory: the curve shows the last 300 frames.

    Args:
        size: height and width of a frame.
        names: of the predictors, one row each.
        copy_last: also draw the error of repeating the frame before, which `picture` then needs.
        frame_pixels: about how large a frame's longer side is drawn, >= 16; each pixel is a square of whole size.
        title: one line above all.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: tuple[int, int],
        names: Sequence[str],
        *,
        copy_last: bool = False,
        frame_pixels: int = 240,
        title: str = "",
    ) -> None:
        if frame_pixels < 16:
            raise ValueError(f"frame_pixels must be >= 16; got {frame_pixels}")
        if min(size) < 1 or not names:
            raise ValueError(f"size must be positive and names must hold one or more; got {size} and {names}")
        self._size, self._names, self._title = size, tuple(names), title
        self._curves = (*names, "frame before") if copy_last else tuple(names)
        scale = max(1, round(frame_pixels / max(size)))
        self._height, self._width = scale * size[0], scale * size[1]
        self._font = ImageFont.load_default(size=13)
        self._column = max(self._width, 84) + _GAP
        self._top = _MARGIN + (_BAR if title else 0) + _LABEL
        self._curve_top = self._top + len(names) * (self._height + _GAP + _LABEL * (len(names) > 1))
        width, height = 2 * _MARGIN + 3 * self._column - _GAP, self._curve_top + _LABEL + _CURVE_HEIGHT + _MARGIN
        self._picture_size = (width + width % 2, height + height % 2)
        self._errors: deque[tuple[float | None, ...]] = deque(maxlen=_CURVE_FRAMES)
        self._dreamt: deque[bool] = deque(maxlen=_CURVE_FRAMES)

    def picture(
        self,
        truth: Tensor,
        predictions: Sequence[Tensor],
        errors: Sequence[float | None],
        *,
        dreamt: bool = False,
    ) -> NDArray[np.uint8]:
        """Return the next picture, ``[height, width, 3]`` RGB, height and width even.

        Args:
            truth: ``[c, h, w]`` in 0..1.
            predictions: the same shape, one for each name.
            errors: one for each curve, None where there is none.
            dreamt: whether the predictors heard their own frames.
        """
        if len(predictions) != len(self._names) or len(errors) != len(self._curves):
            raise ValueError(
                f"a picture needs {len(self._names)} predictions and {len(self._curves)} errors; "
                f"got {len(predictions)} and {len(errors)}"
            )
        self._errors.append(tuple(errors))
        self._dreamt.append(dreamt)
        image = Image.new("RGB", self._picture_size, BACKGROUND)
        draw = ImageDraw.Draw(image)
        if self._title:
            draw.text((_MARGIN, _MARGIN - 4), self._title, TEXT, ImageFont.load_default(size=16))
        headings = ("truth", "dream" if dreamt else "prediction", "prediction red, truth blue")
        for column, heading in enumerate(headings):
            x, colour = _MARGIN + column * self._column, _DREAMING if dreamt and column == 1 else FAINT
            draw.text((x, self._top - _LABEL), heading, colour, self._font)
        for row, prediction in enumerate(predictions):
            y = self._top + row * (self._height + _GAP + _LABEL * (len(self._names) > 1))
            for column, shown in enumerate((pictures(truth), pictures(prediction), overlay(prediction, truth))):
                large = Image.fromarray(shown).resize((self._width, self._height), Image.Resampling.NEAREST)
                image.paste(large, (_MARGIN + column * self._column, y))
            if len(self._names) > 1:
                draw.text((_MARGIN, y + self._height + 2), self._names[row], TEXT, self._font)
        self._draw_curves(draw)
        return np.asarray(image)

    def _draw_curves(self, draw: ImageDraw.ImageDraw) -> None:
        left, right = _MARGIN, self._picture_size[0] - _MARGIN
        top, bottom = self._curve_top + _LABEL, self._curve_top + _LABEL + _CURVE_HEIGHT
        positive = [error for errors in self._errors for error in errors if error is not None and error > 0]
        x = left
        draw.text((x, self._curve_top), "error a frame, log", FAINT, self._font)
        x += round(self._font.getlength("error a frame, log")) + 16
        for number, name in enumerate(self._curves):
            last = self._errors[-1][number]
            text = name if last is None else f"{name} {last:.3g}"
            draw.text((x, self._curve_top), text, _CURVE_COLOURS[number % len(_CURVE_COLOURS)], self._font)
            x += round(self._font.getlength(f"{name} 0.0000")) + 16
        draw.line((left, bottom, right, bottom), fill=FAINT)
        if not positive:
            return
        low, high = math.log(min(positive)), math.log(max(positive))
        span = max(high - low, 1e-6)
        step = (right - left) / max(1, _CURVE_FRAMES - 1)
        for at, dreamt in enumerate(self._dreamt):
            if dreamt and (at == 0 or not self._dreamt[at - 1]):
                draw.line((left + at * step, top, left + at * step, bottom), fill=_DREAMING)
        for number in range(len(self._curves)):
            curve: list[tuple[float, float]] = []  # from gap to gap
            for at, errors in enumerate([*self._errors, (None,) * len(self._curves)]):
                error = errors[number]
                if error is not None and error > 0:
                    curve.append((left + at * step, bottom - (bottom - top) * (math.log(error) - low) / span))
                elif curve:
                    colour = _CURVE_COLOURS[number % len(_CURVE_COLOURS)]
                    draw.line(curve if len(curve) > 1 else 2 * curve, fill=colour, width=2)
                    curve = []


def save_video(frames: NDArray[np.uint8], path: str | Path, frames_per_second: float = 20.0) -> None:
    """Write pictures as a film, by the suffix ``.mp4`` (H.264) or ``.gif`` (repeats for ever).

    The file appears complete or not at all.

    Args:
        frames: ``[t, height, width, 3]`` RGB; an MP4's are 2 x 2 at least, and of an odd height or width the last line
            is lost.
        path: the file; no folder is made.
        frames_per_second: 0.001 to 1000; of a GIF, which knows hundredths of a second only, 1 to 50.

    Raises:
        ValueError: another suffix, frames of another shape or type, or none, or a rate out of its range.
        OSError: the folder is missing or cannot be written to; a file that was there is kept.
    """
    path = Path(path)
    if path.suffix.lower() not in FILM_SUFFIXES:
        raise ValueError(f"the name of a film must end in {' or '.join(FILM_SUFFIXES)}; got {str(path)!r}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [time, height, width, 3]; got {frames.dtype} {list(frames.shape)}")
    if not 0.001 <= frames_per_second <= 1000:
        raise ValueError(f"frames_per_second must be in 0.001..1000; got {frames_per_second}")
    slowest, fastest = GIF_RATES
    if path.suffix.lower() == ".gif" and not slowest <= frames_per_second <= fastest:
        raise ValueError(f"frames_per_second of a GIF must be in {slowest}..{fastest}; got {frames_per_second}")
    if path.suffix.lower() == ".mp4" and min(frames.shape[1:3]) < 2:
        raise ValueError(f"frames of an MP4 must be 2 x 2 or larger; got {frames.shape[1]} x {frames.shape[2]}")
    content = (
        encode_mp4(frames, frames_per_second) if path.suffix.lower() == ".mp4" else _gif(frames, frames_per_second)
    )
    write_atomically(path, content)


def write_film(pictures: Iterable[NDArray[np.uint8]], path: str | Path, frames_per_second: float = 20.0) -> int:
    """Write pictures ``[height, width, 3]`` as an MP4, one by one in constant memory, and return how many there were.

    The file appears complete or not at all.

    Raises:
        ValueError: there is no picture, or the name does not end in ".mp4".
        OSError: the folder is missing or cannot be written to; a file that was there is kept.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the name of this film must end in .mp4; got {str(path)!r}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _FilmFile(partial, path) as file:
            count = write_mp4(pictures, cast(BinaryIO, file), frames_per_second)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except av.error.PyAVCallbackError as error:
        raise (error.__cause__ or error.__context__ or error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return count


class _FilmFile(io.FileIO):
    """A film on its way to its place, which is what errors name."""

    def __init__(self, partial: Path, path: Path) -> None:
        self._place = path
        with self._named():
            super().__init__(partial, "w+b")

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        written = 0
        while written < len(view):  # a disk that is nearly full takes less than it is given
            with self._named():
                written += super().write(view[written:]) or 0
        return written

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self._place}: {error.strerror}") from error


def encode_mp4(pictures: Iterable[NDArray[np.uint8]], frames_per_second: float) -> bytes:
    """Return pictures ``[height, width, 3]`` as an MP4 (H.264); they are taken one by one.

    Raises:
        ValueError: there is none.
    """
    content = io.BytesIO()
    write_mp4(pictures, content, frames_per_second)
    return content.getvalue()


def write_mp4(pictures: Iterable[NDArray[np.uint8]], file: BinaryIO, frames_per_second: float) -> int:
    """Write pictures ``[height, width, 3]`` as an MP4 (H.264), in constant memory, and return how many there were.

    Raises:
        ValueError: there is none.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    count = 0
    with av.open(file, "w", format="mp4") as container:
        stream = cast(
            av.VideoStream, container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1000))
        )
        for picture in pictures:
            height, width = (size - size % 2 for size in picture.shape[:2])  # two by two pixels share their colour
            if not count:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "16"} if codec == "libx264" else {"qscale": "3"}
            even = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            count += 1
        if not count:
            raise ValueError("a film must have one picture or more; got none")
        container.mux(stream.encode(None))
    return count


def _gif(frames: NDArray[np.uint8], frames_per_second: float) -> bytes:
    content = io.BytesIO()
    # One palette for all, taken from a few frames set side by side, so that colours do not flicker.
    some = np.concatenate(frames[:: max(1, len(frames) // 8)], axis=1)
    palette = Image.fromarray(some).quantize(256, dither=Image.Dither.NONE)
    first, *rest = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = 10 * round(100 / frames_per_second)
    first.save(content, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=False)
    return content.getvalue()
