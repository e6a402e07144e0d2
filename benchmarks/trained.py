"""Trains a run in a folder, or what is left of it, for the benchmarks that go on where they were interrupted."""

from __future__ import annotations

from pathlib import Path

from torchrsm import VideoPredictor
from torchrsm.baselines import SequenceModel
from torchrsm.cli.progress import reporting
from torchrsm.runs import trainer
from torchrsm.runs.settings import AnyRunConfig


def trained(run: AnyRunConfig, folder: Path) -> VideoPredictor | SequenceModel:
    """Train a run to the end of its budget, from where it was left, and return its model."""
    with reporting(folder.name) as report:
        return trainer.trained(run, folder, report)
