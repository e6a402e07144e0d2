"""Films as they are sent, and a pipe to read them from."""

import io
from fractions import Fraction

import av
import numpy as np


def transport_stream(count=12, side=32):
    """A film as it is sent: bright squares that get brighter."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = side
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number in range(count):
            picture = np.full((side, side, 3), 15 * number % 240 + 10, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


class Pipe(io.RawIOBase):
    """Bytes that can be read once, in order."""

    def __init__(self, content):
        self.left = io.BytesIO(content)

    def readable(self):
        return True

    def seekable(self):
        return False

    def read(self, size=-1):
        return self.left.read(min(size, 1000) if size >= 0 else -1)
