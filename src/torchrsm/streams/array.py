"""Any video array, from memory or from a `.npy` or `.npz` file: check it, read it, play its sequences for ever."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.streams.array_file import ArrayFile
from torchrsm.streams.framing import Framing
from torchrsm.streams.layouts import arrange, check_time_axis, infer_layout, require_layout
from torchrsm.streams.stream import StreamBatch, element_positions, require_boolean, require_integer, saved_step

FrameSource = str | Path | NDArray[Any] | Tensor | Sequence[Any]
"""A `.npy` or `.npz` file, or an array, tensor or nested list, of video frames."""

_AXES = ("sequence", "time", "channel", "row", "column")
_BLOCK_BYTES = 2**24  # of frames that are held at a time, beside those that are kept
_LARGEST_PACKED = 2**32  # bytes
_WHITE = np.float32(255)
_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def load_frames(source: FrameSource, *, layout: str | None = None) -> Tensor:
    """Return the frames of an array or of a `.npy` or `.npz` file.

    Pickled objects are never loaded. A `.npz` file must hold a single array, or one named ``frames``;
    ``file.npz:name`` chooses another.

    Args:
        source: path, array, tensor or nested list of frames: floating-point in 0..1; uint8, which is divided by 255; or
            bool, which is 0 and 1. Axes: ``[time, height, width]``, ``[sequences, time, height, width]`` or
            ``[sequences, time, channels, height, width]``; with channels last, ``[time, height, width, channels]`` or
            ``[sequences, time, height, width, channels]``, where 4 channels are colour and alpha, and are laid on
            black. `torchrsm.streams.layouts.infer_layout` says how they are told apart.
        layout: what each axis is, where the shape does not tell: letters of ``n`` sequence, ``t`` time, ``c`` channel,
            ``h`` row, ``w`` column, such as ``thwc``, or ``tnhw`` for time first.

    Returns:
        A copy, ``[sequences, time, channels, height, width]`` float32 in 0..1.

    Raises:
        ValueError: the file is missing, truncated or not of this kind; or the frames are empty, are of a shape that may
            mean several things, have another number of dimensions or another type, or have a value that is not finite
            or outside 0..1 (the message says where).
    """
    frames = _OpenArray(source, layout)
    array = frames.array()
    result = torch.empty(frames.shape)
    for block in frames.blocks():
        result.numpy()[block] = frames.unit(array[block])
    return result


def open_frames(path: str | Path, layout: str | None = None) -> FrameFile:
    """Open the frames of a `.npy` or `.npz` file without loading them; see `load_frames` for what it may hold.

    Floating-point values are read once to check them. Of a `.npy` only what is asked for is read, and nothing is kept.
    All of a `.npz`, which is packed, is read at once and stays in memory, in its own type: 4 GiB at most.

    Raises:
        ValueError: as for `load_frames`.
    """
    return FrameFile(path, layout)


class FrameFile:
    """The frames of a `.npy` or `.npz` file, read in parts; made by `open_frames`."""

    def __init__(self, path: str | Path, layout: str | None = None) -> None:
        file = ArrayFile(path)
        if not file.is_mapped and file.nbytes > _LARGEST_PACKED:
            raise ValueError(
                f"{file.name} must unpack to at most {_LARGEST_PACKED} bytes, which stay in memory; got "
                f"{file.nbytes}: save it as .npy, which is read in parts"
            )
        self._frames = _OpenArray(file, layout)

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self._frames.name

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sequences, time, channels, height and width."""
        return self._frames.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values in the file."""
        return self._frames.dtype

    def read(self, sequence: int, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Return the frames of a sequence from time ``first`` to before ``last``.

        Returns:
            ``[time, channels, height, width]`` float32 in 0..1; the caller's to change.

        Raises:
            ValueError: the sequence or a time is outside of the file, which was changed since, or cut.
        """
        return self._frames.unit(self._part(sequence, first, last))

    def read_bytes(self, sequence: int, first: int = 0, last: int | None = None) -> NDArray[np.uint8]:
        """Return the same frames in 256 steps, 255 for 1: uint8 as in the file, other types rounded."""
        part = self._part(sequence, first, last)
        if part.dtype == np.uint8 and not self._frames.has_alpha:
            return np.array(part, order="C")
        steps: NDArray[np.uint8] = np.rint(self._frames.unit(part) * _WHITE).astype(np.uint8)
        return steps

    def _part(self, sequence: int, first: int, last: int | None) -> NDArray[Any]:
        sequences, length = self.shape[:2]
        sequence = require_integer("sequence", sequence, 0, sequences - 1)
        first = require_integer("first", first, 0, length)
        last = length if last is None else require_integer("last", last, first, length)
        part: NDArray[Any] = self._frames.array()[sequence, first:last]
        self._frames.check_values(part[None], sequence, first)
        return part


