"""A camera as a stream that cannot be played again."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import av
import av.error
import torch

from torchrsm.streams.films import require_rate
from torchrsm.streams.framing import Crop, Framing
from torchrsm.streams.stream import StreamBatch, require_integer

_PATIENCE = 10  # seconds
_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


class Webcam:
    """Frames of a camera as they come, one stream.

    A camera cannot show again what it has shown, so this is the one stream that does not keep the clause of `Stream`
    about positions: `state_dict` says which camera it is, and a restored stream goes on with what the camera sees then.
    Only the first frame is flagged as a start; the ``index`` is 0. As a context manager it lets go of the camera.

    Args:
        device: number of the camera.
        height: as `Framing` explains it.
        width: as `Framing` explains it.
        crop: as `Framing` explains it.
        channels: 1 for grey, 3 for colour.
        frames_per_second: at most so many frames; the others are dropped. None for all that the camera sends.

    Raises:
        ValueError: an argument is outside its range, or there is no such camera, or it cannot be opened.
    """

    def __init__(
        self,
        device: int = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        crop: Crop = None,
        channels: int = 1,
        frames_per_second: float | None = None,
    ) -> None:
        self._framing = Framing(height, width, crop, channels)
        self._period = 0.0 if frames_per_second is None else float(1 / require_rate(frames_per_second))
        self._due = -math.inf
        self._device = require_integer("device", device, 0, 63)
        name = f"/dev/video{device}" if sys.platform == "linux" else str(device)
        if sys.platform == "linux" and not os.path.exists(name):
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise ValueError(f"device must be a camera; there is no {name} (there is {', '.join(there) or 'none'})")
        try:
            self._container: Any = av.open(name, "r", format=_FORMATS.get(sys.platform, "v4l2"))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"device {name} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        self._frames: Iterator[Any] = self._container.decode(video=0)
        try:
            self._next: torch.Tensor | None = self._read()
        except ValueError:
            self.close()
            raise
        self._started = False

    def _read(self) -> torch.Tensor:
        patience = time.monotonic() + _PATIENCE
        while True:
            try:
                frame = next(self._frames)
            except BlockingIOError:  # nothing new yet, which some systems say at once
                if time.monotonic() > patience:
                    raise ValueError(f"camera {self._device} has sent nothing for {_PATIENCE} seconds") from None
                time.sleep(0.002)
                self._frames = self._container.decode(video=0)
                continue
            except (av.error.FFmpegError, OSError) as error:
                raise ValueError(f"camera {self._device} has stopped: {error}") from error
            except StopIteration:
                raise ValueError(f"camera {self._device} has stopped") from None
            now = frame.time
            if self._period and now is not None:
                if now < self._due - self._period / 4:  # times jitter
                    continue
                late = now >= self._due + self._period  # or the first
                self._due = (now if late else self._due) + self._period
            picture = frame.to_ndarray(format="rgb24")
            return torch.from_numpy(self._framing.frame(picture)[None]).float() / 255

    @property
    def batch_size(self) -> int:
        """One."""
        return 1

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        assert self._next is not None
        _, channels, height, width = self._next.shape
        return (channels, height, width)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        frame = self._next if not self._started else self._read()
        assert frame is not None
        self._next = frame
        starts, self._started = torch.tensor([not self._started]), True
        return StreamBatch(frame.clone(), starts, torch.zeros(1, dtype=torch.int64))

    def state_dict(self) -> dict[str, Any]:
        """Return which camera it is; nothing else of it can be saved."""
        return {"stream": "Webcam", "device": self._device}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the camera as it is now.

        Raises:
            ValueError: the position is one of another stream.
        """
        if dict(state) != self.state_dict():
            raise ValueError(f"saved position must be {self.state_dict()}; got {dict(state)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the camera."""
        self._container.close()
