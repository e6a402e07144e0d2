"""Films of dreams: composed frame by frame, written as MP4 or GIF."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchrsm.checkpoint import write_atomically
from torchrsm.media import BACKGROUND, FAINT, TEXT, overlay, pictures

FILM_SUFFIXES = (".mp4", ".gif")
GIF_RATES = (1, 50)  # frames per second
_PRIMING = (70, 140, 255)
_DREAMING = (255, 95, 160)
_MARGIN, _GAP, _BAR, _LABEL = 14, 8, 34, 20


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
            "truth and shown must be [sequences, time, channels, height, width] of the same frames, "
            f"received {list(truth.shape)} and {list(shown.shape)}"
        )
    n, t = shown.shape[:2]
    if len(truth) != n or not prime <= truth.shape[1] <= t or not 0 <= prime <= t:
        raise ValueError(
            f"truth must have {n} sequences of prime = {prime} to {t} frames, received {len(truth)} of {truth.shape[1]}"
        )
    if frame_pixels < 16:
        raise ValueError(f"frame_pixels must be >= 16, received {frame_pixels}")
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
        raise ValueError(f"the name of a film must end in {' or '.join(FILM_SUFFIXES)}, received {str(path)!r}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [time, height, width, 3], received {frames.dtype} {list(frames.shape)}")
    if not 0.001 <= frames_per_second <= 1000:
        raise ValueError(f"frames_per_second must be in 0.001..1000, received {frames_per_second}")
    slowest, fastest = GIF_RATES
    if path.suffix.lower() == ".gif" and not slowest <= frames_per_second <= fastest:
        raise ValueError(f"frames_per_second of a GIF must be in {slowest}..{fastest}, received {frames_per_second}")
    if path.suffix.lower() == ".mp4" and min(frames.shape[1:3]) < 2:
        raise ValueError(f"frames of an MP4 must be 2 x 2 or larger, received {frames.shape[1]} x {frames.shape[2]}")
    write = _mp4 if path.suffix.lower() == ".mp4" else _gif
    write_atomically(path, write(frames, frames_per_second))


def _mp4(frames: NDArray[np.uint8], frames_per_second: float) -> bytes:
    content = io.BytesIO()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    height, width = (size - size % 2 for size in frames.shape[1:3])  # two by two pixels share their colour
    with av.open(content, "w", format="mp4") as container:
        stream = cast(
            av.VideoStream, container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1000))
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"} if codec == "libx264" else {"qscale": "3"}
        for picture in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return content.getvalue()


def _gif(frames: NDArray[np.uint8], frames_per_second: float) -> bytes:
    content = io.BytesIO()
    # One palette for all, taken from a few frames set side by side, so that colours do not flicker.
    some = np.concatenate(frames[:: max(1, len(frames) // 8)], axis=1)
    palette = Image.fromarray(some).quantize(256, dither=Image.Dither.NONE)
    first, *rest = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = 10 * round(100 / frames_per_second)
    first.save(content, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=False)
    return content.getvalue()
