"""Symbols in the order that a grammar allows, as frames: one channel each, or pictures of handwritten digits.

What chance does at a symbol is a function of the seed, the number of the string and the place in it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from torchrsm.compiling import compiled
from torchrsm.streams.grammar import Grammar
from torchrsm.streams.handwriting import SIDE, DigitSplit, check_digit_split, handwritten_digits
from torchrsm.streams.random import WEYL, mix, uniform
from torchrsm.streams.stream import StreamBatch, require_boolean, require_integer, require_settings

Pictures = Literal["one-hot", "handwritten", "fixed"]
"""How symbols are shown: a channel each, a handwritten example at random, or always the same one."""

_LARGEST = 2**63 - 1
_MOST_SHIFTED = 8  # pixels
_SKIPPED = 32  # de-phased, the elements of a batch begin 0 to this less 1 symbols into their first string

IntArray = NDArray[np.int64]


class Places(NamedTuple):
    """Where the next symbols of a `SymbolStream` stand.

    Attributes:
        position: in the string of each, from 0, ``[b]`` int64.
        marked: whether it leaves a marked state of the grammar, ``[b]`` bool.
    """

    position: Tensor
    marked: Tensor


class SymbolStream:
    """An endless stream of symbols, string after string.

    Element i of the batch plays the strings i, i + batch, i + 2 batch, ... of the grammar.

    Args:
        grammar: what may follow what.
        batch_size: strings played side by side, 1 or more; at most 2,000, so that a position stays small.
        pictures: ``one-hot`` shows each symbol in a channel of its own, ``[b, symbols, 1, 1]``. ``handwritten`` and
            ``fixed`` show pictures of digits, ``[b, 1, 28, 28]``; each symbol must be a digit then.
        restarts: a string is a sequence of its own, whose start is flagged; else strings follow each other without any
            mark.
        seed: 0 to 2^63 - 1.
        split: of the handwritten digits.
        shift: pixels, up to which a handwritten example is moved at random on each axis, 0 to 8.
        dephased: whether the elements begin at different places of their first strings.

    Raises:
        ValueError: an argument is outside its range, or a symbol is no digit.
        ImportError: the digits are not installed (extra: digits).
    """

    def __init__(
        self,
        grammar: Grammar,
        batch_size: int = 64,
        *,
        pictures: Pictures = "one-hot",
        restarts: bool = True,
        seed: int = 0,
        split: DigitSplit = "train",
        shift: int = 0,
        dephased: bool = True,
    ) -> None:
        if pictures not in get_args(Pictures):
            raise ValueError(f"pictures must be one of {', '.join(get_args(Pictures))}; got {pictures!r}")
        check_digit_split(split)
        self.grammar = grammar
        self._batch_size = require_integer("batch_size", batch_size, 1, 2000)
        self._settings: dict[str, Any] = {
            "stream": "SymbolStream",
            "grammar": grammar.digest(),
            "batch_size": self._batch_size,
            "pictures": pictures,
            "restarts": require_boolean("restarts", restarts),
            "seed": require_integer("seed", seed, 0, _LARGEST),
            "split": split,
            "shift": require_integer("shift", shift, 0, _MOST_SHIFTED),
            "dephased": require_boolean("dephased", dephased),
        }
        self._restarts, self._seed = restarts, np.uint64(seed)
        self._shown = _shown(grammar, pictures, split, shift)
        self._table = _table(grammar)
        self._numbers: IntArray = np.arange(self._batch_size)
        self._positions: IntArray = np.zeros(self._batch_size, np.int64)
        self._states: IntArray = np.zeros(self._batch_size, np.int64)
        self._begun = False
        if dephased:
            for time in range(_SKIPPED - 1):
                self._advance(np.arange(self._batch_size) % _SKIPPED > time)

    @property
    def batch_size(self) -> int:
        """Number of strings played side by side."""
        return self._batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return self._shown.shape

    @property
    def restarts(self) -> bool:
        """Whether a string is a sequence of its own."""
        return self._restarts

    @property
    def places(self) -> Places:
        """Where the symbols of the next batch stand."""
        return Places(torch.from_numpy(self._positions.copy()), torch.from_numpy(self._table.marked[self._states]))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        starts = (self._positions == 0) & self._restarts if self._begun else np.ones(self._batch_size, bool)
        index = self._numbers.copy() if self._restarts else np.arange(self._batch_size)
        self._begun = True
        symbols, draws = self._advance(np.ones(self._batch_size, bool))
        named = torch.from_numpy(symbols)
        return StreamBatch(
            self._shown.frames(named, torch.from_numpy(draws)),
            torch.from_numpy(starts),
            torch.from_numpy(index),
            symbols=named,
        )

    def show(self, symbols: Tensor) -> Tensor:
        """Return frames of symbols ``[b]`` int64 of one's own choice; of handwritten examples the first of each."""
        return self._shown.frames(symbols, torch.zeros(len(symbols), dtype=torch.float64))

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings, and the string and place of each element."""
        return {
            **self._settings,
            "begun": self._begun,
            "numbers": self._numbers.tolist(),
            "positions": self._positions.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"saved position: must be a mapping; got {state!r}")
        parts = ("begun", "numbers", "positions")
        require_settings({name: value for name, value in state.items() if name not in parts}, self._settings)
        begun = require_boolean("saved position: begun", state.get("begun"))
        numbers, positions = (self._saved(name, state.get(name)) for name in ("numbers", "positions"))
        states = np.zeros(self._batch_size, np.int64)
        if not _follow(self._seed, numbers, positions, states, self._table):
            raise ValueError("saved position: a place must be within its string")
        self._begun, self._numbers, self._positions, self._states = begun, numbers, positions, states

    def _saved(self, name: str, values: Any) -> IntArray:
        if not isinstance(values, list) or len(values) != self._batch_size:
            raise ValueError(f"saved position: {name} must be a list of {self._batch_size} integers; got {values!r}")
        return np.array([require_integer(f"saved position: {name}", value, 0, 2**62) for value in values], np.int64)

    def _advance(self, moves: NDArray[np.bool_]) -> tuple[IntArray, NDArray[np.float64]]:
        """Return the next symbol of each element and a draw for its picture, and go on by it where it moves."""
        symbols, draws = np.empty(self._batch_size, np.int64), np.empty(self._batch_size)
        _next_symbols(self._seed, self._numbers, self._positions, self._states, self._table, moves, symbols, draws)
        return symbols, draws


class _Table(NamedTuple):
    """A grammar as numbers: states and symbols in their order, -1 where there is none.

    Attributes:
        steps: how many lead on from each state, ``[states]``.
        chances: their cumulated probabilities, ``[states, most steps]``.
        symbols: that they show, likewise.
        after: the states that they lead to, likewise.
        marked: ``[states]`` bool.
    """

    steps: IntArray
    chances: NDArray[np.float64]
    symbols: IntArray
    after: IntArray
    marked: NDArray[np.bool_]


def _table(grammar: Grammar) -> _Table:
    names = {state: number for number, state in enumerate(grammar.states)}
    symbols = {symbol: number for number, symbol in enumerate(grammar.symbols)}
    most = max(len(steps) for steps in grammar.states.values())
    shape = (len(names), most)
    table = _Table(
        np.array([len(steps) for steps in grammar.states.values()], np.int64),
        np.ones(shape),
        np.full(shape, -1, np.int64),
        np.full(shape, -1, np.int64),
        np.array([state in grammar.marked for state in names]),
    )
    for number, steps in enumerate(grammar.states.values()):
        for which, step in enumerate(steps):
            table.symbols[number, which], table.after[number, which] = symbols[step.symbol], names[step.after]
        if steps:
            table.chances[number, : len(steps)] = np.cumsum([step.probability for step in steps])
            table.chances[number, len(steps) - 1] = 1.0
    return table


@compiled(nogil=True)
def _key(seed: np.uint64, number: int) -> np.uint64:
    return mix(mix(seed + WEYL) + np.uint64(number) * WEYL)


@compiled(nogil=True)
def _way(key: np.uint64, position: int, state: int, table: _Table) -> int:
    """Return which of the steps from a state is taken at a place of a string."""
    draw = uniform(key, 2 * position)
    way = 0
    while draw >= table.chances[state, way]:
        way += 1
    return way


@compiled(nogil=True)
def _next_symbols(
    seed: np.uint64,
    numbers: IntArray,
    positions: IntArray,
    states: IntArray,
    table: _Table,
    moves: NDArray[np.bool_],
    symbols: IntArray,
    draws: NDArray[np.float64],
) -> None:
    """Write the next symbol of each element and a draw in [0, 1), and go on by it, in place, where it moves."""
    for n in range(len(numbers)):
        key = _key(seed, numbers[n])
        way = _way(key, positions[n], states[n], table)
        symbols[n], draws[n] = table.symbols[states[n], way], uniform(key, 2 * positions[n] + 1)
        if not moves[n]:
            continue
        states[n] = table.after[states[n], way]
        positions[n] += 1
        if table.steps[states[n]] == 0:
            states[n], positions[n] = 0, 0
            numbers[n] += len(numbers)


@compiled(nogil=True)
def _follow(seed: np.uint64, numbers: IntArray, positions: IntArray, states: IntArray, table: _Table) -> bool:
    """Write the state at each place of strings; return whether all of them are within their strings."""
    for n in range(len(numbers)):
        key = _key(seed, numbers[n])
        state = 0
        for position in range(positions[n]):
            if table.steps[state] == 0:
                return False
            state = table.after[state, _way(key, position, state, table)]
        if table.steps[state] == 0:
            return False
        states[n] = state
    return True


class _OneHot:
    """Shows each symbol in a channel of its own."""

    def __init__(self, symbols: int) -> None:
        self.shape = (symbols, 1, 1)
        self._rows = torch.eye(symbols)[:, :, None, None]

    def frames(self, symbols: Tensor, draws: Tensor) -> Tensor:
        return self._rows[symbols]


class _Handwritten:
    """Shows digits by pictures, one of several for each symbol."""

    shape = (1, SIDE, SIDE)

    def __init__(self, classes: list[int], split: DigitSplit, fixed: bool, shift: int) -> None:
        digits = handwritten_digits(split)
        of_class = [torch.from_numpy(digits.images[digits.classes == one]) for one in classes]
        count = 1 if fixed else min(len(images) for images in of_class)
        pictures = torch.stack([images[:count] for images in of_class])[:, :, None]
        self._pictures = F.pad(pictures, (shift,) * 4)  # [symbols, n, 1, h, w]
        self._shift = shift

    def frames(self, symbols: Tensor, draws: Tensor) -> Tensor:
        which, draws = _drawn(draws, self._pictures.shape[1])
        chosen = self._pictures[symbols, which]
        if self._shift == 0:
            return chosen
        top, draws = _drawn(draws, 2 * self._shift + 1)
        left, _ = _drawn(draws, 2 * self._shift + 1)
        places = zip(chosen, top.tolist(), left.tolist(), strict=True)
        return torch.stack([picture[:, y : y + SIDE, x : x + SIDE] for picture, y, x in places])


def _drawn(draws: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return integers below ``count``, one for each draw in [0, 1), and what is left of the draws, in [0, 1) again."""
    scaled = draws * count
    number = scaled.long().clamp(max=count - 1)
    return number, scaled - number


def _shown(grammar: Grammar, pictures: Pictures, split: DigitSplit, shift: int) -> _OneHot | _Handwritten:
    if pictures == "one-hot":
        return _OneHot(len(grammar.symbols))
    for symbol in grammar.symbols:
        if symbol not in "0123456789" or len(symbol) != 1:
            raise ValueError(f"pictures must be one-hot where a symbol is no digit; got {pictures} and {symbol!r}")
    # A fixed picture is the same in every split: it is part of the task, not an example of it.
    fixed = pictures == "fixed"
    classes = [int(symbol) for symbol in grammar.symbols]
    return _Handwritten(classes, "train" if fixed else split, fixed, 0 if fixed else shift)
