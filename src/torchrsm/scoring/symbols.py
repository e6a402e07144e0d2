"""Scores the symbols that a model expects: how often its best guess comes, beside how often the best could."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from torchrsm.predictor import Predictor, evaluation_mode, restart
from torchrsm.state import flatten
from torchrsm.streams.symbols import SymbolStream

UNSCORED = 40
"""First symbols of streams without marks, which are not scored: so long a model may need to know where it is."""

POSITIONS = 40
"""Places of a string whose accuracy is given one by one; the last stands for all behind it."""

_NEVER = 1e-12  # least probability that is told apart from 0


class PositionAccuracy(BaseModel):
    """How often the best guess is right at one place of a string.

    Attributes:
        position: from 0.
        symbols: how many were scored there.
        accuracy: share of them that were guessed; None where there are none.
        ceiling: the best that is possible where all symbols before it in the string are known; None beyond
            `POSITIONS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int
    symbols: int
    accuracy: float | None
    ceiling: float | None


class Accuracy(BaseModel):
    """How often the best guess is right.

    Attributes:
        all: of all scored symbols.
        last: of those that leave a marked state of the grammar, such as the last T or P of a Reber string; None where
            no state is marked.
        ceiling: the best that is possible for ``all`` where all symbols of the string before it are known.
        ceiling_last: the same for ``last``.
        by_position: for each place of a string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    all: float
    last: float | None
    ceiling: float
    ceiling_last: float | None
    by_position: tuple[PositionAccuracy, ...]


class SymbolScores(BaseModel):
    """What `evaluate_symbols` measured.

    Attributes:
        model: its name.
        grammar: whose symbols were scored.
        symbols: how many.
        accuracy: see `Accuracy`.
        perplexity: the exponential of the mean of the negative logarithm of how likely each symbol was thought to be.
        training: how the model was trained, as its run tells; None where that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    grammar: str
    symbols: int
    accuracy: Accuracy
    perplexity: float
    training: dict[str, str | int | float] | None = None

    def table(self) -> str:
        """Return the scores as a text table."""
        accuracy = self.accuracy
        rows = [("all symbols", accuracy.all, accuracy.ceiling)]
        if accuracy.last is not None and accuracy.ceiling_last is not None:
            rows.append(("marked symbols", accuracy.last, accuracy.ceiling_last))
        lines = [
            f"{self.model} on {self.symbols:,} symbols of {self.grammar}",
            "share of symbols that are the best guess       best possible",
            *(f"{name:<24}{share:>9.2%}{ceiling:>21.2%}" for name, share, ceiling in rows),
        ]
        lines.append(f"{'perplexity':<24}{self.perplexity:>9.3f}")
        return "\n".join(lines)


def evaluate_symbols(
    predictor: Predictor[Any, Any], stream: SymbolStream, steps: int = 500, *, model: str = "model"
) -> SymbolScores:
    """Let a predictor predict a stream of symbols without learning, and score its best guesses.

    Where strings restart, the first symbol of each is not scored, since nothing precedes it, nor is a string whose
    beginning was not seen. Else the first `UNSCORED` symbols of each stream are left out.

    Args:
        predictor: the system. What its prediction says is ``symbols``, the logarithm of how likely each is, or else the
            frame, where each symbol has a channel of its own.
        stream: of the strings, from its beginning.
        steps: symbols of each stream, more than `UNSCORED`.
        model: the name of the predictor.

    Raises:
        ValueError: ``steps`` is too small, or the predictor tells no symbols.
    """
    if steps <= UNSCORED:
        raise ValueError(f"steps must be > {UNSCORED}; got {steps}")
    restarts = stream.restarts
    right, total = torch.zeros(2, POSITIONS, dtype=torch.int64)
    marked_right = marked_total = 0
    surprise = 0.0
    begun = torch.zeros(stream.batch_size, dtype=torch.bool)
    with torch.inference_mode(), evaluation_mode(predictor):
        fresh = predictor.initial_state((stream.batch_size, *stream.frame_shape))
        state, device = fresh, next(iter(flatten("state", fresh).values())).device
        for step in range(steps):
            position, marked = stream.places
            batch = next(stream)
            assert batch.symbols is not None
            begun |= (position == 0) & batch.starts
            scored = begun & (position > 0) if restarts else torch.full_like(begun, step >= UNSCORED)
            state = restart(state, fresh, batch.starts.to(device))
            prediction = predictor.predict(state)
            logs = log_probabilities(prediction)
            hit = (logs.argmax(1) == batch.symbols) & scored
            place = position.clamp(max=POSITIONS - 1)
            right += torch.bincount(place[hit], minlength=POSITIONS)
            total += torch.bincount(place[scored], minlength=POSITIONS)
            marked_right += int((hit & marked).sum())
            marked_total += int((scored & marked).sum())
            surprise -= float(logs.gather(1, batch.symbols[:, None])[:, 0].double()[scored].sum())
            state = predictor.observe(batch.frames.to(prediction.frame.device), prediction, state)
    count = int(total.sum())
    ceiling = stream.grammar.ceiling(first=not restarts)
    ceilings = stream.grammar.ceilings_by_position(POSITIONS)
    return SymbolScores(
        model=model,
        grammar=stream.grammar.name,
        symbols=count,
        accuracy=Accuracy(
            all=int(right.sum()) / max(count, 1),
            last=marked_right / marked_total if marked_total else None,
            ceiling=ceiling.all,
            ceiling_last=ceiling.marked,
            by_position=tuple(
                PositionAccuracy(
                    position=place,
                    symbols=int(total[place]),
                    accuracy=int(right[place]) / int(total[place]) if total[place] else None,
                    ceiling=ceilings[place],
                )
                for place in range(POSITIONS)
            ),
        ),
        perplexity=math.exp(surprise / max(count, 1)),
    )


def log_probabilities(prediction: Any) -> Tensor:
    """Return the logarithm of how likely a prediction says that each symbol is, ``[b, symbols]`` on the CPU.

    Raises:
        ValueError: it tells no symbols.
    """
    logs = getattr(prediction, "symbols", None)
    if logs is not None:
        told: Tensor = logs.cpu()
        return told
    frame: Tensor = prediction.frame.cpu()
    if frame.shape[1] < 2 or frame.shape[2:] != (1, 1):
        raise ValueError(
            "the model must have a head, or frames with a channel for each symbol, to be scored on symbols; "
            f"got one that predicts frames of {' x '.join(map(str, frame.shape[1:]))}"
        )
    likely = frame[:, :, 0, 0].clamp(min=_NEVER)
    return (likely / likely.sum(1, keepdim=True)).log()


class DreamtString(NamedTuple):
    """A string that a model wrote.

    Attributes:
        symbols: their names, the first ones given.
        given: how many of them.
        grammatical: whether the grammar allows it; a string that was cut off at its longest length counts as far as it
            goes.
    """

    symbols: tuple[str, ...]
    given: int
    grammatical: bool


def write_strings(
    predictor: Predictor[Any, Any], stream: SymbolStream, longest: int = 100, seed: int = 0
) -> list[DreamtString]:
    """Let a predictor write a string for each element of a stream: it hears the symbols that it draws itself.

    Where strings restart, the first symbol is given. Else it first hears whole strings, `UNSCORED` symbols or more, and
    then writes the next one. A string ends where the grammar ends it, or at the first symbol that it does not allow.

    Args:
        predictor: as for `evaluate_symbols`.
        stream: from its beginning, not de-phased: all elements begin with their strings.
        longest: most symbols of a string, 2 or more.
        seed: of the draws, 0 to 2^62.

    Raises:
        ValueError: ``longest`` is too small, the stream is de-phased, or the predictor tells no symbols.
    """
    if longest < 2:
        raise ValueError(f"longest must be >= 2; got {longest}")
    if bool((stream.places.position > 0).any()):
        raise ValueError("stream must not be de-phased to write strings; got one that is")
    grammar, generator = stream.grammar, torch.Generator().manual_seed(seed)
    begun: list[list[str]] = [[] for _ in range(stream.batch_size)]
    with torch.inference_mode(), evaluation_mode(predictor):
        state = predictor.initial_state((stream.batch_size, *stream.frame_shape))
        prediction = predictor.predict(state)
        heard, writes = 0, torch.zeros(stream.batch_size, dtype=torch.bool)
        wrote = [False] * stream.batch_size
        while not all(wrote):
            truth = next(stream) if not writes.all() else None
            drawn = torch.multinomial(log_probabilities(prediction).exp(), 1, generator=generator)[:, 0]
            symbols = drawn if truth is None or truth.symbols is None else torch.where(writes, drawn, truth.symbols)
            frames = stream.show(symbols)
            if truth is not None:
                frames = torch.where(writes.view(-1, 1, 1, 1), frames, truth.frames)
            heard += 1
            for element, symbol in enumerate(symbols.tolist()):
                if wrote[element] or not (writes[element] or stream.restarts):
                    continue
                begun[element].append(grammar.symbols[symbol])
                after = grammar.follows(begun[element])
                wrote[element] = after is None or not grammar.states[after] or len(begun[element]) >= longest
            state = predictor.observe(frames.to(prediction.frame.device), prediction, state)
            prediction = predictor.predict(state)
            if stream.restarts:
                writes[:] = True
            elif heard >= UNSCORED:
                writes |= stream.places.position == 0
    return [
        DreamtString(tuple(symbols), int(stream.restarts), grammar.follows(symbols) is not None) for symbols in begun
    ]
