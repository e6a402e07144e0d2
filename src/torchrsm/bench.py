"""Trains systems for the same time on the same cores, scores them alike, and writes one table.

A bench is a folder::

    bench.json               what makes its numbers comparable, `COMPARABLE`
    runs/NAME-seed-N/        a training run each (`torchrsm.training`), a model folder at the same time
    scores/NAME-seed-N.json  its next-frame scores and dreams (`torchrsm.evaluation`)
    memory/NAME-LENGTH.json  peak memory of training on sequences so long
    speed.json               predicted frames a second, all systems in turn
    results.json, table.md   the table, for programs and for readers
    error.png, memory.png    error against minutes of training; peak memory against the length

What is there is not done again: a bench that was interrupted goes on where it was, more systems, seeds and lengths can
be added to one that is finished.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from torchrsm import kernels
from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.checkpoint import make_folder, write_atomically
from torchrsm.config import Config, first_error
from torchrsm.evaluation import Evaluator, NextFrameScores, bouncing_ball_frames, evaluate_rollouts
from torchrsm.media import plot_error_by_minute, plot_memory
from torchrsm.physics import WindowPhysics
from torchrsm.predictor import Predictor
from torchrsm.presets import PRESETS, preset
from torchrsm.runs import RUN_FILE, AnyRunConfig, BaselineRunConfig, RunConfig
from torchrsm.sources import BouncingBallsConfig
from torchrsm.systems import load
from torchrsm.training import Record, Trainer, learning_curve, training_summary

SETTINGS_FILE = "bench.json"
RESULTS_FILE = "results.json"
TABLE_FILE = "table.md"
COMPARABLE = ("world", "minutes", "threads", "sequences", "dream_steps")
"""Settings that are the same for all numbers of a bench."""
PRIME = 50
SPEED_ROUNDS, SPEED_FRAMES = 5, 60
MEMORY_UPDATES = 2
CURVE_MINUTES = 0.25

SYSTEMS = (
    "copy-last",
    "constant-velocity",
    "lstm",
    "rtrbm",
    "srtrbm",
    "dtsbn",
    "pgn",
    "seq2seq-convlstm-multi-decoder",
    "seq2seq-convlstm",
    "convlstm",
    "convlstm-wide",
    "predrnn",
    "simvp",
    "balls",
)
"""What ``all`` stands for, in the order of training."""

PRESETS_IN_ORDER = (*SYSTEMS, *(name for name in PRESETS if name not in SYSTEMS))

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
    "balls_1l": (0.80, 0.07),
}
"""Published squared error per frame, mean and standard deviation; each on its authors' own sequences."""

Reporting = Callable[[str], AbstractContextManager[Callable[[Record], None]]]


class BenchConfig(Config):
    """A bench.

    Attributes:
        world: what is learned and predicted.
        systems: names of presets, see `SYSTEMS`.
        minutes: of training, each.
        seeds: training runs of each system, with the seeds 0, 1, ...
        memory_from_length: lengths of sequences, frames, at which the peak memory of training is measured.
        threads: of training.
        sequences: of the fixed test sequences that are scored.
        dream_steps: of the dreams.
    """

    world: Literal["balls"] = "balls"
    systems: tuple[str, ...] = Field(default=SYSTEMS, min_length=1)
    minutes: float = Field(gt=0)
    seeds: int = Field(default=1, gt=0)
    memory_from_length: tuple[int, ...] = (10, 50, 200)
    threads: int = Field(gt=0)
    sequences: int = Field(default=200, ge=2)
    dream_steps: int = Field(default=150, gt=0)

    @field_validator("systems")
    @classmethod
    def _known(cls, systems: tuple[str, ...]) -> tuple[str, ...]:
        for name in systems:
            if name not in PRESETS:
                raise ValueError(f"systems must be 'all' or among {', '.join(PRESETS)}; got {name!r}")
            stream = preset(name).stream
            size = stream.resolution if isinstance(stream, BouncingBallsConfig) else 0
            if size != 30:
                raise ValueError(f"systems must read frames of 30 x 30; {name!r} reads {size} x {size}")
        return tuple(dict.fromkeys(systems))

    @field_validator("memory_from_length")
    @classmethod
    def _lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        for length in lengths:
            if length < 2:
                raise ValueError(f"memory_from_length must be at least 2 frames; got {length}")
        return tuple(sorted(set(lengths)))


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
        rsm: whether it is one of ours, so that all others are its peers.
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
    sequences: int
    dream_steps: int
    frames_sha256: str
    rows: tuple[Row, ...]


