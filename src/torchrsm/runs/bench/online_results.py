"""What is left of learning on line: means over stretches of frames, what a change of world costs, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from torchrsm.media.plots import plot_error_by_frames_seen
from torchrsm.runs.bench.online import OnlineErrors, World

_NEAR = 1.1


class Change(BaseModel):
    """What a change of world costs.

    Attributes:
        frame: the number of the last frame before it.
        before: mean error at the end of the last stretch of the world that comes now, or, if it is new, of the stretch
            that ends.
        first: mean error of the first frames after the change.
        end: mean error at the end of the stretch that begins.
        recovered: frames after which a running mean of the error is within 10 % of ``before``; None for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: int
    before: float
    first: float
    end: float
    recovered: int | None


class OnlineSeed(BaseModel):
    """One system that learned from one stream.

    Attributes:
        system: name of its preset.
        seed: of its weights and of the stream.
        factor: by which all learning rates of the preset were multiplied.
        mean: error of all scored frames.
        curve: the same of each stretch of `Settings.stretch` frames.
        frames_per_second: of prediction and learning, for a second of processor time.
        processor_seconds, seconds: of prediction and learning.
        end: mean error at the end of the first world.
        changes: of the world.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    seed: int
    factor: float
    mean: float
    curve: tuple[float, ...]
    frames_per_second: float
    processor_seconds: float
    seconds: float
    end: float
    changes: tuple[Change, ...] = ()


class Settings(BaseModel):
    """What makes runs comparable.

    Attributes:
        worlds: what the stream shows, one after the other.
        stretch: frames of which a mean is kept; also those at the end of a world whose mean is its level.
        first: frames after a change whose mean is kept, and of the running mean that says when a system has recovered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    worlds: tuple[World, ...]
    stretch: int
    first: int


class OnlineResults(BaseModel):
    """All runs with the same settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Settings
    runs: tuple[OnlineSeed, ...]


class SearchRow(BaseModel):
    """A try of the search: the mean error with all learning rates times a factor; None where learning failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    factor: float
    mean: float | None


