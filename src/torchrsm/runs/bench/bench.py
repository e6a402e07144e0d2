"""Trains systems for the same time on the same cores, scores them alike, and writes one table.

A bench is a folder::

    bench.json               what makes its numbers comparable, `COMPARABLE`
    runs/NAME-seed-N/        a training run each (`torchrsm.runs.trainer`), a model folder at the same time
    scores/NAME-seed-N.json  its next-frame scores and dreams (`torchrsm.scoring.evaluation`)
    memory/NAME-LENGTH.json  peak memory of training on sequences so long
    speed.json               predicted frames a second, all systems in turn
    results.json, table.md   the table, for programs and for readers
    error.png, memory.png    error against minutes of training; peak memory against the length

A bench does nothing twice. One that was interrupted goes on where it was, and more systems, seeds and lengths can be
added to one that is finished.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.config import Config
from torchrsm.devices import DeviceName
from torchrsm.learning.ranks import Ranks
from torchrsm.predictor import Predictor
from torchrsm.rsm import kernels
from torchrsm.runs.bench.folder import take_folder, write_json
from torchrsm.runs.bench.measuring import peak_mebibytes, prediction_speeds, short_run
from torchrsm.runs.bench.results import PUBLISHED, Results, Row, Seed, draw, table
from torchrsm.runs.lock import locked
from torchrsm.runs.presets import PRESETS, preset, unknown_preset
from torchrsm.runs.record import Record, learning_curve, training_summary
from torchrsm.runs.settings import FORMER_NAMES, RunConfig, equal_time
from torchrsm.runs.trainer import trained
from torchrsm.scoring.evaluation import Evaluator, NextFrameScores
from torchrsm.scoring.physics import WindowPhysics
from torchrsm.scoring.rollouts import evaluate_rollouts
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.settings import BouncingBallsConfig
from torchrsm.streams.splits import bouncing_ball_frames
from torchrsm.systems import load

_ALONE = Ranks()

RESULTS_FILE = "results.json"

TABLE_FILE = "table.md"

COMPARABLE = ("world", "minutes", "threads", "device", "sequences", "dream_steps")
"""Settings that are the same for all numbers of a bench."""

PRIME = 50

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
    "unet",
    "balls-window",
    "balls",
)
"""The systems of ``all``, in the order of training."""

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
        device: where systems learn and are scored; the fixed sequences are moved there.
        sequences: of the fixed test sequences that are scored.
        dream_steps: of the dreams.
    """

    world: Literal["balls"] = "balls"
    systems: tuple[str, ...] = Field(default=SYSTEMS, min_length=1)
    minutes: float = Field(gt=0)
    seeds: int = Field(default=1, gt=0)
    memory_from_length: tuple[int, ...] = (10, 50, 200)
    threads: int = Field(gt=0)
    device: DeviceName = "cpu"
    sequences: int = Field(default=200, ge=2)
    dream_steps: int = Field(default=150, gt=0)

    @field_validator("systems")
    @classmethod
    def _known(cls, systems: tuple[str, ...]) -> tuple[str, ...]:
        for name in systems:
            if name not in PRESETS:
                raise ValueError(f"systems must be 'all' or among {', '.join(PRESETS)}; got {unknown_preset(name)}")
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