class ArrayReader:
    """The frames of one sequence of a file, framed; the file is opened for each few of them.

    Args:
        frames: the opened file; frames of 1 or 3 channels.
        sequence: which sequence, from 0.
        framing: how a picture becomes a frame.

    Raises:
        ValueError: the file has no such sequence, another number of channels, or pictures that the framing refuses.
    """

    def __init__(self, frames: FrameFile, sequence: int, framing: Framing) -> None:
        sequences, self._length, channels, height, width = frames.shape
        self._frames, self._framing = frames, framing
        self._sequence = require_integer("sequence", sequence, 0, sequences - 1)
        if channels not in (1, 3):
            raise ValueError(f"{frames.name} must have frames of 1 or 3 channels; got {channels}")
        try:
            self._shape = framing.shape(height, width)
        except ValueError as error:
            raise ValueError(f"{frames.name}: {error}") from None
        self._block = max(1, _BLOCK_BYTES // (channels * height * width))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._shape

    @property
    def frame_count(self) -> int:
        """How many frames the sequence has."""
        return self._length

    @property
    def frames_per_second(self) -> None:
        """None: arrays have no rate."""
        return None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, ``[channels, height, width]`` each; they are the caller's to change."""
        for first in range(0, self._length, self._block):
            for frame in self._frames.read_bytes(self._sequence, first, min(first + self._block, self._length)):
                picture = frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)
                yield self._framing.frame(picture, self._shape)


