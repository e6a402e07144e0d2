"""``presets`` and ``info``: what there is, described."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.model import VideoPredictor
from torchrsm.runs.presets import PRESETS
from torchrsm.runs.settings import RUN_FILE, load_run_config
from torchrsm.storage.folders import model_kind
from torchrsm.storage.shipped import find_model
from torchrsm.systems import load


class PresetsCommand(Config):
    """List the presets, the experiments that `train` knows by name."""


class InfoCommand(Config):
    """Describe a model: its layers, weights and training.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def presets(arguments: list[str]) -> None:
    """Print a line for each preset."""
    parse(PresetsCommand, arguments, "presets")
    width = max(len(name) for name, _ in PRESETS.items())
    for name, make in PRESETS.items():
        print(f"{name:{width}} {(make.__doc__ or '').splitlines()[0].removeprefix('Return ')}")


def info(arguments: list[str]) -> None:
    """Print what a model is made of, and how its run was set."""
    folder = find_model(parse(InfoCommand, arguments, "info").model)
    model = load(folder)
    run = load_run_config(folder) if (folder / RUN_FILE).exists() else None
    weights = sum(p.numel() for p in model.parameters())
    if isinstance(model, VideoPredictor):
        _describe_layers(model, folder, weights)
    else:
        c = model.config
        print(f"{folder}: {model_kind(folder)}, {c.channels} channel(s), {c.height} x {c.width}, {weights:,} weights")
    if run is not None:
        budget = f"{run.training.steps:,} steps" if run.training.steps else f"{run.training.minutes:g} minutes"
        print(f"  run: preset {run.name}, budget {budget}, batch {run.training.batch_size}, seed {run.training.seed}")


def _describe_layers(model: VideoPredictor, folder: Path, weights: int) -> None:
    config = model.config
    size = "any size" if config.height is None else f"{config.height} x {config.width}"
    print(f"{folder}: {config.channels} channel(s), {size}, {weights:,} weights")
    for number, (layer, s) in enumerate(zip(model.stack.layers, config.layers, strict=True), 1):
        weights = sum(p.numel() for p in layer.parameters())
        print(f"  layer {number}: {s.groups} groups x {s.cells_per_group} cells, {s.active_groups} win, ", end="")
        print(f"{s.kernel_size}x{s.kernel_size} stride {s.stride}, {weights:,} weights")
    if model.rectifier is not None and config.rectifier is not None:
        weights = sum(p.numel() for p in model.rectifier.parameters())
        print(f"  rectifier: {config.rectifier.kind}, {weights:,} weights")
