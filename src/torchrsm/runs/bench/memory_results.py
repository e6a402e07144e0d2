"""The tables of a bench of worlds in which the past decides."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from torchrsm.media.plots import plot_against
from torchrsm.scoring.symbols import PositionAccuracy, SymbolScores

_TITLES = {
    "noise": "noise of this deviation",
    "flicker": "share of frames that are not shown",
    "blackout": "frames in a row that are not shown",
    "bar": "width of the bar, pixels",
}


class DisturbedCase(BaseModel):
    """What a system scored at one value of a disturbance; see `torchrsm.scoring.disturbed.DisturbedScores`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    error: float
    after_gap: float | None = None
    gap_distance: float | None = None
    near_bar: float | None = None


class MemorySeed(BaseModel):
    """One training run of a system in a world.

    Attributes:
        seed: of the training.
        cases: what it scored in a world of balls, for each value.
        symbols: what it scored in a world of symbols.
        frames: that it learned from; None where it learns nothing.
        order: of the n-grams that were chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    cases: tuple[DisturbedCase, ...] = ()
    symbols: SymbolScores | None = None
    frames: int | None = None
    order: int | None = None

    @property
    def summary(self) -> str:
        """The scores in a line."""
        if self.symbols is not None:
            last = "" if self.symbols.accuracy.last is None else f", marked {self.symbols.accuracy.last:.2%}"
            return f"accuracy {self.symbols.accuracy.all:.2%}{last}"
        return ", ".join(f"{case.value:g}: {case.error:.3f}" for case in self.cases)


class MemoryRow(BaseModel):
    """A system in a world.

    Attributes:
        world, system: their names.
        rsm: whether it is RSM.
        seeds: its runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    world: str
    system: str
    rsm: bool
    seeds: tuple[MemorySeed, ...]

    @property
    def rank(self) -> float:
        """What rows are sorted by, the lowest first: the error, or how many symbols are missed."""
        if self.seeds[0].symbols is not None:
            return -statistics.mean(_of_symbols(seed, _last_or_all) for seed in self.seeds)
        return statistics.mean(case.error for seed in self.seeds for case in seed.cases)


class WindowCeiling(BaseModel):
    """The best that is possible for who knows a window of symbols.

    Attributes:
        window: symbols; None for all that came before.
        all: share of all scored symbols.
        last: share of the marked ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int | None
    all: float
    last: float | None


class MemoryResults(BaseModel):
    """All that a bench measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float
    threads: int
    sequences: int
    rows: tuple[MemoryRow, ...]
    ceilings: dict[str, tuple[WindowCeiling, ...]]


def memory_table(results: MemoryResults) -> str:
    """Return a table in Markdown for each world, best first."""
    parts = []
    for world in dict.fromkeys(row.world for row in results.rows):
        rows = sorted((row for row in results.rows if row.world == world), key=lambda row: row.rank)
        make = _symbol_table if world in results.ceilings else _disturbed_table
        parts.append("\n".join([f"### {world}", "", *make(results, world, rows)]))
    return "\n\n".join(parts)


