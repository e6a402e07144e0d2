"""The processes that work together, on one model or on one list of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the command line knows `LostRankError` before anything heavy is imported
    from torch import Tensor

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class LostRankError(ConnectionError):
    """Another process has died, failed or does not answer, so this one cannot go on.

    Attributes:
        speaks: whether this process is the one of those left that tells the user.
    """

    def __init__(self, message: str, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that work together. The default is a process alone.

    Each of them calls the same methods in the same order. `torchrsm.learning.distributed.joined` gives one that reaches
    the others, whose methods raise a `LostRankError` where one of them is gone.

    Attributes:
        rank: the number of this process, 0 to ``count`` - 1. Rank 0 writes and prints.
        count: how many there are.
        local_rank: the number of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def can_be_captured(self) -> bool:
        """Whether `sum` can be a part of a CUDA graph."""
        return self.count == 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place; a process alone leaves them as they are."""

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each of a few numbers, in double precision."""
        return list(numbers)

    def everyone(self, value: _T) -> list[_T]:
        """Return the value of each process, in their order."""
        return [value]

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returns on rank 0, the only one to call it; what it raises there all of them raise."""
        return make()

    def map(self, function: Callable[[_Item], _T], items: Sequence[_Item]) -> list[_T]:
        """Return ``function`` of each item, in their order; each process works on its share of them."""
        return [function(item) for item in items]

    def wait(self) -> None:
        """Wait until all processes have come here, for as long as it takes."""
