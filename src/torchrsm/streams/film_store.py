"""Keep decoded frames where there is room for them: a few in memory, many in a temporary file.

A stream plays its clips from several places at once, for ever, and goes on exactly where it was saved. Going back to a
given frame of a film is not reliable: time stamps may be missing or wrong, and decoding has to begin at a key frame,
which may be damaged. So a film is decoded once, from beginning to end. Short films stay in memory. The frames of long
ones go to a file without a name, which the system deletes when the process ends, however it ends. They are read back
one by one, so that memory does not grow with the film; the system caches what fits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

_MORE_ROOM = "set TMPDIR to a folder with more room, or use fewer or smaller frames"


class Clip(Protocol):
    """Frames one after the other, ``uint8 [time, channels, height, width]``: an array, or what reads like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Times, channels, height and width."""
        ...

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Clip | NDArray[np.uint8]: ...


class _TemporaryFile:
    """Bytes in a file without a name, on disk as long as this object lives."""

    def __init__(self) -> None:
        # Without a buffer, closing it cannot fail.
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=temporary_folder(), buffering=0))  # noqa: SIM115

    def write(self, content: bytes | bytearray) -> None:
        rest = memoryview(content)
        while rest:  # what is written at a time may be a part only
            rest = rest[self._file.write(rest) :]

    def read(self, place: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, place)  # which moves no position that a forked process shares
        self._file.seek(place)
        return self._file.read(size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ClipOnDisk:
    """Frames in a file, read when they are asked for; a slice of it is one, too. Made by `FrameStore`."""

    def __init__(self, file: _TemporaryFile, frame_shape: tuple[int, int, int], first: int, last: int) -> None:
        self._file, self._frame_shape, self._first, self._last = file, frame_shape, first, last

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, channels, height and width."""
        return (len(self), *self._frame_shape)

    def __len__(self) -> int:
        return self._last - self._first

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> ClipOnDisk: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | ClipOnDisk:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"a clip on disk is cut in steps of 1; got {step}")
            return ClipOnDisk(self._file, self._frame_shape, self._first + first, self._first + max(first, last))
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"time must be in {-len(self)}..{len(self) - 1}; got {index}")
        size = int(np.prod(self._frame_shape))
        place = (self._first + index % len(self)) * size
        content = self._file.read(place, size)
        if len(content) != size:
            raise OSError(f"the temporary file of frames ended at byte {place + len(content)} of {place + size}")
        return np.frombuffer(content, np.uint8).reshape(self._frame_shape).copy()

    def __array__(self, dtype: np.dtype[np.uint8] | None = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """Return all of it as an array, in memory."""
        return np.stack([self[time] for time in range(len(self))]).astype(dtype or np.uint8, copy=False)


class FrameStore:
    """Frames of one shape, in memory as long as they are few, else in a temporary file.

    The file lies in the folder that the variable TMPDIR names; without it in /var/tmp, since /tmp may itself be in
    memory; else where Python puts temporary files.

    Args:
        frame_shape: channels, height and width of each frame.
        memory_bytes: most bytes of frames that are kept in memory.
        what: names of what the frames are of, for messages.
    """

    def __init__(self, frame_shape: tuple[int, int, int], memory_bytes: int, what: Sequence[str]) -> None:
        self._shape, self._memory_bytes = frame_shape, memory_bytes
        self._what = what[0] if len(what) == 1 else f"{what[0]} and {len(what) - 1} more"
        self._content = bytearray()
        self._file: _TemporaryFile | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame.

        Raises:
            OSError: the disk is full, or the temporary file cannot be written.
        """
        self._count += 1
        if self._file is None and len(self._content) + frame.size <= self._memory_bytes:
            self._content += frame.data
            return
        try:
            if self._file is None:
                self._file = _TemporaryFile()
                self._file.write(self._content)
                self._content = bytearray()
            self._file.write(frame.tobytes())
        except OSError as error:
            raise OSError(
                f"frame {self._count - 1} of {self._what} cannot be kept in {temporary_folder()}: "
                f"{error.strerror or error}; {_MORE_ROOM}"
            ) from error

    def expect(self, size: int) -> None:
        """Refuse, with an OSError, what will need more disk than there is, before any of it is decoded.

        Args:
            size: expected bytes of all frames.
        """
        folder = temporary_folder()
        free = shutil.disk_usage(folder).free
        if size > self._memory_bytes and size > free:
            raise OSError(
                f"the frames of {self._what} need about {size} bytes in {folder}, which has {free} left; {_MORE_ROOM}"
            )

    def finish(self) -> Clip:
        """Return all frames as one clip; nothing may be added after that."""
        if self._file is None:
            return np.frombuffer(self._content, np.uint8).reshape(-1, *self._shape)
        return ClipOnDisk(self._file, self._shape, 0, self._count)


def temporary_folder() -> Path:
    """Return the folder for large temporary files."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK):
        return Path("/var/tmp")
    return Path(tempfile.gettempdir())
