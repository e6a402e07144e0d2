"""Trains systems in worlds where the past decides, for the same time, and writes a table for each of them.

The worlds are bouncing balls of which not all is seen, and symbols in the order of a grammar. The folder::

    bench.json                    what makes its numbers comparable
    runs/WORLD-SYSTEM-seed-N/     a training run each
    scores/WORLD-SYSTEM-seed-N.json  what it scored
    results.json, table.md        the tables, for programs and for readers
    WORLD.png                     error or accuracy against what is hidden

Nothing is done twice. A bench that was interrupted goes on where it was; more worlds, systems and seeds can be added.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from torchrsm.baselines.ngram import KneserNey, NGramPredictor
from torchrsm.config import Config
from torchrsm.learning.ranks import Ranks
from torchrsm.rsm import kernels
from torchrsm.runs.bench.bench import Reporting
from torchrsm.runs.bench.folder import take_folder, write_json
from torchrsm.runs.bench.memory_results import (
    DisturbedCase,
    MemoryResults,
    MemoryRow,
    MemorySeed,
    WindowCeiling,
    draw_memory,
    memory_table,
)
from torchrsm.runs.fitting import fit
from torchrsm.runs.lock import locked
from torchrsm.runs.presets import PRESETS, preset, unknown_preset
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import AnyRunConfig, RunConfig, equal_time
from torchrsm.runs.trainer import trained
from torchrsm.scoring.disturbed import score_disturbed
from torchrsm.scoring.symbols import evaluate_symbols
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.bouncing_balls import bouncing_ball_sequences
from torchrsm.streams.disturbed import DisturbanceConfig
from torchrsm.streams.grammar import named_grammar
from torchrsm.streams.settings import BouncingBallsConfig, GrammarConfig, StreamConfig, frame_shape, symbol_stream
from torchrsm.streams.splits import held_out_symbols, split_seed
from torchrsm.systems import load

_ALONE = Ranks()

DISTURBANCES: dict[str, tuple[float, ...]] = {
    "noise": (0.1, 0.2, 0.4),
    "flicker": (0.3, 0.5, 0.7),
    "blackout": (2, 5, 10, 20),
    "bar": (6, 10, 14),
}
"""Worlds of balls of which not all is seen, and the values at which systems are scored; they learn from a mixture."""

SYMBOLS = ("reber", "digits-3", "digits-8x9")
"""Worlds of symbols; the preset of RSM for each has its name."""

WORLDS = (*DISTURBANCES, *SYMBOLS)

N_GRAM = "n-gram"
"""The system that counts; it is told the symbols, even where they are shown as pictures."""

OF_BALLS = ("copy-last", "balls", "simvp", "simvp-10", "predrnn", "convlstm-wide")

OF_SYMBOLS = ("rsm", "symbol-lstm", "window-network", N_GRAM)
"""The systems of worlds of symbols; ``rsm`` is the preset of the world."""

WINDOWS = (1, 2, 4, 8)
"""Windows whose ceilings stand beside the scores."""

_ORDERS = (2, 3, 5, 9, 13)  # of n-grams, of which the best on validation is taken
_MOST_COUNTED = 1_000_000  # symbols
_STREAMS, _STEPS = 100, 500  # of symbols that are scored


class MemoryBenchConfig(Config):
    """A bench of worlds in which the past decides.

    Attributes:
        worlds: names of `WORLDS`.
        systems: names of presets, ``rsm`` or ``n-gram``; None for those of each world, `OF_BALLS` and `OF_SYMBOLS`.
        minutes: of training, each.
        seeds: training runs of each system, with the seeds 0, 1, ...
        threads: of training.
        sequences: of the fixed test sequences of balls that are scored.
    """

    worlds: tuple[str, ...] = Field(default=WORLDS, min_length=1)
    systems: tuple[str, ...] | None = Field(default=None, min_length=1)
    minutes: float = Field(gt=0)
    seeds: int = Field(default=1, gt=0)
    threads: int = Field(gt=0)
    sequences: int = Field(default=50, ge=2)

    @field_validator("worlds")
    @classmethod
    def _worlds_are_known(cls, worlds: tuple[str, ...]) -> tuple[str, ...]:
        for world in worlds:
            if world not in WORLDS:
                raise ValueError(f"worlds must be 'all' or among {', '.join(WORLDS)}; got {world!r}")
        return tuple(dict.fromkeys(worlds))

    @field_validator("systems")
    @classmethod
    def _systems_are_known(cls, systems: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in systems or ():
            if name not in (*OF_SYMBOLS, *PRESETS):
                known = ", ".join((*OF_BALLS, *OF_SYMBOLS))
                raise ValueError(f"systems must be 'all' or presets, such as {known}; got {unknown_preset(name)}")
        return None if systems is None else tuple(dict.fromkeys(systems))

    def systems_of(self, world: str) -> tuple[str, ...]:
        """Return the systems that learn a world: those of its kind among the systems that are asked for."""
        usual = OF_SYMBOLS if world in SYMBOLS else OF_BALLS
        if self.systems is None:
            return usual
        others = OF_BALLS if world in SYMBOLS else OF_SYMBOLS
        return tuple(name for name in self.systems if name in usual or name not in others)


class MemoryBench:
    """A bench of worlds in which the past decides, in its folder.

    Args:
        config: what to compare.
        folder: made if need be; new, empty, or that of a bench of the same settings.
        ranks: the processes that share out the runs.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds another bench.
        OSError: it cannot be made or written.
    """

    def __init__(self, config: MemoryBenchConfig, folder: Path | str, ranks: Ranks = _ALONE) -> None:
        self.config = config
        self.folder = Path(folder)
        self._ranks = ranks
        self._settings = {"bench": "memory"} | config.model_dump(include={"minutes", "threads", "sequences"})
        ranks.from_first(lambda: take_folder(self.folder, self._settings, ("runs", "scores")))

    def run(self, reporting: Reporting, say: Callable[[str], None] = print) -> MemoryResults:
        """Do what is not done yet, and write the tables again after each part.

        Args:
            reporting: gives the function that is called with the records of a run.
            say: called with a line about each part.

        Raises:
            KeyboardInterrupt: interrupted; the same call goes on.
            BlockingIOError: another process is writing to the folder.
        """
        config = self.config
        tasks = [(n, w, s) for n in range(config.seeds) for w in config.worlds for s in config.systems_of(w)]
        with ExitStack() as held:
            self._ranks.from_first(lambda: held.enter_context(locked(self.folder)))
            missing = self._ranks.from_first(lambda: [t for t in tasks if not self._scores_file(*t).exists()])
            self._ranks.map(lambda task: self._do(*task, reporting, say), missing)
            return self._ranks.from_first(self._write)

    def _do(self, seed: int, world: str, system: str, reporting: Reporting, say: Callable[[str], None]) -> None:
        label = f"{world}: {system} seed {seed}"
        with kernels.threads_in_use(self.config.threads, torch_threads=self.config.threads):
            if system == N_GRAM:
                scores = self._counted(world, seed)
            else:
                folder = self._trained(seed, world, system, reporting, label)
                scores = self._scored(world, seed, load(folder)).model_copy(
                    update={"frames": (training_summary(folder) or {}).get("frames")}
                )
        write_atomically(self._scores_file(seed, world, system), (scores.model_dump_json(indent=1) + "\n").encode())
        say(f"{label}: {scores.summary}")
        if self._ranks.rank == 0:
            self._write()

    def _trained(self, seed: int, world: str, system: str, reporting: Reporting, label: str) -> Path:
        """Train a system in a world to the end of its time, and return its folder."""
        run = run_for(world, system)
        run = run.replace(training=run.training.replace(**equal_time(self.config.minutes, self.config.threads, seed)))
        folder = self.folder / "runs" / f"{world}-{system}-seed-{seed}"
        with reporting(label) as report:
            trained(run, folder, report)
        return folder

    def _scored(self, world: str, seed: int, model: Any) -> MemorySeed:
        if world in SYMBOLS:
            scores = evaluate_symbols(model, held_out_symbols(_symbols_of(world), "test", _STREAMS), _STEPS)
            return MemorySeed(seed=seed, symbols=scores)
        count = self.config.sequences
        sequences = bouncing_ball_sequences(range(count), seed=split_seed("test", count))
        cases = []
        for value in DISTURBANCES[world]:
            found = score_disturbed(model, sequences, disturbance_of(world, (value,)))
            cases.append(
                DisturbedCase(
                    value=value,
                    error=found.error.mean,
                    after_gap=None if found.after_gap is None else found.after_gap.mean,
                    gap_distance=found.gap_distance,
                    near_bar=None if found.near_bar is None else found.near_bar.mean,
                )
            )
        return MemorySeed(seed=seed, cases=tuple(cases))

    def _counted(self, world: str, seed: int) -> MemorySeed:
        """Count n-grams for the time of a training, take the order that is best on validation, and score that."""
        told = _symbols_of(world).replace(pictures="one-hot")
        models = [KneserNey(order, len(told.symbols())) for order in _ORDERS]
        counted = _count(models, told, seed, self.config.minutes * 60)
        on_validation = [
            evaluate_symbols(NGramPredictor(model), held_out_symbols(told, "validation", 20), 200).perplexity
            for model in models
        ]
        best = models[on_validation.index(min(on_validation))]
        scores = evaluate_symbols(NGramPredictor(best), held_out_symbols(told, "test", _STREAMS), _STEPS)
        return MemorySeed(seed=seed, symbols=scores, frames=counted, order=best.order)

    def _write(self) -> MemoryResults:
        """Write the tables of all that the folder holds so far."""
        rows = []
        for world in WORLDS:
            names = {
                file.stem.removeprefix(f"{world}-").rpartition("-seed-")[0]
                for file in (self.folder / "scores").glob(f"{world}-*-seed-*.json")
                if _world_of(file.stem) == world
            }
            for system in sorted(names):
                files = sorted((self.folder / "scores").glob(f"{world}-{system}-seed-*.json"))
                seeds = sorted(
                    (MemorySeed.model_validate_json(file.read_bytes()) for file in files), key=lambda one: one.seed
                )
                rows.append(MemoryRow(world=world, system=system, rsm=is_rsm(system), seeds=tuple(seeds)))
        ceilings = {world: ceilings_of(world) for world in SYMBOLS if any(row.world == world for row in rows)}
        results = MemoryResults(
            minutes=self.config.minutes,
            threads=self.config.threads,
            sequences=self.config.sequences,
            rows=tuple(rows),
            ceilings=ceilings,
        )
        write_json(self.folder / "results.json", results.model_dump(mode="json"))
        write_atomically(self.folder / "table.md", (memory_table(results) + "\n").encode())
        draw_memory(results, self.folder)
        return results

    def _scores_file(self, seed: int, world: str, system: str) -> Path:
        return self.folder / "scores" / f"{world}-{system}-seed-{seed}.json"


def disturbance_of(world: str, values: tuple[float, ...] | None = None) -> DisturbanceConfig:
    """Return what disturbs balls in a world: its mixture, or given values."""
    chosen = DISTURBANCES[world] if values is None else values
    whole = world in ("blackout", "bar")
    return DisturbanceConfig.model_validate({world: tuple(int(value) if whole else value for value in chosen)})


def stream_of(world: str) -> StreamConfig:
    """Return what systems learn from in a world."""
    if world in SYMBOLS:
        return _symbols_of(world)
    return BouncingBallsConfig(disturbance=disturbance_of(world))


def _symbols_of(world: str) -> GrammarConfig:
    """Return the symbols of a world, those of the preset of its name."""
    stream = preset(world).stream
    assert isinstance(stream, GrammarConfig)
    return stream


def run_for(world: str, system: str) -> AnyRunConfig:
    """Return the run of a system in a world; ``rsm`` is the preset that has the name of the world."""
    if system == "rsm":
        return preset(world)
    stream = stream_of(world)
    return fit(preset(system), frame_shape(stream), stream)


def is_rsm(system: str) -> bool:
    """Return whether a system is RSM."""
    return system == "rsm" or (system in PRESETS and isinstance(preset(system), RunConfig))


@functools.cache
def ceilings_of(world: str) -> tuple[WindowCeiling, ...]:
    """Return the best that is possible in a world of symbols, for each window and for all that came before."""
    stream = _symbols_of(world)
    grammar, found = named_grammar(stream.grammar), []
    for window in (*WINDOWS, None):
        best = grammar.ceiling(window, first=not stream.restarts)
        found.append(WindowCeiling(window=window, all=best.all, last=best.marked))
    return tuple(found)


def _count(models: list[KneserNey], stream: GrammarConfig, seed: int, seconds: float) -> int:
    """Count for a time, or until there is nothing new to learn; return how many symbols were counted."""
    begun, counted = time.process_time(), 0
    strings = symbol_stream(stream, 1, seed, dephased=False)
    row: list[int] = []
    longest = 1000  # of a row without marks
    while counted < _MOST_COUNTED and time.process_time() - begun < seconds:
        batch = next(strings)
        assert batch.symbols is not None
        if row and (bool(batch.starts[0]) or len(row) >= longest):
            for model in models:
                model.count(row)
            counted += len(row)
            row = []
        row.append(int(batch.symbols[0]))
    return counted


def _world_of(name: str) -> str:
    """Return the world whose name a file name begins with, the longest one."""
    return max((world for world in WORLDS if name.startswith(f"{world}-")), key=len, default="")
