"""The record of a run: what it reports while it learns, and what can be read from that later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from torchrsm.runs.checkpoint import CHECKPOINT_FILE, load_checkpoint
from torchrsm.runs.settings import load_run_config

METRICS_FILE = "metrics.jsonl"

TIMING_FILE = "timing.jsonl"


class Record(NamedTuple):
    """What a run reports every `log_steps` steps and at the end of a phase.

    Attributes:
        phase: what learns.
        step: updates done, of all phases.
        progress: share of the run that is done, in 0..1.
        frame_squared_error: mean over the frames since the last record, first frames left out, each predicted before it
            was learned from; of RSM the raw prediction while the stack learns, the rectified one while the rectifier
            does.
        losses: over the same frames, see ``loss_names``.
        loss_names: what they are.
        seconds: of training, resumed parts included.
        frames_per_second: since the last record.
    """

    phase: str
    step: int
    progress: float
    frame_squared_error: float
    losses: tuple[float, ...]
    loss_names: tuple[str, ...]
    seconds: float
    frames_per_second: float


def training_summary(folder: Path | str) -> dict[str, str | int | float] | None:
    """Say how the model in a folder was trained: preset, seed, threads, steps, frames and minutes; None if unknown."""
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        return None
    run, header = load_run_config(folder), load_checkpoint(path)[1]
    return {
        "preset": run.name,
        "seed": run.training.seed,
        "threads": header["threads"],
        "steps": header["step"],
        "frames": header["step"] * run.training.batch_size * run.frames_in_a_step,
        "minutes": round(header["seconds"] / 60, 2),
    }


class LearningCurve(NamedTuple):
    """The error of a run's training frames, each predicted before it was learned from.

    Attributes:
        minutes: of training, at the end of each stretch.
        phase: what learned in it.
        frame_squared_error: mean over it.
    """

    minutes: list[float]
    phase: list[str]
    frame_squared_error: list[float]


def learning_curve(folder: Path | str, minutes: float = 0.5) -> LearningCurve:
    """Read the error of the run in a folder, averaged over stretches of ``minutes``.

    A record of no frame that could be predicted, whose error is 0, is left out.
    """
    records, timing = (
        [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]
        for name in (METRICS_FILE, TIMING_FILE)
    )
    stretches: dict[tuple[int, str], list[float]] = {}
    total = timing[-1]["seconds"] / 60 / minutes if timing else 0.0
    last = max(0, math.ceil(total - 0.1) - 1)  # a budget ends a step late, which must not make another stretch
    for record, at in zip(records, timing, strict=True):
        if record["frame_squared_error"] == 0:
            continue
        stretch = (min(int(at["seconds"] / 60 / minutes), last), record["phase"])
        stretches.setdefault(stretch, []).append(record["frame_squared_error"])
    return LearningCurve(
        [minutes * (stretch + 1) for stretch, _ in stretches],
        [phase for _, phase in stretches],
        [round(sum(errors) / len(errors), 4) for errors in stretches.values()],
    )
