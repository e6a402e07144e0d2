"""``presets`` and ``info``: what there is, described."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from torchrsm.baselines import WITHOUT_WEIGHTS, SequenceModel, make_baseline
from torchrsm.baselines.copy_last import CopyLast
from torchrsm.cli.outputs import check_outputs
from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.model import VideoPredictor
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.record import METRICS_FILE, record_as_csv
from torchrsm.runs.settings import RUN_FILE, AnyRunConfig, RunConfig, load_run_config
from torchrsm.storage.shipped import find_model, shipped_models
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.paths import printable
from torchrsm.systems import load


class PresetsCommand(Config):
    """List the presets, the experiments that `train` knows by name."""


class InfoCommand(Config):
    """Describe a model or a preset: its layers, weights and training.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model, a baseline or a preset.
        csv: write the record of the run here, a line for each record: phase, step, seconds, error and losses.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None


def presets(arguments: list[str]) -> None:
    """Print a line for each preset."""
    parse(PresetsCommand, arguments, "presets")
    width = max(len(name) for name, _ in PRESETS.items())
    for name, make in PRESETS.items():
        print(f"{name:{width}} {(make.__doc__ or '').splitlines()[0].removeprefix('Return ')}")


def info(arguments: list[str]) -> None:
    """Print what a model is made of, and how its run was set."""
    command = parse(InfoCommand, arguments, "info")
    name = command.model
    if command.csv is not None:
        check_outputs({"csv": command.csv}, [name])
        if not (Path(name) / METRICS_FILE).is_file():
            raise ValueError(f"csv is for the folder of a run, which has a {METRICS_FILE}; got {name!r}")
    if name in PRESETS and name not in (*WITHOUT_WEIGHTS, *shipped_models()) and not Path(name).is_dir():
        run = preset(name)
        _describe(VideoPredictor(run.model) if isinstance(run, RunConfig) else make_baseline(run.model), name)
        _describe_run(run)
        return
    try:
        model = load(name)
    except FileNotFoundError as error:
        if Path(name).exists():
            raise
        raise FileNotFoundError(f"{error}; presets: {', '.join(PRESETS)}") from None
    if name in WITHOUT_WEIGHTS and not Path(name).is_dir():
        _describe(model, name)
        return
    folder = find_model(name)
    of_folder = load_run_config(folder) if (folder / RUN_FILE).exists() else None
    _describe(model, str(folder))
    if of_folder is not None:
        _describe_run(of_folder)
    if command.csv is not None:
        write_atomically(command.csv, record_as_csv(folder).encode())
        print(f"record: {printable(command.csv)}")


def _describe(model: VideoPredictor | SequenceModel, name: str) -> None:
    weights = sum(p.numel() for p in model.parameters())
    if isinstance(model, VideoPredictor):
        _describe_layers(model, name, weights)
        return
    c = model.config
    kind, count = c.model_dump()["kind"], f"{weights:,}" if weights else "no"
    size = "any size" if isinstance(model, CopyLast) else f"{c.channels} channel(s), {c.height} x {c.width}"
    print(f"{printable(name)}: {kind}, {size}, {count} weights")


def _describe_run(run: AnyRunConfig) -> None:
    budget = f"{run.training.steps:,} steps" if run.training.steps else f"{run.training.minutes:g} minutes"
    print(f"  run: preset {run.name}, budget {budget}, batch {run.training.batch_size}, seed {run.training.seed}")


def _describe_layers(model: VideoPredictor, name: str, weights: int) -> None:
    config = model.config
    size = "any size" if config.height is None else f"{config.height} x {config.width}"
    print(f"{printable(name)}: {config.channels} channel(s), {size}, {weights:,} weights")
    for number, (layer, s) in enumerate(zip(model.stack.layers, config.layers, strict=True), 1):
        weights = sum(p.numel() for p in layer.parameters())
        print(f"  layer {number}: {s.groups} groups x {s.cells_per_group} cells, {s.active_groups} win, ", end="")
        print(f"{s.kernel_size}x{s.kernel_size} stride {s.stride}, {weights:,} weights")
    if model.rectifier is not None and config.rectifier is not None:
        weights = sum(p.numel() for p in model.rectifier.parameters())
        print(f"  rectifier: {config.rectifier.kind}, {weights:,} weights")
    if model.head is not None:
        print(
            f"  head: {model.head.config.symbols} symbols, {sum(p.numel() for p in model.head.parameters()):,} weights"
        )
