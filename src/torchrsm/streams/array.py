"""Any video array, from memory or from a `.npy` or `.npz` file: check it, and play its sequences for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.streams.stream import StreamBatch, element_positions, require_boolean, require_integer, saved_step

FrameSource = str | Path | NDArray[Any] | Tensor
"""A `.npy` or `.npz` file, or an array, of video frames."""

_AXES = ("sequence", "time", "channel", "row", "column")


def load_frames(source: FrameSource) -> Tensor:
    """Return the frames of an array or of a `.npy` or `.npz` file.

    Pickled objects are never loaded. A `.npz` file must hold a single array, or one named ``frames``.

    Args:
        source: path or array of shape ``[sequences, time, height, width]`` or ``[sequences, time, channels, height,
            width]``, floating-point in 0..1, or uint8, which is divided by 255.

    Returns:
        A copy, ``[sequences, time, channels, height, width]`` float32 in 0..1.

    Raises:
        ValueError: the file is missing, truncated or not of this kind; or the frames are empty, have another number of
            dimensions or another type, or have a value that is not finite or outside 0..1 (the message says where).
    """
    if isinstance(source, str | Path):
        name, array = str(source), _read(Path(source))
    else:
        name, array = "frames", np.asarray(source.detach().cpu() if isinstance(source, Tensor) else source)
    if array.ndim not in (4, 5):
        raise ValueError(
            f"{name} must be [sequences, time, height, width] or [sequences, time, channels, height, width], "
            f"received shape {list(array.shape)}"
        )
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, received shape {list(array.shape)}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{name} must be floating-point in 0..1 or uint8, received {array.dtype}")
    array = array[:, :, None] if array.ndim == 4 else array
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32, order="C") / np.float32(255))
    if not (finite := np.isfinite(array)).all():
        raise ValueError(f"{name} must be finite, received {_first(array, ~finite)}")
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        offender = _first(array, (array < 0) | (array > 1))
        raise ValueError(f"{name} must be within 0..1, received minimum {low:g}, maximum {high:g}, first {offender}")
    return torch.from_numpy(array.astype(np.float32, order="C"))


class ArrayStream:
    """Play the sequences of an array for ever.

    Element i of the batch plays the sequences i, i + batch, i + 2 batch, ... modulo the number of sequences. The
    ``index`` of a batch is the sequence's place in the array.

    Args:
        source: what `load_frames` accepts.
        batch_size: sequences played side by side, 1 or more; elements beyond the number of sequences repeat them.
        dephased: whether element i begins i mod time frames into its first sequence, so that not all elements start
            anew at the same step.

    Raises:
        ValueError: an argument is outside its range, or `load_frames` refuses the source.
    """

    def __init__(self, source: FrameSource, batch_size: int = 1, *, dephased: bool = False) -> None:
        self._batch_size = require_integer("batch_size", batch_size, 1)
        self._dephased = require_boolean("dephased", dephased)
        self._frames = load_frames(source)
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


def _read(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise ValueError(f"{path} must be an existing .npy or .npz file, received {_kind(path)}")
    try:
        with path.open("rb") as file:  # opened here: np.load leaves a broken .npz open
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            keys = loaded.files
            key = "frames" if "frames" in keys else keys[0] if len(keys) == 1 else None
            if key is not None:
                return np.asarray(loaded[key])
    except Exception as error:  # a broken file breaks the parsers of zip, zlib and npy in a dozen ways
        raise ValueError(f"{path} must be a complete .npy or .npz file without pickled objects: {error}") from error
    raise ValueError(f"{path} must hold one array, or one named 'frames', received {keys}")


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "something else" if path.exists() else "nothing at that path"


def _first(array: NDArray[Any], chosen: NDArray[np.bool_]) -> str:
    """Describe the first chosen value and where it is."""
    place = np.unravel_index(int(np.argmax(chosen)), array.shape)
    return f"{array[place]:g} at " + ", ".join(f"{axis} {i}" for axis, i in zip(_AXES, place, strict=True))
