"""Streams that take turns, so that one model learns from frames of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torchrsm.streams.share import part_of
from torchrsm.streams.stream import Stream, StreamBatch, require_integer, require_settings

FrameShape = tuple[int, int, int]
"""Channels, height and width of frames."""


class Turns:
    """Streams whose frames differ in size, one after the other, a batch each.

    The frames of a batch have one size. Each of the streams goes on where it was at its last turn, so what learns from
    them keeps a state for each of the `frame_shapes`. Start flags are about the stream itself: the first batch of each
    size flags all elements as starts.

    Args:
        streams: in the order of their turns, 1 or more, none of them played by anybody else.

    Raises:
        ValueError: there is none, or two have frames of one shape, or they play different numbers of sequences.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        if not streams:
            raise ValueError("streams must be 1 or more; got none")
        shapes = [stream.frame_shape for stream in streams]
        if len(set(shapes)) < len(shapes):
            raise ValueError(f"streams must have frames of different shapes; got {', '.join(map(str, shapes))}")
        sizes = [stream.batch_size for stream in streams]
        if len(set(sizes)) > 1:
            raise ValueError(f"streams must have one batch_size; got {', '.join(map(str, sizes))}")
        self._streams = tuple(streams)
        self._turn = 0

    @property
    def batch_size(self) -> int:
        """Number of sequences of a batch."""
        return self._streams[0].batch_size

    @property
    def frame_shape(self) -> FrameShape:
        """Channels, height and width of the frames of the next batch."""
        return self._streams[self._turn].frame_shape

    @property
    def frame_shapes(self) -> tuple[FrameShape, ...]:
        """Channels, height and width of the frames of each stream, in the order of the first turns."""
        return tuple(stream.frame_shape for stream in self._streams)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        batch = next(self._streams[self._turn])
        self._turn = (self._turn + 1) % len(self._streams)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: whose turn it is, and the position of each stream."""
        positions = [stream.state_dict() for stream in self._streams]
        return {"stream": "Turns", "turn": self._turn, "streams": positions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned, exactly as if never interrupted.

        Raises:
            ValueError: the position is not one of streams with the same settings.
        """
        positions = state.get("streams")
        count = len(positions) if isinstance(positions, list) else 0
        require_settings(
            {"stream": state.get("stream"), "number of streams": count},
            {"stream": "Turns", "number of streams": len(self._streams)},
        )
        if unknown := sorted(set(state) - {"stream", "turn", "streams"}):
            raise ValueError(f"saved position: unknown entries {unknown}")
        turn = require_integer("saved position: turn", state.get("turn"), 0, len(self._streams) - 1)
        before = self.state_dict()["streams"]
        try:
            for stream, position in zip(self._streams, positions or (), strict=True):
                stream.load_state_dict(position)
        except ValueError:
            for stream, position in zip(self._streams, before, strict=True):
                stream.load_state_dict(position)
            raise
        self._turn = turn

    def part(self, first: int, count: int) -> Turns:
        """Return a stream of some elements of this one alone, from its position on, as `BouncingBalls.part` does."""
        part = Turns([part_of(stream, first, count) for stream in self._streams])
        part._turn = self._turn
        return part


def frame_shapes(stream: Stream) -> tuple[FrameShape, ...]:
    """Return the shapes that the frames of a stream have: one, or several that take turns."""
    return stream.frame_shapes if isinstance(stream, Turns) else (stream.frame_shape,)