class Bench:
    """A bench in its folder.

    Args:
        config: what to compare.
        folder: made if need be; new, empty, or that of a bench with the same `COMPARABLE` settings.
        ranks: the processes that share out the systems and seeds; each trains its own ones alone. Rank 0 measures the
            speed of prediction and writes the table.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds another bench.
        OSError: it cannot be made or written.
    """

    def __init__(self, config: BenchConfig, folder: Path | str, ranks: Ranks = _ALONE) -> None:
        self.config = config
        self.folder = Path(folder)
        self._ranks = ranks
        ranks.from_first(self._prepare)

    def _prepare(self) -> None:
        """Make the folder, if it is not that of something else."""
        settings = self.config.model_dump(include=set(COMPARABLE), mode="json")
        take_folder(self.folder, settings, ("runs", "scores", "memory"))
        _rename_former(self.folder)

    def run(self, reporting: Reporting, say: Callable[[str], None] = print) -> Results:
        """Do what is not done yet, and write the table again after each part.

        Args:
            reporting: gives the function that is called with the records of a run.
            say: called with a line about each part.

        Raises:
            KeyboardInterrupt: interrupted; the same call goes on.
            BlockingIOError: another process is writing to the folder.
        """
        with ExitStack() as held:
            self._ranks.from_first(lambda: held.enter_context(locked(self.folder)))
            return self._run(reporting, say)

    def _run(self, reporting: Reporting, say: Callable[[str], None]) -> Results:
        # Every other round runs backwards, so that no system always has the machine at its coolest.
        rounds = [(s, n) for s in range(self.config.seeds) for n in self.config.systems[:: 1 if s % 2 == 0 else -1]]
        missing = self._ranks.from_first(lambda: [(s, n) for s, n in rounds if not self._scores_file(n, s).exists()])
        self._ranks.map(lambda task: self._score(task[1], task[0], reporting, say), missing)
        pairs = [(length, name) for length in self.config.memory_from_length for name in self.config.systems]
        unmeasured = self._ranks.from_first(
            lambda: [(k, n) for k, n in pairs if n not in WITHOUT_WEIGHTS and not self._memory_file(n, k).exists()]
        )
        self._ranks.map(lambda task: self._measure_memory(task[1], task[0], say), unmeasured)
        self._ranks.from_first(self._measure_speed)
        return self._ranks.from_first(self._write)

    def _score(self, name: str, seed: int, reporting: Reporting, say: Callable[[str], None]) -> None:
        self._train_and_score(name, seed, reporting)
        if self._ranks.rank == 0:
            (row,) = (row for row in self._write().rows if row.system == name)
            say(f"{name} seed {seed}: {row.error:.3f} squared error per frame")

    def _measure_memory(self, name: str, length: int, say: Callable[[str], None]) -> None:
        peak = peak_mebibytes(short_run(name, length, self.config.threads, self.config.device))
        write_json(self._memory_file(name, length), {"system": name, "length": length, "peak_mebibytes": peak})
        say(f"{name}: peak memory {peak:,.0f} MiB on sequences of {length} frames")

    def _memory_file(self, name: str, length: int) -> Path:
        return self.folder / "memory" / f"{name}-{length}.json"

    def _run_folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-seed-{seed}"

    def _scores_file(self, name: str, seed: int) -> Path:
        return self.folder / "scores" / f"{name}-seed-{seed}.json"

    def _train_and_score(self, name: str, seed: int, reporting: Reporting) -> None:
        run = preset(name)
        config = self.config
        time = equal_time(config.minutes, config.threads, seed, config.device)
        run = run.replace(training=run.training.replace(**time))
        folder = self._run_folder(name, seed)
        with reporting(f"{name} seed {seed}") as report:
            trained(run, folder, report)
        with kernels.threads_in_use(self.config.threads, torch_threads=self.config.threads):
            frames = bouncing_ball_frames("test", self.config.sequences)
            model = load(folder, device=self.config.device)
            scores = Evaluator(frames).evaluate(model, model=folder.name)
            rollout = evaluate_rollouts(model, frames, prime=PRIME, steps=self.config.dream_steps)
        scores = scores.model_copy(update={"training": training_summary(folder), "rollout": rollout})
        write_atomically(self._scores_file(name, seed), (scores.to_json() + "\n").encode())

    def _measure_speed(self) -> None:
        file = self.folder / "speed.json"
        before, names = json.loads(file.read_text()) if file.exists() else {}, self._scored()
        if set(names) <= before.keys():
            return
        systems: dict[str, Predictor[Any, Any]] = {
            name: load(self._run_folder(name, 0), device=self.config.device) for name in names
        }
        write_json(file, prediction_speeds(systems))

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
        """Return the systems that have scores, including those of other calls, in the order of `SYSTEMS`."""
        found = {file.stem.rpartition("-seed-")[0] for file in (self.folder / "scores").glob("*-seed-*.json")}
        return [name for name in dict.fromkeys((*SYSTEMS, *PRESETS)) if name in found]

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


def _rename_former(folder: Path) -> None:
    """Give what a bench did under the former names of presets the names of today."""
    for former, name in FORMER_NAMES.items():
        for done in [*folder.glob(f"*/{former}-seed-*"), *folder.glob(f"memory/{former}-[0-9]*.json")]:
            done.rename(done.with_name(name + done.name.removeprefix(former)))