class Search(BaseModel):
    """A search of the learning rates on a stream of its own.

    Attributes:
        frames: that each try learned from.
        seed: of the stream.
        rows: the tries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int
    seed: int
    rows: tuple[SearchRow, ...] = ()

    def best_factor(self, system: str) -> float | None:
        """Return the factor with the least error; None if none was tried or all failed."""
        tried = [(row.mean, row.factor) for row in self.rows if row.system == system and row.mean is not None]
        return min(tried)[1] if tried else None


def summarised(system: str, seed: int, factor: float, measured: OnlineErrors, settings: Settings) -> OnlineSeed:
    """Return what is kept of a run."""
    errors, bounds = measured.errors, _bounds(settings.worlds)
    return OnlineSeed(
        system=system,
        seed=seed,
        factor=factor,
        mean=_mean(errors),
        curve=tuple(
            _mean(errors[first : first + settings.stretch]) for first in range(0, len(errors), settings.stretch)
        ),
        frames_per_second=len(errors) / max(measured.processor_seconds, 1e-9),
        processor_seconds=measured.processor_seconds,
        seconds=measured.seconds,
        end=_mean(errors[: bounds[1]][-settings.stretch :]),
        changes=changes(errors, settings),
    )


def changes(errors: NDArray[np.float64], settings: Settings) -> tuple[Change, ...]:
    """Return what each change of world costs; ``errors [frames]``, NaN where a frame is not scored."""
    worlds, bounds = settings.worlds, _bounds(settings.worlds)
    parts = [errors[a:b] for a, b in pairwise(bounds)]
    ends = [_mean(part[-settings.stretch :]) for part in parts]
    found = []
    for number in range(1, len(worlds)):
        same = [earlier for earlier in range(number) if worlds[earlier].is_like(worlds[number])]
        before = ends[same[-1] if same else number - 1]
        found.append(
            Change(
                frame=bounds[number],
                before=before,
                first=_mean(parts[number][: settings.first]),
                end=ends[number],
                recovered=_recovered(parts[number], before, settings.first),
            )
        )
    return tuple(found)


def _recovered(errors: NDArray[np.float64], level: float, over: int) -> int | None:
    """Return the first frame at which the mean of the last ``over`` is near the level; None if there is none."""
    counts = np.concatenate(([0], np.cumsum(~np.isnan(errors))))
    sums = np.concatenate(([0.0], np.cumsum(np.nan_to_num(errors))))
    if len(errors) < over:
        return None
    means = (sums[over:] - sums[:-over]) / np.maximum(counts[over:] - counts[:-over], 1)
    near = np.flatnonzero(means <= _NEAR * level)
    return int(near[0]) + over if near.size else None


def _bounds(worlds: Sequence[World]) -> list[int]:
    return [0, *accumulate(world.frames for world in worlds)]


def _mean(errors: NDArray[np.float64]) -> float:
    scored = errors[~np.isnan(errors)]
    if not scored.size:
        raise ValueError(f"a mean must be of 1 scored frame or more; got {len(errors)} frames, none of them scored")
    return float(scored.mean())


def by_system(runs: Iterable[OnlineSeed]) -> list[tuple[str, list[OnlineSeed]]]:
    """Return the runs of each system, the best first, by the mean over its runs."""
    found: dict[str, list[OnlineSeed]] = {}
    for run in runs:
        found.setdefault(run.system, []).append(run)
    return sorted(found.items(), key=lambda pair: statistics.mean(run.mean for run in pair[1]))


def online_table(results: OnlineResults) -> str:
    """Return the table of one world, best first."""
    stretch, frames = results.settings.stretch, sum(world.frames for world in results.settings.worlds)
    count = -(-frames // stretch)
    shown = sorted({0, 1, count // 5 - 1, count // 2 - 1, count - 1} & set(range(count)))
    named = [f"{number * stretch + 1:,}-{min((number + 1) * stretch, frames):,}" for number in shown]
    head = ["system", "rates", f"all {frames:,} frames", *named, "frames/s"]
    lines = [
        [
            f"`{system}`",
            _factors(runs),
            spread(run.mean for run in runs),
            *(spread(run.curve[number] for run in runs) for number in shown),
            f"{statistics.mean(run.frames_per_second for run in runs):,.0f}",
        ]
        for system, runs in by_system(results.runs)
    ]
    return _markdown(head, lines)


def drift_table(results: OnlineResults) -> str:
    """Return the table of a stream whose world changes, best first."""
    worlds = results.settings.worlds
    first = results.settings.first
    head = ["system", "rates", f"end of world 1: {_named(worlds[0])}"]
    for number, world in enumerate(worlds[1:], 2):
        known = any(earlier.is_like(world) for earlier in worlds[: number - 1])
        name = f"{_named(world)} again" if known else _named(world)
        head += [f"first {first} of world {number}: {name}", "times the level before", "frames to that level", "end"]
    lines = []
    for system, runs in by_system(results.runs):
        line = [f"`{system}`", _factors(runs), spread(run.end for run in runs)]
        for number in range(len(worlds) - 1):
            costs = [run.changes[number] for run in runs]
            line += [
                spread(cost.first for cost in costs),
                spread(cost.first / cost.before for cost in costs),
                spread([cost.recovered for cost in costs], "{:,.0f}".format),
                spread(cost.end for cost in costs),
            ]
        lines.append(line)
    return _markdown(head, lines)


def spread(values: Iterable[float | None], write: Callable[[float], str] = "{:.2f}".format) -> str:
    """Write the mean over runs and, where there are several, the least and the largest; "never" for None."""
    given = list(values)
    known = [value for value in given if value is not None]
    if len(known) < len(given):
        return "never" if not known else f"never in {len(given) - len(known)} of {len(given)}"
    mean = write(statistics.mean(known))
    return mean if len(known) == 1 else f"{mean} ({write(min(known))} to {write(max(known))})"


def draw_online(results: OnlineResults, path: Path) -> None:
    """Plot the error of each system, the mean over its runs, against the frames seen, as PNG."""
    stretch = results.settings.stretch
    bounds = _bounds(results.settings.worlds)
    curves = {}
    for system, runs in by_system(results.runs):
        means = [statistics.mean(errors) for errors in zip(*(run.curve for run in runs), strict=True)]
        seen = [min((number + 1) * stretch, bounds[-1]) for number in range(len(means))]
        curves[system] = seen, means
    plot_error_by_frames_seen(curves, path, changes=bounds[1:-1])


def _factors(runs: Sequence[OnlineSeed]) -> str:
    return " ".join(f"x{factor:g}" for factor in sorted({run.factor for run in runs}))


def _named(world: World) -> str:
    return f"{world.balls} balls of radius {world.radius:g}"


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])
