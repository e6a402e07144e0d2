"""Films that are cut, overwritten or joined at random, read with random options."""

import warnings
from fractions import Fraction
from itertools import islice

import av
import numpy as np

from torchrsm.streams import DamagedFilmWarning, VideoReader

_FILMS = (
    ("a.mp4", "libx264", "yuv420p"),
    ("a.mkv", "libx264", "yuv420p"),
    ("a.ts", "libx264", "yuv420p"),
    ("a.h264", "libx264", "yuv420p"),
    ("a.webm", "libvpx", "yuv420p"),
    ("a.avi", "mpeg4", "yuv420p"),
    ("a.mpg", "mpeg2video", "yuv420p"),
    ("a.flv", "flv", "yuv420p"),
    ("a.mov", "png", "rgb24"),
    ("a.mkv", "ffv1", "bgr0"),
    ("a.avi", "mjpeg", "yuvj420p"),
    ("a.gif", "gif", "rgb8"),
)


def films(folder):
    """Read films of 10 frames that were cut, overwritten, joined, or left as they are, with random options."""
    whole = [_film(folder / name, codec, pixels) for name, codec, pixels in _FILMS if codec in av.codecs_available]
    path = folder / "broken"

    def call(random):
        path.write_bytes(_broken(random, whole))
        options = {
            name: values[random.integers(len(values))] for name, values in _OPTIONS.items() if random.random() < 0.2
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedFilmWarning)
            reader = VideoReader(path, **options)
            assert reader.frame_count is None or reader.frame_count >= 0
            assert reader.seconds is None or reader.seconds >= 0
            number = -1
            for numbered in islice(reader.numbered(), 40):
                assert numbered.frame.shape == reader.frame_shape
                assert numbered.number > number
                assert 0 <= numbered.seconds < 10**9
                number = numbered.number
        return "read, with damage" if reader.damage else "read"

    return call


_OPTIONS = {
    "height": (1, 7, 64, 0, -1, 2.5, None, 9000),
    "width": (1, 9, 80, 0, True, None),
    "crop": (None, "square", (0, 0, 8, 8), (8, 8, 8, 8), (0, 0, 999, 999), (1, 2), "middle"),
    "channels": (1, 3, 2, 0, None),
    "frames_per_second": (None, 1, 5, 29.97, 1000, 0, float("nan"), "10"),
    "start": (0, 0.1, 5, 11, 1e9, -1, float("inf")),
    "end": (None, 0.1, 0.3, 20, 0, float("nan")),
    "max_pixels": (None, 1, 1000, 10**9, 0, 1.5),
}


def _film(path, codec, pixels):
    """Return a film of 10 frames of noise, 16 x 24."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30))
        stream.height, stream.width, stream.pix_fmt = 16, 24, pixels
        for _ in range(10):
            picture = random.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _broken(random, whole):
    """Return a film after none, one or several kinds of damage."""
    content = bytearray(whole[random.integers(len(whole))])
    for _ in range(random.integers(4)):
        kind = random.integers(6)
        place = int(random.integers(len(content) + 1))
        length = int(random.integers(1, 1 + max(1, len(content) // 4)))
        if kind == 0:
            del content[place:]
        elif kind == 1:
            for one in random.integers(0, max(1, len(content)), random.integers(1, 30)):
                content[one : one + 1] = random.bytes(1)
        elif kind == 2:
            content[place : place + length] = bytes(length)
        elif kind == 3:
            del content[place : place + length]
        elif kind == 4:
            other = whole[random.integers(len(whole))]
            content[place:place] = other[int(random.integers(len(other))) :]
        else:  # numbers of headers, which are mostly near the beginning
            place = int(random.integers(min(1000, len(content)) + 1))
            content[place : place + 4] = random.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1"])
    return bytes(content)
