"""N-grams with interpolated, modified Kneser-Ney smoothing: what counting the last symbols can tell.

Source: Stanley Chen, Joshua Goodman, "An empirical study of smoothing techniques for language modeling", Computer
Speech and Language 13, 1999: the discounts of their section 4.1, continuation counts below the highest order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrsm.baselines.sequence_model import Predicted
from torchrsm.predictor import check_frame, check_shape
from torchrsm.scoring.words import Expected, rows_of
from torchrsm.streams.words import END, Text, TextSplit

START = -1
"""Stands before the first symbol of a sequence."""

_Context = tuple[int, ...]


class _Followers(NamedTuple):
    """What follows a context.

    Attributes:
        counts: of each symbol.
        total: their sum.
        kept: how much of the probability is left to the shorter context.
    """

    counts: dict[int, int]
    total: int
    kept: float


class KneserNey:
    """Probabilities of the next symbol by the counts of n-grams.

    Args:
        order: of the longest n-grams, 1 or more: the last ``order - 1`` symbols are looked at.
        symbols: how many there are, numbered from 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, order: int, symbols: int) -> None:
        for name, value in (("order", order), ("symbols", symbols)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}")
        self.order, self.symbols = order, symbols
        self._counted: dict[_Context, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._tables: list[dict[_Context, _Followers]] = []
        self._discounts: list[tuple[float, float, float]] = []

    def count(self, sequence: Iterable[int]) -> None:
        """Count the n-grams of a sequence, 0 or more symbols.

        Raises:
            ValueError: a symbol is out of its range.
        """
        seen = [START] * (self.order - 1)
        for symbol in sequence:
            if not 0 <= symbol < self.symbols:
                raise ValueError(f"symbols must be in 0..{self.symbols - 1}; got {symbol}")
            self._counted[tuple(seen)][symbol] += 1
            seen = [*seen[1:], symbol] if seen else seen
        self._tables = []

    def _smooth(self) -> None:
        """Make the tables of all orders from the counts."""
        counts: dict[_Context, dict[int, int]] = self._counted
        tables, discounts = [], []
        for _ in range(self.order):
            discount = _discounts(counts)
            table = {}
            for context, followers in counts.items():
                total = sum(followers.values())
                taken = sum(discount[min(count, 3) - 1] for count in followers.values())
                table[context] = _Followers(dict(followers), total, taken / total)
            tables.append(table)
            discounts.append(discount)
            counts = _continuations(counts)
        self._tables, self._discounts = tables[::-1], discounts[::-1]  # by the length of the context

    def probability(self, symbol: int, history: Sequence[int]) -> float:
        """Return how likely a symbol is after the last symbols; before the first stands `START`, as often as needed."""
        if not self._tables:
            self._smooth()
        likely = 1 / self.symbols
        for length, (table, discount) in enumerate(zip(self._tables, self._discounts, strict=True)):
            found = table.get(self._context(history, length))
            if found is None:
                break
            count = found.counts.get(symbol, 0)
            own = (count - discount[min(count, 3) - 1]) / found.total if count else 0.0
            likely = own + found.kept * likely
        return likely

    def probabilities(self, history: Sequence[int]) -> list[float]:
        """Return how likely each symbol is after the last symbols."""
        return [self.probability(symbol, history) for symbol in range(self.symbols)]

    def _context(self, history: Sequence[int], length: int) -> _Context:
        if length == 0:
            return ()
        known = tuple(history[-length:])
        return (START,) * (length - len(known)) + known


def _continuations(counts: dict[_Context, dict[int, int]]) -> dict[_Context, dict[int, int]]:
    """Return, for contexts shorter by their first symbol, how many different symbols stood before each n-gram."""
    found: dict[_Context, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for context, followers in counts.items():
        for symbol in followers:
            found[context[1:]][symbol] += 1
    return found


def _discounts(counts: dict[_Context, dict[int, int]]) -> tuple[float, float, float]:
    """Return what is taken from counts of 1, of 2, and of 3 and more."""
    how_many = [0] * 5
    for followers in counts.values():
        for count in followers.values():
            if count < 5:
                how_many[count] += 1
    one, two, three, four = how_many[1:]
    if not (one and two and three and four):
        return (0.5, 0.75, 0.9)  # too few to estimate them: everything was seen often, or hardly anything was
    y = one / (one + 2 * two)
    found = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
    return tuple(min(max(value, 0.0), level - 0.01) for level, value in enumerate(found, 1))  # type: ignore[return-value]


class NGramState(NamedTuple):
    """The last symbols, the latest last, ``[b, order - 1]`` int64; `START` where there was none."""

    symbols: Tensor


class NGramPredictor:
    """A `torchrsm.predictor.Predictor` of frames with a channel for each symbol, ``[b, symbols, 1, 1]``.

    Args:
        counts: what it knows.
    """

    def __init__(self, counts: KneserNey) -> None:
        self.counts = counts
        self._known: dict[_Context, list[float]] = {}

    def initial_state(self, shape: tuple[int, int, int, int]) -> NGramState:
        """Return no symbols.

        Raises:
            ValueError: the frames have no channel for each symbol.
        """
        batch, *frame = check_shape(shape)
        if frame != [self.counts.symbols, 1, 1]:
            raise ValueError(f"n-grams read frames of {self.counts.symbols} x 1 x 1; got {' x '.join(map(str, frame))}")
        return NGramState(torch.full((batch, self.counts.order - 1), START))

    def predict(self, state: NGramState) -> Predicted:
        """Return how likely each symbol is, as the frame and as `Predicted.symbols`."""
        likely = torch.tensor([self._of(tuple(row)) for row in state.symbols.tolist()])
        return Predicted(likely[:, :, None, None], symbols=likely.log())

    def observe(self, frame: Tensor, prediction: Predicted, state: NGramState) -> NGramState:
        """Return the state after a frame, whose symbol is that of its largest channel."""
        symbol = check_frame(frame, prediction.frame)[:, :, 0, 0].argmax(1, keepdim=True)
        return NGramState(torch.cat((state.symbols, symbol), 1)[:, 1:] if self.counts.order > 1 else state.symbols)

    def _of(self, history: _Context) -> list[float]:
        if history not in self._known:
            self._known[history] = self.counts.probabilities(history)
        return self._known[history]


def count_sentences(order: int, text: Text) -> KneserNey:
    """Count the n-grams of the training part of a text, each sentence by itself.

    Args:
        order: of the longest n-grams, 1 or more.
        text: whose words are counted.
    """
    counts, end = KneserNey(order, len(text.words)), text.words.index(END)
    for sentence in np.split(text.train, np.flatnonzero(text.train == end) + 1):
        counts.count(sentence.tolist())
    return counts


def expected_by_counts(counts: KneserNey, text: Text, split: TextSplit) -> Expected:
    """Read a part of a text as `torchrsm.scoring.words.expected_by` does, by n-grams; each sentence begins anew."""
    part = text.part(split)
    readers, steps = rows_of(len(part))
    end = text.words.index(END)
    begins = np.arange(readers) * len(part) // readers
    rows = np.stack([part[begin : begin + steps] for begin in begins])
    likely = np.empty((readers, steps - 1))
    for row, found in zip(rows.tolist(), likely, strict=True):
        sentence = 0
        for place in range(1, steps):
            if row[place - 1] == end:
                sentence = place
            found[place - 1] = counts.probability(row[place], row[max(sentence, place - counts.order + 1) : place])
    return Expected(rows, likely)
