"""What a stream of frames is: batches without end, start flags, and a position that can be saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_STATE_BYTES = 65536


class StreamBatch(NamedTuple):
    """One frame of each of the streams that are played side by side."""

    frames: Tensor
    """``[batch, channels, height, width]`` float32 in 0..1."""
    starts: Tensor
    """``[batch]`` bool, true where nothing of the frame's sequence was seen before, so any memory must be dropped."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """``[batch]`` int64, number of the sequence that the frame belongs to."""
    seen: Tensor | None = None
    """``[batch, 1, height, width]`` bool, true where the frame shows something; None where it does so everywhere."""
    symbols: Tensor | None = None
    """``[batch]`` int64, the symbol that each frame shows, from 0; None where frames are no symbols."""


@runtime_checkable
class Stream(Protocol):
    """An iterator of `StreamBatch` that owns its randomness and can save its position.

    All frames have one shape, but for those of streams that take turns (`torchrsm.streams.turns`).

    The first batch of a new stream flags every element as a start, even one that begins in the middle of its sequence.
    A batch is never overwritten by a later one. Only a finite stream raises `StopIteration`; those of this package are
    infinite.
    """

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        ...

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames of the next batch."""
        ...

    def __iter__(self) -> Self: ...

    def __next__(self) -> StreamBatch: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch, small and ready for JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings.
        """
        ...


@runtime_checkable
class StreamInPlace(Stream, Protocol):
    """A stream that is made on the device of a model, so that a step of it can be recorded and replayed.

    `Stream.__next__` does `prepare` and `advance`, and returns copies.
    """

    @property
    def batch(self) -> StreamBatch:
        """What `advance` wrote last: the same tensors after each step."""
        ...

    def prepare(self) -> None:
        """Do the host's part of the next step, before it."""
        ...

    def advance(self) -> None:
        """Write the next frames to `batch` by tensor operations alone, all in place."""
        ...


