"""The part of a stream that one of several processes plays."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Protocol, Self, runtime_checkable

from torchrsm.state import map_state
from torchrsm.streams.stream import Stream, StreamBatch


@runtime_checkable
class _Divisible(Protocol):
    """A stream that plays a part of itself at the cost of that part."""

    def part(self, first: int, count: int) -> Stream: ...


def share_of(stream: Stream, rank: int, ranks: int) -> Stream:
    """Return the part that process ``rank`` of ``ranks`` plays: as many elements each, in the order of the processes.

    All parts side by side are the whole, bit by bit. The position that a part saves is that of the whole.

    Args:
        stream: the whole, played by nobody else.
        rank: 0 to ``ranks`` - 1.
        ranks: number of processes.

    Raises:
        ValueError: the elements cannot be shared out evenly.
    """
    if ranks == 1:
        return stream
    if stream.batch_size % ranks:
        raise ValueError(f"batch_size must be a multiple of the number of ranks, {ranks}; got {stream.batch_size}")
    count = stream.batch_size // ranks
    return part_of(stream, rank * count, count)


def part_of(stream: Stream, first: int, count: int) -> Stream:
    """Return a stream of some elements of another, from its position on, bit by bit as they are played there.

    Args:
        stream: the whole, played by nobody else.
        first: the first element, 0 or more.
        count: how many, 1 or more.

    Raises:
        ValueError: there are no such elements.
    """
    return stream.part(first, count) if isinstance(stream, _Divisible) else Share(stream, first, count)


class Share:
    """Some elements of any stream, which is played whole.

    Args:
        stream: the whole.
        first: the first element of the part, 0 or more.
        count: elements of the part, 1 or more.

    Raises:
        ValueError: the whole has no such elements.
    """

    def __init__(self, stream: Stream, first: int, count: int) -> None:
        check_part(stream.batch_size, first, count)
        self._stream = stream
        self._elements = slice(first, first + count)
        self._count = count

    @property
    def batch_size(self) -> int:
        """Number of sequences of the part."""
        return self._count

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._stream.frame_shape

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        return map_state(itemgetter(self._elements), next(self._stream))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the whole."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position of the whole.

        Raises:
            ValueError: the position is not one of such a stream.
        """
        self._stream.load_state_dict(state)


def check_part(batch_size: int, first: int, count: int) -> None:
    """Raise a ValueError unless the elements from ``first`` on, ``count`` of them, are among ``batch_size``."""
    if first < 0 or count < 1 or first + count > batch_size:
        raise ValueError(f"a part must be among the elements 0..{batch_size - 1}; got {count} from {first}")
