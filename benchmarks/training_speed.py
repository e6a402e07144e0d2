"""Training speed of a preset in this checkout beside another one: two processes that take turns of a few updates.

    git worktree add ../before COMMIT
    python benchmarks/training_speed.py --against ../before --json benchmarks/results/training_speed.json

For each phase of learning (the stack alone, stack and rectifier, the rectifier alone) both checkouts train on one
thread. While one takes its turn the other waits, so that what else happens on the machine meets both alike. A turn is
measured in processor time; the ratio is that of two turns, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

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

preset, changes, updates, turns = json.loads(sys.argv[1])
settings = json.loads(torchrsm.preset(preset).model_dump_json())
settings["rectifying"] |= changes
settings["training"] |= {"steps": updates * turns, "minutes": None, "threads": 1, "log_steps": updates}
run = torchrsm.RunConfig.model_validate_json(json.dumps(settings))
begun = None

def report(record):
    global begun
    if begun is not None:
        print(json.dumps(updates * run.training.batch_size / (time.process_time() - begun)), flush=True)
    sys.stdin.readline()
    begun = time.process_time()

with tempfile.TemporaryDirectory() as folder:
    trainer = torchrsm.Trainer(run, folder)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    begun = time.process_time()
    trainer.run(report)
"""


class Runner:
    """A training in a checkout, which goes on a turn at a time."""

    def __init__(self, checkout: Path, preset: str, phase: str, updates: int, turns: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        settings = json.dumps([preset, PHASES[phase], updates, turns])
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, settings],
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


def compare(against: Path, preset: str, phase: str, updates: int, turns: int) -> dict[str, float | list[float]]:
    """Return the median speeds in frames a second, and the quartiles of the ratio, of one phase."""
    runners = {
        name: Runner(path, preset, phase, updates, turns + 1) for name, path in (("here", ROOT), ("against", against))
    }
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
    parser.add_argument("--preset", default="balls")
    parser.add_argument("--updates", type=int, default=10, help="of a turn")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"preset": options.preset, "updates": options.updates, "turns": options.turns}
    for phase in PHASES:
        found = compare(options.against.resolve(), options.preset, phase, options.updates, options.turns)
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
