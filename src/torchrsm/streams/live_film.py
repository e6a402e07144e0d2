"""A film that comes over a pipe or a network, frame by frame as it is sent; it cannot be read again."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from torchrsm.streams.films import NumberedFrame
from torchrsm.streams.framing import Crop, Framing

_PATIENCE = 10.0  # seconds without anything from a network
_ADDRESS = re.compile(r"(?:rtsp|rtsps|rtmp|rtmps|http|https|udp|rtp|srt|tcp)://", re.IGNORECASE)
# A playlist from a network may name addresses, but no file of this machine.
_PROTOCOLS = "rtsp,rtmp,http,https,udp,rtp,srt,tcp,tls,crypto"
_MOST_DAMAGED = 100  # packets in a row that cannot be decoded


def is_live(source: str) -> bool:
    """Return whether a source is the standard input (``-``) or an address of a network."""
    return source == "-" or _ADDRESS.match(source) is not None


class LiveFilm:
    """The frames of a film as they come.

    Packets that are damaged are left out; the frame behind them is marked as one after a gap.

    Args:
        source: ``-`` for the standard input, or an address (rtsp, rtmp, http, https, udp, rtp, srt, tcp).
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        file: what is read for ``-``; None for the standard input.

    Raises:
        ValueError: an argument is outside its range; or what comes is no film, or nothing comes.
    """

    def __init__(
        self,
        source: str,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        file: BinaryIO | None = None,
    ) -> None:
        if not is_live(source):
            raise ValueError(f"source must be - (the standard input) or an address such as rtsp://...; got {source!r}")
        self._framing = Framing(height, width, crop, channels)
        self.name = "the standard input" if source == "-" else source
        try:
            self._container: Any = _open(source, file)
            self._stream = self._container.streams.video[0]
        except IndexError:
            raise ValueError(f"{self.name} must be a film; got one without pictures") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"{self.name} must be a film; {_reason(error)}") from None

    def __iter__(self) -> Iterator[NumberedFrame]:
        """Yield each frame; ``seconds`` are those of the film, or since the first frame came where it has no clock.

        Raises:
            ValueError: the connection was lost, no frame came, or the picture cannot be cut as asked.
        """
        begun, first, number, gap = time.monotonic(), None, 0, False
        shape = None
        for frame in self._decoded():
            if frame is None:
                gap = True
                continue
            now = time.monotonic() - begun if frame.time is None else float(frame.time)
            first = now if first is None else first
            picture = frame.to_ndarray(format="rgb24")
            shape = shape or self._framing.shape(*picture.shape[:2])
            levels: Any = self._framing.frame(picture, shape)
            yield NumberedFrame(number, now - first, np.ascontiguousarray(levels), gap)
            number, gap = number + 1, False
        if number == 0:
            raise ValueError(f"{self.name} must be a film; it ended before its first frame")

    def _decoded(self) -> Iterator[Any]:
        """Yield frames, and None for each packet that cannot be decoded."""
        packets, damaged = self._container.demux(self._stream), 0
        while True:
            try:
                packet = next(packets, None)
            except av.error.EOFError:
                packet = None
            except (av.error.FFmpegError, OSError) as error:
                raise ValueError(f"{self.name} has stopped: {_reason(error)}") from None
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, OSError) as error:
                damaged += 1
                if damaged > _MOST_DAMAGED:
                    raise ValueError(f"{self.name} cannot be decoded: {_reason(error)}") from None
                yield None
                continue
            damaged = 0 if frames else damaged
            yield from frames

    def __enter__(self) -> LiveFilm:
        """Return itself; the connection is closed behind the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._container.close()


def _open(source: str, file: BinaryIO | None) -> Any:
    if source == "-":
        return av.open(file or sys.stdin.buffer, "r")
    options = {"protocol_whitelist": _PROTOCOLS}
    if source.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    return av.open(source, "r", options=options, timeout=(_PATIENCE, _PATIENCE))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
