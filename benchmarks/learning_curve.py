"""Collects the error against training minutes from the records of runs.

    python benchmarks/learning_curve.py runs/balls-window-seed-0 --json benchmarks/results/learning_curve.json

The error is that of frames before they were learned from, none of them seen twice: raw while the stack learns,
rectified while the rectifier does. It is averaged over each half minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torchrsm.media.plots import plot_error_by_minute
from torchrsm.runs.record import learning_curve, training_summary
from torchrsm.runs.settings import RunConfig, load_run_config
from torchrsm.storage.tensors import write_atomically


def curve(folder: Path, minutes: float = 0.5) -> dict[str, Any]:
    """Return minutes, phase and error of a run, one value for each stretch of ``minutes``."""
    return {
        "run": folder.name,
        "training": training_summary(folder),
        "rectifier_from_minute": _boundary(folder),
        **learning_curve(folder, minutes)._asdict(),
    }


def _boundary(folder: Path) -> float | None:
    run = load_run_config(folder)
    if not isinstance(run, RunConfig) or run.rectifying is None or run.training.minutes is None:
        return None
    return run.training.minutes * (1 - run.rectifying.share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    curves = [curve(folder) for folder in arguments.runs]
    write_atomically(arguments.json, (json.dumps({"curves": curves}, indent=1) + "\n").encode())
    if arguments.plot is not None:
        lines = {c["run"]: (c["minutes"], c["frame_squared_error"]) for c in curves}
        plot_error_by_minute(lines, arguments.plot, marks={"published, RSM 2L + GAN": 0.41})
    for c in curves:
        below = [m for m, e in zip(c["minutes"], c["frame_squared_error"], strict=True) if e <= 0.41]
        print(f"{c['run']}: 0.41 first reached at minute {below[0] if below else '-'}")


if __name__ == "__main__":
    main()