def check_stream(stream: Stream, steps: int = 250) -> None:
    """Play a stream and verify that it keeps the contract of `Stream`.

    Verified on each batch: types, shapes, finite values in 0..1, start flags on the first batch and wherever the index
    changes; where streams take turns, among the batches of one shape. Verified on the whole: a position saved at the
    start and half-way survives JSON and brings back exactly the same batches, a foreign position is refused, and no
    batch is overwritten by a later one.

    Args:
        stream: a stream that has not been played yet. It is put back to its start.
        steps: the number of batches to play, at least 2; all of them are kept in memory. Two sequences' length is a
            good choice.

    Raises:
        ValueError: a clause is violated; the message says which one, and at which batch.
    """
    require_integer("steps", steps, 2)
    _check_shape(stream)
    if iter(stream) is not stream:
        raise ValueError("check_stream: iter(stream) must return the stream itself")

    start = _saved_position(stream)
    first_half = _play(stream, steps // 2, 0)
    middle = _saved_position(stream)
    played = first_half + _play(stream, steps - len(first_half), len(first_half))
    if not played:
        raise ValueError("check_stream: the stream must have at least one batch; got none")
    previous: dict[torch.Size, StreamBatch] = {}  # by the shape of the frames
    for number, (batch, digest) in enumerate(played):
        if _digest(batch) != digest:
            raise ValueError(f"check_stream: batch {number} was overwritten by a later batch; it must own its memory")
        _check_starts(number, batch, previous.get(batch.frames.shape))
        previous[batch.frames.shape] = batch

    try:
        stream.load_state_dict({"stream": "a foreign stream"})
    except ValueError:
        pass
    else:
        raise ValueError("check_stream: load_state_dict must refuse a foreign position with a ValueError")
    for position, offset in ((middle, len(first_half)), (start, 0)):
        stream.load_state_dict(json.loads(position))
        if _saved_position(stream) != position:
            raise ValueError("check_stream: a position must be the same when saved again after it was restored")
        replayed = _play(stream, len(played) - offset, offset)
        if len(replayed) != len(played) - offset:
            raise ValueError(f"check_stream: the stream ends too early after the position at {offset} was restored")
        for number, (_, digest) in enumerate(replayed, start=offset):
            if digest != played[number][1]:
                raise ValueError(f"check_stream: batch {number} differs after the position at {offset} was restored")
    stream.load_state_dict(json.loads(start))


def element_positions(
    step: int, batch_size: int, sequence_length: int, dephased: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what each element of a batch plays at a step: the number of its sequence and the time in it.

    Element i plays the sequences i, i + batch, i + 2 batch, ... one after the other. De-phased, it begins its first one
    at time ``i mod sequence_length`` instead of 0, so that the starts are spread over the steps.

    Args:
        step: number of batches played before, 0 or more.
        batch_size: number of elements.
        sequence_length: frames in each sequence.
        dephased: whether element i begins in the middle of its first sequence.

    Returns:
        Numbers of the sequences and times, 0 to ``sequence_length - 1``, both ``[batch]`` int64.
    """
    element = np.arange(batch_size, dtype=np.int64)
    played = step + (element % sequence_length if dephased else np.zeros_like(element))
    return element + batch_size * (played // sequence_length), played % sequence_length


def saved_step(state: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Return the ``step`` of a saved position after comparing all its other entries with a stream's own settings.

    Raises:
        ValueError: the position belongs to a stream with other settings, or has no valid step.
    """
    require_settings({name: value for name, value in state.items() if name != "step"}, settings)
    return require_integer("saved position: step", state.get("step"), 0, 2**48)


def require_settings(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compare the settings in a saved position with a stream's own, or raise a ValueError that names the difference."""
    for name, value in settings.items():
        if name not in saved or saved[name] != value:
            received = repr(saved[name]) if name in saved else "nothing"
            raise ValueError(f"saved position: {name} must be {value!r} as in this stream; got {received}")
    if unknown := sorted(set(saved) - set(settings)):
        raise ValueError(f"saved position: unknown entries {unknown}")


def require_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int, or raise a ValueError if it is not an integer in ``low..high``."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not integer or value < low or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be an integer {bounds}; got {value!r}")
    return int(value)


def require_boolean(name: str, value: Any) -> bool:
    """Return ``value``, or raise a ValueError if it is not True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}")
    return value


def _check_shape(stream: Stream) -> None:
    require_integer("check_stream: batch_size", stream.batch_size, 1)
    shape = stream.frame_shape
    if not isinstance(shape, tuple) or len(shape) != 3:
        raise ValueError(f"check_stream: frame_shape must be (channels, height, width); got {shape!r}")
    for name, size in zip(("channels", "height", "width"), shape, strict=True):
        require_integer(f"check_stream: frame_shape: {name}", size, 1)


def _saved_position(stream: Stream) -> str:
    try:
        position = json.dumps(stream.state_dict(), sort_keys=True)
    except TypeError as error:
        raise ValueError(f"check_stream: state_dict must be ready for JSON: {error}") from error
    if len(position) > MAX_STATE_BYTES:
        raise ValueError(
            f"check_stream: state_dict must take at most {MAX_STATE_BYTES} bytes of JSON; got {len(position)}"
        )
    return position


def _play(stream: Stream, steps: int, number: int) -> list[tuple[StreamBatch, bytes]]:
    """Return up to ``steps`` batches from ``number`` on, each checked and with its digest at the time of receipt."""
    batches: list[tuple[StreamBatch, bytes]] = []
    for _ in range(steps):
        shape = (stream.batch_size, *stream.frame_shape)
        try:
            batch = next(stream)
        except StopIteration:
            break
        _check_batch(number + len(batches), batch, shape)
        batches.append((batch, _digest(batch)))
    return batches


def _digest(batch: StreamBatch) -> bytes:
    digest = hashlib.sha256()
    for value in batch:
        if value is not None:
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _check_batch(number: int, batch: StreamBatch, shape: tuple[int, int, int, int]) -> None:
    where = f"check_stream: batch {number}:"
    if not isinstance(batch, StreamBatch):
        raise ValueError(f"{where} must be a StreamBatch; got {type(batch).__name__}")
    expected = {"frames": (shape, torch.float32), "starts": (shape[:1], torch.bool), "index": (shape[:1], torch.int64)}
    if batch.seen is not None:
        expected["seen"] = ((shape[0], 1, *shape[2:]), torch.bool)
    if batch.symbols is not None:
        expected["symbols"] = (shape[:1], torch.int64)
    for name, (expected_shape, dtype) in expected.items():
        value = getattr(batch, name)
        if not isinstance(value, Tensor):
            raise ValueError(f"{where} {name} must be a tensor; got {type(value).__name__}")
        if tuple(value.shape) != expected_shape or value.dtype != dtype:
            raise ValueError(
                f"{where} {name} must be {dtype} of shape {expected_shape}; "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
    if not bool(torch.isfinite(batch.frames).all()):
        raise ValueError(f"{where} frames must be finite; got NaN or infinity")
    low, high = float(batch.frames.min()), float(batch.frames.max())
    if low < 0 or high > 1:
        raise ValueError(f"{where} frames must be within 0..1; got {low:g}..{high:g}")
    for name in ("index", "symbols"):
        numbers = getattr(batch, name)
        if numbers is not None and int(numbers.min()) < 0:
            raise ValueError(f"{where} {name} must be 0 or more; got {int(numbers.min())}")


def _check_starts(number: int, batch: StreamBatch, previous: StreamBatch | None) -> None:
    must_start = torch.ones_like(batch.starts) if previous is None else batch.index != previous.index
    missing = torch.nonzero(must_start & ~batch.starts).flatten().tolist()
    if missing:
        why = "on the first batch" if previous is None else "where the index changes"
        raise ValueError(f"check_stream: batch {number}: starts must be true {why}; got false at element {missing[0]}")
