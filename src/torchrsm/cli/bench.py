"""``bench``: train systems for the same time and score them alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, field_validator

from torchrsm.cli.parsing import parse
from torchrsm.cli.progress import reporting
from torchrsm.config import Config
from torchrsm.devices import choose_device
from torchrsm.learning.ranks import Ranks
from torchrsm.rsm import kernels
from torchrsm.runs.bench import RESULTS_FILE, SYSTEMS, TABLE_FILE, Bench, BenchConfig, table
from torchrsm.runs.bench.memory import WORLDS, MemoryBench, MemoryBenchConfig
from torchrsm.runs.bench.memory_results import memory_table
from torchrsm.runs.settings import DeviceFlag


class BenchCommand(Config):
    """Train systems for the same time on the same cores, score them alike, and write one table.

    Attributes:
        world: what is learned and predicted.
        out: folder of the bench; one that was interrupted goes on, and systems can be added to it.
        systems: `all`, or names of presets, separated by commas.
        minutes: of training, each.
        seeds: training runs of each system, with the seeds 0, 1, ...
        memory_from_length: lengths of training sequences at which the peak memory is measured, separated by commas;
            empty for none.
        threads: of training; None for all cores at hand.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    world: Annotated[Literal["balls"], tyro.conf.Positional] = "balls"
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    minutes: Annotated[float, Field(gt=0)]
    systems: str = "all"
    seeds: Annotated[int, Field(gt=0)] = 1
    memory_from_length: str = "10,50,200"
    threads: Annotated[int | None, Field(gt=0)] = None
    device: DeviceFlag = "cpu"

    @field_validator("memory_from_length")
    @classmethod
    def _lengths(cls, text: str) -> str:
        if not re.fullmatch(r"(\d+(,\d+)*)?", text):
            raise ValueError(f"memory_from_length must be numbers separated by commas; got {text!r}")
        return text


class MemoryBenchCommand(Config):
    """Train systems in worlds where the past decides, for the same time, and write a table for each.

    Attributes:
        out: folder of the bench; one that was interrupted goes on, and worlds and systems can be added to it.
        minutes: of training, each.
        worlds: `all`, or names separated by commas: noise, flicker, blackout and bar are bouncing balls of which not
            all is seen; reber, digits-3 and digits-8x9 are symbols in the order of a grammar.
        systems: `all`, or names of presets separated by commas; `rsm` is the preset of a world of symbols, `n-gram`
            counts them.
        seeds: training runs of each system, with the seeds 0, 1, ...
        threads: of training; None for all cores at hand.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    minutes: Annotated[float, Field(gt=0)]
    worlds: str = "all"
    systems: str = "all"
    seeds: Annotated[int, Field(gt=0)] = 1
    threads: Annotated[int | None, Field(gt=0)] = None


def bench(arguments: list[str], ranks: Ranks) -> None:
    """Train and score systems, and write the table."""
    if arguments[:1] == ["memory"]:
        _bench_memory(arguments[1:], ranks)
        return
    command = parse(BenchCommand, arguments, "bench balls")
    config = BenchConfig(
        world=command.world,
        systems=SYSTEMS if command.systems == "all" else tuple(command.systems.split(",")),
        minutes=command.minutes,
        seeds=command.seeds,
        memory_from_length=tuple(int(length) for length in filter(None, command.memory_from_length.split(","))),
        threads=command.threads or kernels.threads(),
        device=str(choose_device(command.device)),
    )
    results = Bench(config, command.out, ranks).run(reporting)
    print(f"\n{table(results)}\n\nIn {command.out}: {TABLE_FILE}, {RESULTS_FILE}, error.png, memory.png")


def _bench_memory(arguments: list[str], ranks: Ranks) -> None:
    """Train and score systems in worlds where the past decides, and write the tables."""
    command = parse(MemoryBenchCommand, arguments, "bench memory")
    config = MemoryBenchConfig(
        worlds=WORLDS if command.worlds == "all" else tuple(command.worlds.split(",")),
        systems=None if command.systems == "all" else tuple(command.systems.split(",")),
        minutes=command.minutes,
        seeds=command.seeds,
        threads=command.threads or kernels.threads(),
    )
    results = MemoryBench(config, command.out, ranks).run(reporting)
    print(f"\n{memory_table(results)}\n\nIn {command.out}: table.md, results.json, a plot of each world")
