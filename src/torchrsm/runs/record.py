"""The record of a run: what it reports while it learns, and what can be read from that later."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

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


def record_as_csv(folder: Path | str) -> str:
    """Return the record of the run in a folder as a table of comma-separated values, a line for each record.

    The columns are phase, step, seconds, frame_squared_error, and each loss under its name, empty where a phase has
    none of it.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    records, timing = _read(folder)
    names = list(dict.fromkeys(name for record in records for name in record["losses"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["phase", "step", "seconds", "frame_squared_error", *names])
    for record, at in zip(records, timing, strict=True):
        losses = [record["losses"].get(name, "") for name in names]
        table.writerow([record["phase"], record["step"], at["seconds"], record["frame_squared_error"], *losses])
    return text.getvalue()


def _read(folder: Path | str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a run has written at each record, and when."""
    records, timing = (
        [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]
        for name in (METRICS_FILE, TIMING_FILE)
    )
    return records, timing


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
    records, timing = _read(folder)
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
