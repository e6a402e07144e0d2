"""The processes that train one model together, each on its share of the streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together. The default is a process that trains alone.

    Attributes:
        rank: the number of this process, 0 to ``count`` - 1.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def can_be_captured(self) -> bool:
        """Whether `sum` can be a part of a CUDA graph."""
        return self.count == 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place; a process alone leaves them as they are."""