class ArrayStream:
    """Play the sequences of an array for ever.

    Element i of the batch plays the sequences i, i + batch, i + 2 batch, ... modulo the number of sequences. The
    ``index`` of a batch is the sequence's place in the array.

    Args:
        source: what `load_frames` accepts.
        batch_size: sequences played side by side, 1 or more; elements beyond the number of sequences repeat them.
        dephased: whether element i begins i mod time frames into its first sequence, so that not all elements start
            anew at the same step.
        layout: of the axes, as `load_frames` explains it.

    Raises:
        ValueError: an argument is outside its range, or `load_frames` refuses the source.
    """

    def __init__(
        self, source: FrameSource, batch_size: int = 1, *, dephased: bool = False, layout: str | None = None
    ) -> None:
        self._batch_size = require_integer("batch_size", batch_size, 1)
        self._dephased = require_boolean("dephased", dephased)
        self._frames = load_frames(source, layout=layout)
        self._step = 0

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        return self._batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        _, _, channels, height, width = self._frames.shape
        return (channels, height, width)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        sequences, length = self._frames.shape[:2]
        numbers, times = element_positions(self._step, self._batch_size, length, self._dephased)
        starts = (times == 0) | (self._step == 0)
        index = torch.from_numpy(numbers % sequences)
        self._step += 1
        return StreamBatch(self._frames[index, torch.from_numpy(times)], torch.from_numpy(starts), index)

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings, a digest of the frames, the batches played."""
        return {**self._settings, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings and frames.
        """
        self._step = saved_step(state, self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {
            "stream": "ArrayStream",
            "batch_size": self._batch_size,
            "dephased": self._dephased,
            "shape": list(self._frames.shape),
            "frames_sha256": hashlib.sha256(self._frames.numpy().data).hexdigest(),
        }


class _OpenArray:
    """An array of frames, of a file or in memory, whose type, layout and values were checked; nothing is copied."""

    def __init__(self, source: FrameSource | ArrayFile, layout: str | None) -> None:
        if isinstance(source, str | Path):
            source = ArrayFile(source)
        self._source: ArrayFile | NDArray[Any] = source if isinstance(source, ArrayFile) else _in_memory(source)
        self.name = self._source.name if isinstance(self._source, ArrayFile) else "frames"
        self._kept: NDArray[Any] | None = None
        stored, self.dtype = self._source.shape, self._source.dtype
        if layout is not None:
            require_layout(layout, len(stored))
        if 0 in stored:
            raise ValueError(f"{self.name} must not be empty; got shape {list(stored)}")
        self._layout = infer_layout(self.name, stored) if layout is None else layout
        if self.dtype not in (np.uint8, np.bool_) and self.dtype.kind != "f":
            raise self._wrong_type()
        array = self.array()
        # Colours of other libraries have alpha last; 4 channels in front of the rows are 4 channels.
        self.has_alpha = self._layout.endswith("c") and array.shape[2] == 4
        sequences, length, channels, height, width = array.shape
        self.shape = (sequences, length, 3 if self.has_alpha else channels, height, width)
        for block in self.blocks() if self.dtype.kind == "f" else ():
            # Opened anew for each, so that what was read of a large file does not stay in memory.
            self.check_values(self.array()[block], *(part.start for part in block))
        if layout is None:
            check_time_axis(self.name, stored, self._layout, array)

    def array(self) -> NDArray[Any]:
        """Return all frames, ``[sequences, time, channels, height, width]``, as they are stored, not to be changed."""
        if isinstance(self._source, np.ndarray):
            return arrange(self._source, self._layout)
        if self._source.is_mapped:
            return arrange(self._source.read(), self._layout)
        if self._kept is None:
            self._kept = arrange(self._source.read(), self._layout)
        return self._kept

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Divide the frames, by sequence and time, into parts that take little memory."""
        sequences, length, *size = self.shape
        frame_bytes = math.prod(size) * max(self.dtype.itemsize, 4)
        times = min(length, max(1, _BLOCK_BYTES // frame_bytes))
        together = max(1, _BLOCK_BYTES // (frame_bytes * length))
        for sequence in range(0, sequences, together):
            for time in range(0, length, times):
                yield slice(sequence, sequence + together), slice(time, time + times)

    def unit(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """Return some of the frames, ``[..., channels, height, width]``, in 0..1."""
        unit: NDArray[np.float32] = frames.astype(np.float32, order="C")
        if frames.dtype == np.uint8:
            unit /= _WHITE
        return unit[..., :3, :, :] * unit[..., 3:, :, :] if self.has_alpha else unit

    def _wrong_type(self) -> ValueError:
        hint = ""
        if self.dtype.kind in "iu":
            # Which integer is white cannot be told: 1, 255, 4095, the largest of all frames or of the type.
            array = self._source if isinstance(self._source, np.ndarray) else self._source.read()
            low, high = int(array.min()), int(array.max())
            advice = "divide by the value of white"
            if low >= 0 and high <= 255:
                advice = "convert masks to bool" if high <= 1 else "convert to uint8 if 255 is white"
            hint = f" with values {low}..{high}: {advice}"
        return ValueError(f"{self.name} must be floating-point in 0..1 or uint8 or bool; got {self.dtype}{hint}")

    def check_values(self, frames: NDArray[Any], sequence: int, time: int) -> None:
        """Raise a ValueError if frames from some sequence and time on, all axes given, are not all in 0..1."""
        if frames.dtype.kind != "f" or frames.size == 0:
            return
        with np.errstate(invalid="ignore"):
            low, high = frames.min(), frames.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{self.name} must be finite; got {_first(frames, ~np.isfinite(frames), sequence, time)}")
        if low < 0 or high > 1:
            offender = _first(frames, (frames < 0) | (frames > 1), sequence, time)
            hint = ""
            if low >= 0:
                hint = "; divide by 255 if 255 is white" if high <= 255 else "; divide by the value of white"
            raise ValueError(
                f"{self.name} must be within 0..1; got minimum {low:g}, maximum {high:g}, first {offender}{hint}"
            )


def _in_memory(source: Any) -> NDArray[Any]:
    """Return an array, tensor or nested list as an array, without a copy if possible."""
    try:
        if isinstance(source, list | tuple):
            source = [_in_memory(item) if isinstance(item, Tensor) else item for item in source]
        if isinstance(source, Tensor):
            source = source.detach().to_dense() if source.layout != torch.strided else source.detach()
            source = source.cpu().resolve_conj().resolve_neg()
            # NumPy has no bfloat16 and no 8-bit floats.
            source = source.float() if source.is_floating_point() and source.dtype not in _NUMPY_FLOATS else source
            return np.asarray(source.numpy())
        if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
            raise ValueError("some values are masked, fill them first")
        array = np.asarray(source)
    except Exception as error:  # tensors of the device meta, ragged lists and objects fail in a dozen ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"frames must be a path, an array, a tensor or a nested list of one shape; got "
            f"{type(source).__name__}: {reason}"
        ) from error
    if array.dtype.hasobject:
        raise ValueError(f"frames must be an array of numbers; got {type(source).__name__} of Python objects")
    return array


def _first(array: NDArray[Any], chosen: NDArray[np.bool_], sequence: int, time: int) -> str:
    """Describe the first chosen value and where it is, of frames from some sequence and time on."""
    place = np.unravel_index(int(np.argmax(chosen)), array.shape)
    shown = zip(_AXES, place, (sequence, time, 0, 0, 0), strict=True)
    return f"{array[place]:g} at " + ", ".join(f"{axis} {i + offset}" for axis, i, offset in shown)
