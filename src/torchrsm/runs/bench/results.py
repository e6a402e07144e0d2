"""The table of a bench: its rows, and the sentences and plots that follow from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from torchrsm.config import first_error
from torchrsm.media.plots import plot_error_by_minute, plot_memory

PUBLISHED = {
    "copy-last": (11.82, 0.27),
    "lstm": (111.09, 0.68),
    "rtrbm": (3.88, 0.33),
    "srtrbm": (3.31, 0.33),
    "dtsbn": (2.79, 0.39),
    "pgn": (0.65, 0.11),
    "seq2seq-convlstm-multi-decoder": (4.55, 0.40),
    "seq2seq-convlstm": (1.34, 0.19),
    "convlstm": (0.58, 0.16),
    "balls": (0.41, 0.05),
    "balls-1l": (0.80, 0.07),
}
"""Published squared error per frame, mean and standard deviation; each on its authors' own sequences."""


class Seed(BaseModel):
    """One training run of a system, scored on the test sequences.

    Attributes:
        seed: of the training.
        minutes, frames: of training; None for a system without weights.
        all_predictable, after_2, after_10: squared error per frame, mean and standard deviation over sequences.
        right_count, energy, sharpness: of the first 50 steps of its dreams.
        late_energy: of the last 50.
        lifetime: of a dream, steps, median.
        alive: share of the dreams that live to the end.
        curve: minutes of training, and the error of training frames in the stretch before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    minutes: float | None
    frames: int | None
    all_predictable: tuple[float, float]
    after_2: tuple[float, float]
    after_10: tuple[float, float]
    right_count: float
    energy: float | None
    late_energy: float | None
    sharpness: float
    lifetime: float
    alive: float
    curve: tuple[tuple[float, float], ...] = ()


class Row(BaseModel):
    """A system in the table.

    Attributes:
        system: name of its preset.
        rsm: whether it is RSM; all others are its peers.
        published: mean and standard deviation, where there is one.
        weights: numbers that it learns.
        seeds: its runs.
        training_frames_per_second: mean over the runs; None for a system without weights.
        prediction_frames_per_second: one stream on one thread; None while not measured.
        peak_mebibytes: of training, by the length of the sequences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    rsm: bool
    published: tuple[float, float] | None
    weights: int
    seeds: tuple[Seed, ...]
    training_frames_per_second: float | None
    prediction_frames_per_second: float | None
    peak_mebibytes: dict[int, float]

    @property
    def error(self) -> float:
        """Mean squared error per frame, all predictable frames, mean over the runs."""
        return statistics.mean(seed.all_predictable[0] for seed in self.seeds)

    @property
    def lifetime(self) -> float:
        """Median steps that a dream lives, mean over the runs."""
        return statistics.mean(seed.lifetime for seed in self.seeds)

    @property
    def alive(self) -> float:
        """Share of the dreams that live to the end, mean over the runs."""
        return statistics.mean(seed.alive for seed in self.seeds)


class Results(BaseModel):
    """The table of a bench; rows stand in the order of `SYSTEMS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world: str
    minutes: float
    threads: int
    device: str = "cpu"
    sequences: int
    dream_steps: int
    frames_sha256: str
    rows: tuple[Row, ...]


def read_results(file: Path | str) -> Results:
    """Read the ``results.json`` of a bench.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one.
    """
    try:
        return Results.model_validate_json(Path(file).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error)}") from error


def table(results: Results) -> str:
    """Return the table as Markdown, with what follows from it: who is ahead, and by how much."""
    lengths = sorted({length for row in results.rows for length in row.peak_mebibytes})
    head = [
        "system",
        "published",
        f"here, {results.minutes:g} min",
        "after 2",
        "weights",
        "training frames/s",
        "prediction frames/s",
        *(f"MiB at {length}" for length in lengths),
        "three balls",
        "energy, px²",
        "lifetime, steps",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in results.rows:
        cells = [
            f"**{row.system}**" if row.rsm else row.system,
            "-" if row.published is None else f"{row.published[0]:.2f} ± {row.published[1]:.2f}",
            _errors(row, "all_predictable"),
            _errors(row, "after_2"),
            f"{row.weights:,}" if row.weights else "-",
            _rounded(row.training_frames_per_second),
            _rounded(row.prediction_frames_per_second),
            *(_rounded(row.peak_mebibytes.get(length)) for length in lengths),
            f"{statistics.mean(seed.right_count for seed in row.seeds):.3f}",
            _mean([seed.energy for seed in row.seeds]),
            f"{row.lifetime:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdict(results)])


def verdict(results: Results) -> list[str]:
    """Return sentences that say how the best RSM stands against the best of the others."""
    ours = [row for row in results.rows if row.rsm]
    peers = [row for row in results.rows if not row.rsm]
    if not ours or not peers:
        return []
    best, peer = (min(rows, key=lambda row: row.error) for rows in (ours, peers))
    lasting = max(peers, key=_endurance)
    ahead = peer.error / best.error
    longer, shorter = _endurance(best), _endurance(lasting)
    if longer == shorter:
        of_dreams = "; neither is ahead."
    else:
        of_dreams = "." if longer > shorter else f"; {lasting.system} is ahead."
    return [
        f"Next-frame error: {best.system} {best.error:.3f}, best of the others {peer.system} {peer.error:.3f}: "
        + (f"{ahead:.2f} times lower." if ahead >= 1 else f"{1 / ahead:.2f} times higher; {peer.system} is ahead."),
        f"Lifetime of dreams: {_lives(best)}, best of the others {_lives(lasting)}{of_dreams}",
    ]


def _endurance(row: Row) -> tuple[float, float]:
    """Return how long a system's dreams live, and the share of those that live to the end."""
    return row.lifetime, row.alive


def _lives(row: Row) -> str:
    return f"{row.system} {row.lifetime:g} steps, {row.alive:.1%} alive at the end"


def draw(results: Results, folder: Path) -> None:
    """Draw error against minutes of training, and memory against the length of sequences, as far as there is any."""
    curves = {
        row.system: ([point[0] for point in points], [point[1] for point in points])
        for row in results.rows
        if (points := row.seeds[0].curve)
    }
    if curves:
        marks = {row.system: row.error for row in results.rows if row.system == "copy-last"}
        plot_error_by_minute(curves, folder / "error.png", marks=marks)
    peaks = {row.system: row.peak_mebibytes for row in results.rows if row.peak_mebibytes}
    if peaks:
        plot_memory(peaks, folder / "memory.png")


def _errors(row: Row, window: str) -> str:
    """Write mean ± standard deviation over sequences; of several runs the mean, and that over runs."""
    values = [getattr(seed, window) for seed in row.seeds]
    if len(values) == 1:
        return f"{values[0][0]:.2f} ± {values[0][1]:.2f}"
    means = [mean for mean, _ in values]
    spread = statistics.mean(sd for _, sd in values)
    return f"{statistics.mean(means):.2f} ± {spread:.2f} ({statistics.stdev(means):.2f} over seeds)"


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _mean(values: Iterable[float | None]) -> str:
    known: Sequence[float] = [value for value in values if value is not None]
    return f"{statistics.mean(known):.2f}" if known else "-"
