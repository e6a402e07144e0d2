"""Grammars: what may come after what, strings drawn from that, and how well the next symbol can be known.

A grammar is a machine of states. From each state there are steps: a symbol, a probability, and the state after it. A
string begins in the first state and ends where a state has no steps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_SURE = 1e-9  # how far probabilities may be from 1
_STILL = 1e-12  # a distribution that changes less has come to rest
_ROUNDS = 10_000


class Step(NamedTuple):
    """One way on from a state.

    Attributes:
        symbol: that is seen.
        probability: of this way, above 0.
        after: the state that it leads to.
    """

    symbol: str
    probability: float
    after: str


class Ceiling(NamedTuple):
    """Shares of symbols that the best guess is right about.

    Attributes:
        all: over all symbols of the strings.
        marked: over the symbols that leave one of the marked states; None where no state is marked.
    """

    all: float
    marked: float | None


class Grammar:
    """A grammar, checked.

    Args:
        states: the steps from each state, by its name; strings begin in the first one. A state without steps ends a
            string.
        marked: states whose next symbol is scored by itself, for instance that which only a memory can know.
        name: of the grammar, for errors.

    Raises:
        ValueError: a state is unknown, or has probabilities that do not add up to 1; no end can be reached from one
            that can be reached; or the same symbol leads from one state to two.
    """

    def __init__(
        self, states: Mapping[str, Sequence[Step]], marked: Sequence[str] = (), name: str = "the grammar"
    ) -> None:
        if not states:
            raise ValueError(f"{name} must have states; got none")
        self.states = {state: tuple(Step(*step) for step in steps) for state, steps in states.items()}
        self.first = next(iter(self.states))
        self.marked = tuple(marked)
        self.name = name
        self._check()
        self.symbols = tuple(dict.fromkeys(step.symbol for steps in self.states.values() for step in steps))

    def _check(self) -> None:
        for state in self.marked:
            if state not in self.states:
                raise ValueError(f"{self.name}: marked must name states; got {state!r}")
        for state, steps in self.states.items():
            for step in steps:
                if step.after not in self.states:
                    raise ValueError(f"{self.name}: state {state!r} leads to {step.after!r}, which is no state")
                if not step.probability > 0:
                    raise ValueError(
                        f"{self.name}: probabilities must be above 0; got {step.probability!r} from state {state!r}"
                    )
            total = sum(step.probability for step in steps)
            if steps and abs(total - 1) > _SURE:
                raise ValueError(f"{self.name}: probabilities must add up to 1; got {total:g} from state {state!r}")
            if len({step.symbol for step in steps}) < len(steps):
                raise ValueError(f"{self.name}: state {state!r} must have one step for each symbol; got two for one")
        if not self.states[self.first]:
            raise ValueError(f"{self.name}: the first state, {self.first!r}, must have a next symbol; got none")
        ending = {state for state, steps in self.states.items() if not steps}
        while more := {
            state
            for state, steps in self.states.items()
            if state not in ending and any(step.after in ending for step in steps)
        }:
            ending |= more
        for state in self._reached():
            if state not in ending:
                raise ValueError(f"{self.name} never ends: no end can be reached from state {state!r}")

    def _reached(self) -> list[str]:
        found = [self.first]
        for state in found:
            found += [step.after for step in self.states[state] if step.after not in found]
        return list(dict.fromkeys(found))

    def string(self, uniform: Callable[[], float]) -> tuple[list[str], list[str]]:
        """Draw a string.

        Args:
            uniform: returns another number in [0, 1) at each call.

        Returns:
            The symbols, and the states that they leave.
        """
        symbols: list[str] = []
        left: list[str] = []
        state = self.first
        while steps := self.states[state]:
            draw = uniform()
            for step in steps:
                if draw < step.probability:
                    break
                draw -= step.probability
            symbols.append(step.symbol)
            left.append(state)
            state = step.after
        return symbols, left

    def follows(self, symbols: Sequence[str]) -> str | None:
        """Return the state after a beginning of a string; None if the grammar does not allow it."""
        state: str | None = self.first
        for symbol in symbols:
            steps = {step.symbol: step.after for step in self.states[state]} if state is not None else {}
            state = steps.get(symbol)
        return state

    def digest(self) -> str:
        """Return what tells this grammar from others, 64 hexadecimal digits; its name does not count."""
        return hashlib.sha256(json.dumps([self.states, self.marked]).encode()).hexdigest()

    def ceiling(self, window: int | None = None, first: bool = True) -> Ceiling:
        """Return how often the best guess of the next symbol is right, by enumeration of all that can be seen.

        Args:
            window: how many of the last symbols are known, of this string and the strings before it, 0 or more. None
                for all of this string, which in such a grammar tells the state.
            first: whether the first symbol of a string counts, too.
        """
        if window is not None and window < 0:
            raise ValueError(f"window must be >= 0; got {window}")
        known: Any = self._by_state(first) if window is None else self._by_window(window, first)
        total = right = marked = marked_right = 0.0
        for likely in known.values():
            best: dict[str, float] = defaultdict(float)
            best_marked: dict[str, float] = defaultdict(float)
            for state, probability in likely.items():
                for step in self.states[state]:
                    best[step.symbol] += probability * step.probability
                    if state in self.marked:
                        best_marked[step.symbol] += probability * step.probability
            total += sum(best.values())
            right += max(best.values())
            marked += sum(best_marked.values())
            # The guess is made by who does not know whether this is a marked place, unless the window tells it.
            guess = max(best, key=lambda symbol: best[symbol])
            marked_right += max(best_marked.values()) if best_marked and best == best_marked else best_marked[guess]
        return Ceiling(right / total, marked_right / marked if self.marked else None)

    def ceilings_by_position(self, count: int) -> list[float | None]:
        """Return how often the best guess is right about each of the first symbols of a string, all before it known.

        Args:
            count: how many symbols, 1 or more.

        Returns:
            One share for each; None where no string is as long.
        """
        if count < 1:
            raise ValueError(f"count must be >= 1; got {count}")
        found: list[float | None] = []
        for left in itertools.islice(itertools.chain(self._states_left(), itertools.repeat({})), count):
            best = [share * max(step.probability for step in self.states[state]) for state, share in left.items()]
            found.append(sum(best) / sum(left.values()) if best else None)
        return found

    def _states_left(self) -> Iterator[dict[str, float]]:
        """Yield, for each place of a string, how likely it is that it leaves each state there."""
        left = {self.first: 1.0}
        for _ in range(_ROUNDS):
            yield left
            after: dict[str, float] = defaultdict(float)
            for state, probability in left.items():
                for step in self.states[state]:
                    if self.states[step.after]:
                        after[step.after] += probability * step.probability
            left = dict(after)
            if sum(left.values()) < _STILL:
                return

    def _by_state(self, first: bool) -> dict[str, dict[str, float]]:
        """Return how often each state is left in a string."""
        shares: dict[str, float] = defaultdict(float)
        for place, left in enumerate(self._states_left()):
            for state, probability in left.items() if first or place else ():
                shares[state] += probability
        return {state: {state: share} for state, share in shares.items() if share > 0}

    def _by_window(self, window: int, first: bool) -> dict[tuple[str, ...], dict[str, float]]:
        """Return how often each state is left after each row of last symbols, in an endless row of strings."""
        begins = True
        shares: dict[tuple[tuple[str, ...], str, bool], float] = {((), self.first, begins): 1.0}
        for _ in range(_ROUNDS):
            after: dict[tuple[tuple[str, ...], str, bool], float] = defaultdict(float)
            for (seen, state, _), share in shares.items():
                for step in self.states[state]:
                    ended = not self.states[step.after]
                    here = self.first if ended else step.after  # the next string begins at once
                    row = (*seen, step.symbol)[-window:] if window else ()
                    after[row, here, ended] += share * step.probability
            # Half of the old distribution is kept, or one of a fixed rhythm would never come to rest.
            mixed = {key: (shares.get(key, 0.0) + after.get(key, 0.0)) / 2 for key in shares.keys() | after.keys()}
            change = sum(abs(mixed[key] - shares.get(key, 0.0)) for key in mixed)
            shares = {key: share for key, share in mixed.items() if share > 0}
            if change < 1e-8:
                break
        known: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for (seen, state, begins), share in shares.items():
            if first or not begins:
                known[seen][state] += share
        return known


def embedded_reber() -> Grammar:
    """Return the embedded Reber grammar: the second symbol, T or P, comes again as the last but one.

    Between them is a Reber string, whose choices are even. Source: Axel Cleeremans, David Servan-Schreiber, James
    McClelland, Neural Computation 1, 1989; docs/science/protocol.md.
    """
    inner = {
        0: [("B", 1)],
        1: [("T", 2), ("P", 3)],
        2: [("S", 2), ("X", 4)],
        3: [("T", 3), ("V", 5)],
        4: [("X", 3), ("S", 6)],
        5: [("P", 4), ("V", 6)],
        6: [("E", 7)],
    }
    states: dict[str, list[Step]] = {
        "begin": [Step("B", 1.0, "choice")],
        "choice": [Step("T", 0.5, "T0"), Step("P", 0.5, "P0")],
    }
    for way in "TP":
        for number, steps in inner.items():
            states[f"{way}{number}"] = [Step(symbol, 1 / len(steps), f"{way}{after}") for symbol, after in steps]
        states[f"{way}7"] = [Step(way, 1.0, "end")]
    states["end"] = [Step("E", 1.0, "over")]
    states["over"] = []
    return Grammar(states, marked=("T7", "P7"), name="the embedded Reber grammar")


def grammar_of(strings: Sequence[str], name: str) -> Grammar:
    """Return the grammar of some strings of one character symbols, each as likely as the others.

    The last symbol of each is marked.

    Raises:
        ValueError: there is none, one is empty, or one begins as another one ends.
    """
    if not strings or not all(strings):
        raise ValueError(f"{name} must be of strings with symbols; got {list(strings)}")
    states: dict[str, list[Step]] = {}
    marked: list[str] = []
    waiting = [""]
    for prefix in waiting:
        going_on = [string for string in strings if string.startswith(prefix)]
        states[prefix or "begin"] = []
        if any(len(string) == len(prefix) for string in going_on):
            if len(set(going_on)) > 1:
                raise ValueError(f"{name}: no string may be the beginning of another; got {prefix!r}")
            continue
        nexts = dict.fromkeys(string[len(prefix)] for string in going_on)
        for symbol in nexts:
            longer = prefix + symbol
            share = sum(string.startswith(longer) for string in going_on) / len(going_on)
            states[prefix or "begin"].append(Step(symbol, share, longer))
            waiting.append(longer)
            if longer in strings and (prefix or "begin") not in marked:
                marked.append(prefix or "begin")
    return Grammar(states, marked, name)


def digits_3() -> Grammar:
    """Return 0123 0123 0321: what follows 3 and 0 depends on the round. Source: docs/science/protocol.md."""
    return grammar_of(["012301230321"], "digits-3")


def digits_8x9() -> Grammar:
    """Return eight sequences of nine digits, each as likely as the others. Source: docs/science/protocol.md."""
    strings = (
        *("240781618", "274959310", "573413164", "137525534"),
        *("291928327", "126483503", "380564139", "475376724"),
    )
    return grammar_of(strings, "digits-8x9")


GRAMMARS: dict[str, Callable[[], Grammar]] = {
    "reber": embedded_reber,
    "digits-3": digits_3,
    "digits-8x9": digits_8x9,
}
"""The grammars that have names."""


def read_grammar(file: Path | str) -> Grammar:
    """Read a grammar from JSON: ``{"states": {state: [[symbol, probability, state after], ...]}, "marked": [state]}``.

    The first state is where strings begin; one whose list is empty ends them. ``marked`` may be left out.

    Raises:
        ValueError: it is no such JSON, or no grammar.
        OSError: it cannot be read.
    """
    path = Path(file)
    try:
        given = json.loads(path.read_text())
        states = {
            str(state): [Step(str(s), float(p), str(a)) for s, p, a in steps]
            for state, steps in given["states"].items()
        }
        marked = [str(state) for state in given.get("marked", ())]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} must be JSON of the form {{"states": {{"state": [["symbol", probability, "state after"]]}}}}; '
            f"got {type(error).__name__}: {error}"
        ) from None
    return Grammar(states, marked, str(path))


def named_grammar(name_or_file: str) -> Grammar:
    """Return the grammar of a name in `GRAMMARS`, or that of a file.

    Raises:
        ValueError: there is neither, or the file holds no grammar.
        OSError: it cannot be read.
    """
    if name_or_file in GRAMMARS:
        return GRAMMARS[name_or_file]()
    if not Path(name_or_file).is_file():
        raise ValueError(f"grammar must be one of {', '.join(GRAMMARS)} or a JSON file; got {name_or_file!r}")
    return read_grammar(name_or_file)
