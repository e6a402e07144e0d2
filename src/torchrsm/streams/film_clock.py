"""The number and the time of each frame of a film, and the places where frames are missing.

A film's file holds packets, one for each frame, with time stamps. A packet that cannot be decoded gives no frame, and a
part of the file that is lost takes its packets along. In both cases the frames after it keep their numbers and times.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_REGULAR_INTERVALS = 5  # so many frames at even distances show that a film has a constant rate
_JITTER = Fraction(1, 10)  # of a period; a time stamp may be so much early or late


@dataclass(frozen=True)
class Gap:
    """Frames that are missing, one after the other.

    Attributes:
        first: number of the first one that is missing.
        frames: how many are missing, 1 or more; an estimate where the file holds nothing in their place.
        start: second at which the first one should be shown.
        end: second at which the film goes on, or should have ended.
    """

    first: int
    frames: int
    start: float
    end: float

    def __str__(self) -> str:
        last = self.first + self.frames - 1
        numbers = f"frame {self.first}" if self.frames == 1 else f"frames {self.first} to {last}"
        return f"{numbers} (second {self.start:.2f} to {self.end:.2f})"


class Moment(NamedTuple):
    """When a frame is shown."""

    number: int
    """Of the frame, 0 for the first one of the film; missing ones are counted."""
    time: Fraction
    """Seconds from the beginning of the film; never less than that of the frame before."""
    after_gap: bool
    """Whether frames are missing directly before this one."""


class FilmClock:
    """Turn the time stamps of one passage through a film into numbers and times, and note the gaps.

    Time begins with the first packet. A frame without a stamp follows the one before after one period. A clock that
    goes back, or forward by more than ``longest_still``, was set anew: the film goes on after one period.

    Frames are missing where the stamps leave room for them and either packets with stamps in that room gave no frame,
    or the film has a constant rate and the frame before does not last that long. A film has a constant rate when its
    first frames follow each other at even distances, and until two of them do not.

    Args:
        tick: seconds of one unit of the time stamps.
        period: seconds from frame to frame, on average.
        longest_still: most seconds that one frame is shown.
        origin: second, by the stamps, at which the film begins, for a passage that begins later: its first number then
            follows from its time and the period. None for a passage from the beginning.
    """

    def __init__(
        self, tick: Fraction, period: Fraction, longest_still: Fraction, *, origin: Fraction | None = None
    ) -> None:
        self._tick, self._period, self._longest_still = tick, period, longest_still
        self._enters_late = origin is not None
        self.origin = Fraction(0) if origin is None else origin
        """Second, by the stamps, at which the film begins."""
        self.gaps: list[Gap] = []
        """The places where frames are missing, so far."""
        self._waiting: list[int] = []  # a heap of the stamps of packets whose frames have not come yet
        self._lost = 0  # frames without a stamp, since the frame before
        self._stamp: int | None = None  # of the frame before
        self._lasts = Fraction(0)  # the frame before, as the file has it; 0 if it does not tell
        self._moment: Moment | None = None
        self._regular = 0
        self._constant = True
        self._was_set_anew = False

    def expect(self, stamp: int) -> None:
        """Note a packet, with the stamp of the frame that it should give; it is missing if that frame does not come."""
        heapq.heappush(self._waiting, stamp)

    def lose(self, stamp: int | None) -> None:
        """Note a packet that gave no frame, where it is not known which frame each packet should give."""
        if stamp is None:
            self._lost += 1
        else:
            heapq.heappush(self._waiting, stamp)

    def frame(self, stamp: int | None, duration: int | None = None) -> Moment:
        """Return the number and time of the next frame.

        Args:
            stamp: its time stamp, ticks; None if it has none.
            duration: how long it is to be shown, ticks; None or 0 if the file does not tell.
        """
        missed = self._take_waiting(stamp)
        moment = self._first(stamp, missed) if self._moment is None else self._next(self._moment, stamp, len(missed))
        if stamp is not None:
            self._stamp = stamp
        self._lost = 0
        lasts = max(0, duration or 0) * self._tick
        self._lasts = lasts if lasts <= self._longest_still else Fraction(0)
        self._moment = moment
        return moment

    @property
    def end(self) -> Fraction:
        """Second until which the latest frame is shown."""
        return Fraction(0) if self._moment is None else self._moment.time + (self._lasts or self._period)

    def finish(self, seconds: Fraction | None) -> None:
        """Note what is missing at the end.

        Args:
            seconds: length of the film as its header has it; None if it does not tell, or if all packets were there.
        """
        time, number = self.end, 0 if self._moment is None else self._moment.number + 1
        missing = len(set(self._waiting)) + self._lost
        if self._was_set_anew:
            seconds = None
        if seconds is not None and seconds - time >= max(Fraction(3, 2) * self._period, 2 * self._tick):
            missing = max(missing, round((seconds - time) / self._period))
        self._note_gap(missing, number, time, max(time + missing * self._period, seconds or Fraction(0)))

    def _take_waiting(self, stamp: int | None) -> list[int]:
        """Return the stamps of the packets between the frame before and this one, which gave no frame."""
        if stamp is None:
            return []
        passed = set()
        while self._waiting and self._waiting[0] <= stamp:
            passed.add(heapq.heappop(self._waiting))
        return sorted(one for one in passed if one < stamp and (self._stamp is None or one > self._stamp))

    def _first(self, stamp: int | None, missed: list[int]) -> Moment:
        if self._enters_late:
            time = Fraction(0) if stamp is None else stamp * self._tick - self.origin
            return Moment(max(0, round(time / self._period)), time, False)
        first = stamp
        if stamp is not None and missed and (stamp - missed[0]) * self._tick <= self._longest_still:
            first = missed[0]
        self.origin = Fraction(0) if first is None else first * self._tick
        missing = self._lost if stamp is None else len(missed) if first != stamp else 0
        time = missing * self._period if stamp is None or first is None else (stamp - first) * self._tick
        self._note_gap(missing, 0, Fraction(0), time)
        return Moment(missing, time, missing > 0)

    def _next(self, before: Moment, stamp: int | None, missed: int) -> Moment:
        follows = before.time + self._period
        if stamp is None:
            time = follows + self._lost * self._period
            self._note_gap(self._lost, before.number + 1, follows, time)
            return Moment(before.number + 1 + self._lost, time, self._lost > 0)
        time = stamp * self._tick - self.origin
        if not before.time - 1 <= time <= before.time + self._longest_still:
            self._waiting.clear()
            self._was_set_anew = True
            self.origin += time - follows
            return Moment(before.number + 1, follows, False)
        time = max(time, before.time)
        missing = self._missing(time - before.time, missed)
        self._note_gap(missing, before.number + 1, self.end, time)
        return Moment(before.number + 1 + missing, time, missing > 0)

    def _missing(self, interval: Fraction, missed: int) -> int:
        """Return how many frames are missing in an interval between two frames."""
        tolerance = max(self._period * _JITTER, Fraction(3, 2) * self._tick)
        if abs(interval - self._period) <= tolerance:
            self._regular += 1
            return 0
        periods = round(interval / self._period)
        constant = self._constant and self._regular >= _REGULAR_INTERVALS
        whole = periods > 1 and abs(interval - periods * self._period) <= tolerance
        if constant and whole and self._lasts < interval - self._period / 2:
            return max(periods - 1, missed)
        if missed and interval > (self._lasts or self._period) + tolerance:
            return missed
        self._constant = False
        return 0

    def _note_gap(self, frames: int, first: int, start: Fraction, end: Fraction) -> None:
        if frames > 0:
            self.gaps.append(Gap(first, frames, float(start), float(max(start, end))))
