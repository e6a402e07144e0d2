"""Training speed of a preset in this checkout beside another one, in turn, in processes of their own.

    git worktree add ../before COMMIT
    python benchmarks/training_speed.py --against ../before --json benchmarks/results/training_speed.json

Each process trains the same few steps of `balls` on one thread, once for each phase of learning (the stack alone, stack
and rectifier, the rectifier alone), and reports frames a second without the time of starting and compiling.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Runs in either checkout: it knows public names alone, and settings as both read them.
CHILD = """
import json, sys, tempfile, time
import torchrsm
from pathlib import Path

steps, preset = int(sys.argv[1]), sys.argv[2]
made = {}
phases = {"stack": (0.0, None), "both": (0.999999, 0.999998), "rectifier": (0.999999, 0.000002)}
for phase, (share, stack_share) in phases.items():
    run = torchrsm.preset(preset)
    settings = json.loads(run.model_dump_json())
    settings["rectifying"] |= {"share": share, "stack_share": stack_share}
    if phase == "stack":
        settings["rectifying"] = {"share": 0.0}
    settings["training"] |= {"steps": steps, "minutes": None, "threads": 1, "log_steps": 10 * steps}
    run = torchrsm.RunConfig.model_validate_json(json.dumps(settings))
    seen = []
    for short in (True, False):  # the first run compiles and warms up
        with tempfile.TemporaryDirectory() as folder:
            if short:
                fewer = json.loads(run.model_dump_json())
                fewer["training"]["steps"] = 3
                torchrsm.Trainer(torchrsm.RunConfig.model_validate_json(json.dumps(fewer)), folder).run()
            else:
                trainer = torchrsm.Trainer(run, folder)
                start = time.process_time()
                trainer.run(seen.append)
                made[phase] = steps * run.training.batch_size / (time.process_time() - start)
print(json.dumps(made))
"""


def frames_per_second(checkout: Path, steps: int, preset: str) -> dict[str, float]:
    """Return frames a second of processor time by phase."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-c", CHILD, str(steps), preset]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--preset", default="balls")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        order = [("here", ROOT), ("against", arguments.against.resolve())]
        measured = {
            name: frames_per_second(checkout, arguments.steps, arguments.preset)
            for name, checkout in (order if number % 2 == 0 else reversed(order))
        }
        rounds.append(measured)
        print(f"round {number + 1}: " + "; ".join(f"{name} {rates}" for name, rates in measured.items()), flush=True)
    ratios = {
        phase: [one["here"][phase] / one["against"][phase] for one in rounds]
        for phase in ("stack", "both", "rectifier")
    }
    result = {
        "preset": arguments.preset,
        "steps": arguments.steps,
        "frames_per_second": {
            name: {phase: statistics.median(one[name][phase] for one in rounds) for phase in ratios}
            for name in ("here", "against")
        },
        "ratio": {
            phase: {"median": statistics.median(values), "low": min(values), "high": max(values)}
            for phase, values in ratios.items()
        },
    }
    for phase, ratio in result["ratio"].items():
        print(f"{phase}: ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