class Bench:
    """A bench in its folder.

    Args:
        config: what to compare.
        folder: made if need be; new, empty, or that of a bench with the same `COMPARABLE` settings.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds another bench.
        OSError: it cannot be made or written.
    """

    def __init__(self, config: BenchConfig, folder: Path | str) -> None:
        self.config = config
        self.folder = Path(folder)
        settings = config.model_dump(include=set(COMPARABLE), mode="json")
        _check_folder(self.folder, settings)
        for part in ("", "runs", "scores", "memory"):
            make_folder(self.folder / part)
        write_atomically(self.folder / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())

    def run(self, reporting: Reporting, say: Callable[[str], None] = print) -> Results:
        """Do what is not done yet, and write the table again after each part.

        Args:
            reporting: gives the function that is called with the records of a run, such as
                `torchrsm.cli.progress.reporting`.
            say: called with a line about each part.

        Raises:
            KeyboardInterrupt: interrupted; the same call goes on.
        """
        for seed in range(self.config.seeds):
            # Every other round backwards, so that no system always has the machine at its coolest.
            for name in self.config.systems[:: 1 if seed % 2 == 0 else -1]:
                if not self._scores_file(name, seed).exists():
                    self._train_and_score(name, seed, reporting)
                    (row,) = (row for row in self._write().rows if row.system == name)
                    say(f"{name} seed {seed}: {row.error:.3f} squared error per frame")
        for length in self.config.memory_from_length:
            for name in self.config.systems:
                file = self.folder / "memory" / f"{name}-{length}.json"
                if name not in WITHOUT_WEIGHTS and not file.exists():
                    peak = peak_mebibytes(_run_config(name, length, self.config.threads))
                    _write_json(file, {"system": name, "length": length, "peak_mebibytes": peak})
                    say(f"{name}: peak memory {peak:,.0f} MiB on sequences of {length} frames")
        self._measure_speed()
        return self._write()

    def _run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-seed-{seed}"

    def _scores_file(self, name: str, seed: int) -> Path:
        return self.folder / "scores" / f"{name}-seed-{seed}.json"

    def _train_and_score(self, name: str, seed: int, reporting: Reporting) -> None:
        run = preset(name)
        changes = {"steps": None, "minutes": self.config.minutes, "threads": self.config.threads, "seed": seed}
        run = run.model_copy(update={"training": run.training.model_copy(update=changes)})
        folder = self._run_folder(name, seed)
        trainer = Trainer(run, folder, resume=(folder / RUN_FILE).exists())
        with reporting(f"{name} seed {seed}") as report:
            trainer.run(report)
        kernels.set_threads(self.config.threads, torch_threads=self.config.threads)
        frames = bouncing_ball_frames("test", self.config.sequences)
        model = load(folder)
        scores = Evaluator(frames).evaluate(model, model=folder.name)
        rollout = evaluate_rollouts(model, frames, prime=PRIME, steps=self.config.dream_steps)
        scores = scores.model_copy(update={"training": training_summary(folder), "rollout": rollout})
        write_atomically(self._scores_file(name, seed), (scores.to_json() + "\n").encode())

    def _measure_speed(self) -> None:
        file = self.folder / "speed.json"
        before, names = json.loads(file.read_text()) if file.exists() else {}, self._scored()
        if set(names) <= before.keys():
            return
        _write_json(file, prediction_speeds({name: load(self._run_folder(name, 0)) for name in names}))

    def _write(self) -> Results:
        """Write the table of all that the folder holds so far."""
        read = [self._row(name) for name in self._scored()]
        rows, sha256 = [row for row, _ in read], read[0][1]
        results = Results(
            frames_sha256=sha256,
            rows=tuple(rows),
            **self.config.model_dump(include=set(COMPARABLE)),
        )
        write_atomically(self.folder / RESULTS_FILE, (results.model_dump_json(indent=1) + "\n").encode())
        write_atomically(self.folder / TABLE_FILE, (table(results) + "\n").encode())
        draw(results, self.folder)
        return results

    def _scored(self) -> list[str]:
        """Return the systems of which there are scores, those of other calls too, in the order of `SYSTEMS`."""
        found = {file.stem.rpartition("-seed-")[0] for file in (self.folder / "scores").glob("*-seed-*.json")}
        return [name for name in PRESETS_IN_ORDER if name in found]

    def _row(self, name: str) -> tuple[Row, str]:
        seeds, sha256, weights, speeds = [], "", 0, []
        numbers = sorted(int(file.stem.rpartition("-")[2]) for file in (self.folder / "scores").glob(f"{name}-seed-*"))
        for number in numbers:
            scores = NextFrameScores.model_validate_json(self._scores_file(name, number).read_bytes())
            folder, sha256 = self._run_folder(name, number), scores.frames_sha256
            seeds.append(_seed(number, scores, folder))
            weights = sum(weight.numel() for weight in load(folder).parameters())
            if seeds[-1].frames and seeds[-1].minutes:
                speeds.append(seeds[-1].frames / seeds[-1].minutes / 60)
        speed_file = self.folder / "speed.json"
        predicted = json.loads(speed_file.read_text()) if speed_file.exists() else {}
        peaks = [json.loads(file.read_text()) for file in (self.folder / "memory").glob(f"{name}-[0-9]*.json")]
        peaks.sort(key=lambda peak: int(peak["length"]))
        row = Row(
            system=name,
            rsm=isinstance(preset(name), RunConfig),
            published=PUBLISHED.get(name),
            weights=weights,
            seeds=tuple(seeds),
            training_frames_per_second=statistics.mean(speeds) if speeds else None,
            prediction_frames_per_second=predicted.get(name),
            peak_mebibytes={peak["length"]: peak["peak_mebibytes"] for peak in peaks},
        )
        return row, sha256