def _disturbed_table(results: MemoryResults, world: str, rows: Sequence[MemoryRow]) -> list[str]:
    values = [case.value for case in rows[0].seeds[0].cases]
    cases = rows[0].seeds[0].cases
    extras: list[tuple[str, Callable[[DisturbedCase], float | None]]] = []
    if cases[0].after_gap is not None:
        extras += [("after a gap", lambda case: case.after_gap), ("balls, px", lambda case: case.gap_distance)]
    if cases[0].near_bar is not None:
        extras.append(("near the bar", lambda case: case.near_bar))
    head = ["system", *(f"{value:g}" for value in values)]
    head += [f"{title}, {value:g}" for title, _ in extras for value in values]
    lines = [
        f"Squared error of frames 11 to 100 by {_TITLES[world]}; {results.minutes:g} minutes of training each,"
        f" {results.sequences} test sequences; mean over seeds (least to largest).",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        cells = [_name(row)]
        for read in (lambda case: case.error, *(read for _, read in extras)):
            cells += [_spread([read(seed.cases[n]) for seed in row.seeds]) for n in range(len(values))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _symbol_table(results: MemoryResults, world: str, rows: Sequence[MemoryRow]) -> list[str]:
    marked = rows[0].seeds[0].symbols is not None and rows[0].seeds[0].symbols.accuracy.last is not None
    head = ["system", *(["marked symbols"] if marked else []), "all symbols", "perplexity", "symbols learned from"]
    lines = [
        f"Share of symbols that are the best guess; {results.minutes:g} minutes of training each; mean over seeds"
        " (least to largest). Below, the best that is possible for who sees so many of the last symbols.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        order = f", order {row.seeds[0].order}" if row.seeds[0].order is not None else ""
        cells = [_name(row) + order]
        cells += [_shares(row, _last)] if marked else []
        cells += [_shares(row, lambda scores: scores.accuracy.all)]
        cells.append(_spread([_of_symbols(seed, lambda scores: scores.perplexity) for seed in row.seeds]))
        frames = [seed.frames for seed in row.seeds if seed.frames]
        cells.append(f"{statistics.mean(frames):,.0f}" if frames else "-")
        lines.append(f"| {' | '.join(cells)} |")
    for best in results.ceilings[world]:
        seen = "all before" if best.window is None else f"the last {best.window}"
        cells = [f"*best for {seen}*", *([f"{best.last:.2%}"] if marked and best.last is not None else [])]
        lines.append(f"| {' | '.join([*cells, f'{best.all:.2%}', '-', '-'])} |")
    return lines


def draw_memory(results: MemoryResults, folder: Path) -> None:
    """Draw a plot for each world: error against what is hidden, or accuracy by the place in a string."""
    for world in dict.fromkeys(row.world for row in results.rows):
        rows = [row for row in results.rows if row.world == world]
        file = folder / f"{world}.png"
        if world in results.ceilings:
            places = _places(rows[0])
            at = [place.position for place in places]
            lines = {row.system: (at, [place.accuracy for place in _places(row)]) for row in rows}
            lines["best possible"] = (at, [place.ceiling for place in places])
            plot_against(lines, file, across="place in the string", upwards="share of symbols guessed", errors=False)
        else:
            curves = {row.system: _errors_by_value(row) for row in rows}
            plot_against(curves, file, across=_TITLES[world], upwards="", errors=True)


def _errors_by_value(row: MemoryRow) -> tuple[list[float], list[float | None]]:
    values = [case.value for case in row.seeds[0].cases]
    return values, [statistics.mean(seed.cases[n].error for seed in row.seeds) for n in range(len(values))]


def _places(row: MemoryRow) -> list[PositionAccuracy]:
    """Return the scored places of the first seed."""
    scores = row.seeds[0].symbols
    assert scores is not None
    return [place for place in scores.accuracy.by_position if place.symbols]


def _name(row: MemoryRow) -> str:
    return f"**{row.system}**" if row.rsm else row.system


def _last(scores: SymbolScores) -> float | None:
    return scores.accuracy.last


def _last_or_all(scores: SymbolScores) -> float:
    return scores.accuracy.all if scores.accuracy.last is None else scores.accuracy.last


def _of_symbols(seed: MemorySeed, read: Callable[[SymbolScores], float]) -> float:
    assert seed.symbols is not None
    return read(seed.symbols)


def _shares(row: MemoryRow, read: Callable[[SymbolScores], float | None]) -> str:
    values = [read(seed.symbols) for seed in row.seeds if seed.symbols is not None]
    return _spread(values, lambda value: f"{value:.2%}")


def _spread(values: Sequence[float | None], write: Callable[[float], str] = lambda value: f"{value:.3f}") -> str:
    """Write the mean over seeds, with the least and the largest where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = write(statistics.mean(known))
    return mean if len(known) < 2 else f"{mean} ({write(min(known))} to {write(max(known))})"
