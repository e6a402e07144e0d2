"""Videos that viewers send: received within limits of size and time, read, and made small."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from torchrsm.streams import VideoReader
from torchrsm.web.guard import error_response

MAX_VIDEO_FRAMES = 600
MAX_VIDEO_SIDE = 64
MAX_DECODED_PIXELS = 600 * 1920 * 1080
UPLOAD_SECONDS = 60.0  # for the bytes to come
_DECODE_SECONDS = 4.0
DECODE_QUEUE = 4
_GREY = 8  # levels by which the channels of a grey pixel may differ, as coding leaves them


async def receive_upload(request: Request, path: Path, most: int) -> Response | None:
    """Write the body of an upload of at most so many bytes to a file; return what to answer if it is refused."""
    size = 0
    with path.open("wb") as file:
        async for part in request.stream():
            size += len(part)
            if size > most:
                return error_response(413, too_large(size, most))
            file.write(part)
    return error_response(400, "the video must have one byte or more; got none") if size == 0 else None


def too_large(size: int, most: int) -> str:
    """Say that an upload of so many bytes, or more, is too large."""
    return f"a video must have at most {most / 2**20:g} MiB; got {size / 2**20:.1f} MiB or more"


def decode_upload(path: Path) -> NDArray[np.uint8]:
    """Return the first frames of a video, made small, ``[t, c, h, w]``; in colour if the video has any."""
    deadline = time.monotonic() + _DECODE_SECONDS
    height, width = VideoReader(path, max_pixels=MAX_DECODED_PIXELS).frame_shape[1:]
    side = min(MAX_VIDEO_SIDE, max(height, width))
    tall = height >= width
    reader = VideoReader(path, height=side if tall else None, width=None if tall else side, channels=3)
    frames = []
    pixels = MAX_DECODED_PIXELS
    for frame in reader:
        frames.append(frame)
        pixels -= height * width
        if len(frames) >= MAX_VIDEO_FRAMES or pixels < 0 or time.monotonic() > deadline:
            break
    if len(frames) < 2:
        raise ValueError(f"a video must have 2 frames or more; got {len(frames)}")
    found = np.stack(frames)
    colours = found.max(1).astype(np.int16) - found.min(1)
    return found if colours.max() > _GREY else found[:, :1]