def prediction_speeds(systems: dict[str, Predictor[Any, Any]]) -> dict[str, float]:
    """Return frames a second, predicted and observed, one stream on one thread: the median of rounds in turn."""
    kernels.set_threads(1, torch_threads=1)
    frames = bouncing_ball_frames("validation", 2)[:1]
    rates: dict[str, list[float]] = {name: [] for name in systems}
    with torch.inference_mode():
        for _ in range(1 + SPEED_ROUNDS):
            for name, system in systems.items():
                state = system.initial_state((1, *frames.shape[2:]))
                start = time.perf_counter()
                for frame in frames[:, :SPEED_FRAMES].unbind(1):
                    state = system.observe(frame, system.predict(state), state)
                rates[name].append(SPEED_FRAMES / (time.perf_counter() - start))
    return {name: statistics.median(rate[1:]) for name, rate in rates.items()}  # the first round compiles


def peak_mebibytes(run: AnyRunConfig) -> float:
    """Train in a process of its own and return the peak of its resident memory."""
    child = "from torchrsm.bench import _print_peak; _print_peak()"
    text = json.dumps([isinstance(run, BaselineRunConfig), run.model_dump(mode="json")])
    done = subprocess.run([sys.executable, "-c", child], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {run.name} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _print_peak() -> None:
    """Train a run from the standard input, without a folder, and print the peak of the resident memory."""
    import tempfile

    baseline, settings = json.load(sys.stdin)
    kind: type[AnyRunConfig] = BaselineRunConfig if baseline else RunConfig
    with tempfile.TemporaryDirectory() as folder:
        Trainer(kind.model_validate_json(json.dumps(settings)), folder).run()
    print(_peak_of_this_process())


def _peak_of_this_process() -> float:
    """Return MiB; on Linux from the kernel's own mark, since what getrusage says a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def _run_config(name: str, length: int, threads: int) -> AnyRunConfig:
    """Return a few updates of a system on sequences of a length, the window of those that have one as long."""
    run = preset(name)
    steps = MEMORY_UPDATES if isinstance(run, BaselineRunConfig) else MEMORY_UPDATES * length
    changes: dict[str, Any] = {
        "training": run.training.model_copy(update={"steps": steps, "minutes": None, "threads": threads}),
        "stream": run.stream.model_copy(update={"sequence_length": length}),
    }
    if isinstance(run, BaselineRunConfig):
        changes["learning"] = run.learning.model_copy(update={"window": length})
    return run.model_copy(update=changes)


def _seed(number: int, scores: NextFrameScores, folder: Path) -> Seed:
    assert scores.rollout is not None
    physics, training = scores.rollout.physics, scores.training or {}
    first: WindowPhysics = physics.windows[0]
    late = [window for window in physics.windows if window.first > 1]
    error = scores.frame_squared_error
    windows = {}
    for name in ("all_predictable", "after_2", "after_10"):
        summary = getattr(error, name)
        windows[name] = (summary.mean, summary.sd)
    learned = bool(training.get("frames"))
    curve = learning_curve(folder, CURVE_MINUTES) if learned else None
    return Seed(
        seed=number,
        minutes=float(training["minutes"]) if learned else None,
        frames=int(training["frames"]) if learned else None,
        **windows,
        right_count=first.right_count,
        energy=first.kinetic_energy,
        late_energy=late[0].kinetic_energy if late else None,
        sharpness=first.sharpness,
        lifetime=physics.lifetime,
        alive=physics.never_ended,
        curve=() if curve is None else tuple(zip(curve.minutes, curve.frame_squared_error, strict=True)),
    )


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder; {folder} is a file")
    file = folder / SETTINGS_FILE
    if not file.exists():
        others = sorted(path.name for path in folder.iterdir())
        if others:
            raise FileExistsError(f"{folder} must be new, empty or of a bench; it holds {others[0]}")
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    for name, now in settings.items():
        if not isinstance(before, dict) or before.get(name) != now:
            was = before.get(name) if isinstance(before, dict) else before
            raise ValueError(f"{folder} holds another bench, with {name} = {was}; it cannot go on with {now}")


def _write_json(file: Path, content: Any) -> None:
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


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
