"""How much one server gives, and how it is shared among its viewers."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much one server gives.

    Attributes:
        viewers: sessions at once.
        trainings: that learn at the same time.
        waiting: trainings that wait for these.
        requests_per_second: of one viewer, on average; four times as many at once.
        upload_bytes: most of a video.
    """

    viewers: int = 32
    trainings: int = 1
    waiting: int = 4
    requests_per_second: float = 40.0
    upload_bytes: int = 32 * 2**20


class Gate:
    """Lets a number of trainings run and a number wait, first come, first served."""

    def __init__(self, running: int, waiting: int) -> None:
        self._running, self._places = running, running + waiting
        self._inside: list[object] = []

    def enter(self, who: object) -> None:
        """Take a place.

        Raises:
            ValueError: all are taken.
        """
        if who in self._inside:
            return
        if len(self._inside) >= self._places:
            raise ValueError(f"at most {self._places} trainings can run or wait at once; please try again later")
        self._inside.append(who)

    def leave(self, who: object) -> None:
        """Give the place back, if one was taken."""
        if who in self._inside:
            self._inside.remove(who)

    def queued(self, who: object) -> int:
        """Return how many trainings come first; 0 for one that may run."""
        return max(0, self._inside.index(who) - self._running + 1) if who in self._inside else 0


class Bucket:
    """Counts the requests that a viewer may still make."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, 4 * rate
        self._left, self._at = self._most, time.monotonic()

    def take(self) -> bool:
        """Count one request; false if it is one too many."""
        now = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
