"""Training speed of a preset in this checkout beside another one: two processes that take turns of a few updates.

    git worktree add ../before COMMIT
    python benchmarks/training_speed.py --against ../before --json benchmarks/results/training_speed.json

For each phase of learning (the stack alone, stack and rectifier, the rectifier alone) both checkouts train, each in the
precision that it chooses (or ``--precision`` here). While one takes its turn the other waits, so that what else happens
on the machine meets both alike. A turn is measured in processor time with one thread, by the clock with more; the ratio
is that of two turns, one after the other. The other checkout needs to know no preset of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torchrsm

ROOT = Path(__file__).resolve().parents[1]
PHASES: dict[str, dict[str, float | None]] = {
    "stack": {"share": 0.000001, "stack_share": None},
    "both": {"share": 0.999999, "stack_share": 0.999998},
    "rectifier": {"share": 0.999999, "stack_share": 0.000002},
}
WARM_UP = 2  # turns that are not counted

# Runs in either checkout: it uses public names alone, and settings that both read. After each turn the run waits in its
# report until it is told to go on.
CHILD = """
import json, sys, tempfile, time
import torchrsm

settings, updates = json.loads(sys.argv[1])
known = torchrsm.TrainingConfig.model_fields
settings["training"] = {name: value for name, value in settings["training"].items() if name in known}
run = torchrsm.RunConfig.model_validate_json(json.dumps(settings))
clock = time.process_time if run.training.threads == 1 else time.perf_counter
begun = None

def report(record):
    global begun
    if begun is not None:
        print(json.dumps(updates * run.training.batch_size / (clock() - begun)), flush=True)
    sys.stdin.readline()
    begun = clock()

with tempfile.TemporaryDirectory() as folder:
    trainer = torchrsm.Trainer(run, folder)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    begun = clock()
    trainer.run(report)
"""


class Runner:
    """A training in a checkout, which goes on a turn at a time."""

    def __init__(self, checkout: Path, settings: dict[str, Any], updates: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps([settings, updates])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def turn(self) -> float:
        """Let it take its next updates and return the frames that it learned from in a second."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read())

    def stop(self) -> None:
        """End the training."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a training has failed; its message is above")
        return json.loads(line)


def compare(options: argparse.Namespace, phase: str) -> dict[str, float | list[float]]:
    """Return the median speeds in frames a second, and the quartiles of the ratio, of one phase."""
    turns, updates = options.turns, options.updates
    settings = json.loads(torchrsm.preset(options.preset).model_dump_json())
    settings["rectifying"] |= PHASES[phase]
    settings["training"] |= {
        "steps": updates * (turns + 1),
        "minutes": None,
        "batch_size": options.batch_size or settings["training"]["batch_size"],
        "threads": options.threads,
        "log_steps": updates,
        "precision": options.precision,
    }
    checkouts = {"here": ROOT, "against": options.against.resolve()}
    runners = {name: Runner(path, settings, updates) for name, path in checkouts.items()}
    speeds: dict[str, list[float]] = {"here": [], "against": []}
    try:
        for number in range(turns):
            for name in ("here", "against") if number % 2 == 0 else ("against", "here"):
                speeds[name].append(runners[name].turn())
    finally:
        for runner in runners.values():
            runner.stop()
    here, there = (speeds[name][WARM_UP:] for name in ("here", "against"))
    ratios = [a / b for a, b in zip(here, there, strict=True)]
    return {
        "here": statistics.median(here),
        "against": statistics.median(there),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--preset", default="balls-window")
    parser.add_argument("--updates", type=int, default=10, help="of a turn")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="default: that of the preset")
    parser.add_argument("--precision", default="auto", help="of this checkout")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = ("preset", "updates", "turns", "threads", "batch_size", "precision")
    result: dict[str, object] = {name: getattr(options, name) for name in names}
    for phase in options.phases:
        found = compare(options, phase)
        low, high = found["ratio_quartiles"]
        print(
            f"{phase}: {found['here']:.0f} frames/s here, {found['against']:.0f} there, "
            f"ratio {found['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})",
            flush=True,
        )
        result[phase] = found
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
