"""Training speed of two ranks with one thread each beside one process with two threads; they take turns.

    python benchmarks/ranks_speed.py --json benchmarks/results/ranks_speed.json

For `balls-window` while its stack learns and while its rectifier learns, and for a wide recurrent stack. While one side
takes its turn the other waits, so that what else happens on the machine meets both alike. A turn is
measured by the clock, and the ratio is that of two turns, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torchrsm
from torchrsm.learning.distributed import joined

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2  # turns that are not counted
SIDES = {"ranks": (2, 1), "threads": (1, 2)}  # processes, and threads of each


def settings(what: str) -> torchrsm.RunConfig:
    """Return the run of a comparison, without its budget."""
    run = torchrsm.preset("balls-window")
    if what == "balls-window, stack":
        return run.replace(**{"rectifying.share": 0.000001, "rectifying.stack_share": None})
    if what == "balls-window, rectifier":
        return run.replace(**{"rectifying.share": 0.999999, "rectifying.stack_share": 0.000002})
    wide = {"groups": 512, "active_groups": 24, "recurrent_kernel_size": 3, "input_frames": 1}
    above = {"groups": 128, "active_groups": 8}
    return run.replace(
        **{f"model.layers.0.{name}": value for name, value in wide.items()},
        **{f"model.layers.1.{name}": value for name, value in above.items()},
        **{"model.rectifier": None, "rectifying": None},
    )


COMPARISONS = ("balls-window, stack", "balls-window, rectifier", "wide stack")


def train(what: str, updates: int, turns: int, threads: int, folder: str) -> None:
    """Train in this process, one of a side; the first of them prints its speed after each turn and waits."""
    run = settings(what)
    budget = {"steps": updates * turns, "minutes": None, "threads": threads, "log_steps": updates}
    run = run.replace(training=run.training.replace(**budget, checkpoint_seconds=1e6))
    begun = 0.0

    def report(record: torchrsm.Record) -> None:
        nonlocal begun
        if begun:
            print(json.dumps(updates * run.training.batch_size / (time.perf_counter() - begun)), flush=True)
        sys.stdin.readline()
        begun = time.perf_counter()

    with joined("ranks_speed") as ranks:
        trainer = torchrsm.Trainer(run, folder, ranks=ranks)
        if ranks.rank == 0:
            print(json.dumps("ready"), flush=True)
            sys.stdin.readline()
        begun = time.perf_counter()
        trainer.run(report)


class Side:
    """The processes of one side, which go on a turn at a time."""

    def __init__(self, name: str, what: str, updates: int, turns: int) -> None:
        count, threads = SIDES[name]
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        launch = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        launch |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
        self._folder = tempfile.TemporaryDirectory()
        child = json.dumps([what, updates, turns, threads, str(Path(self._folder.name) / "run")])
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", child],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
                env={**os.environ, **launch, "RANK": str(rank)},
            )
            for rank in range(count)
        ]
        self._read()

    def turn(self) -> float:
        """Let it take its next updates and return the frames that it learned from in a second."""
        first = self._processes[0]
        assert first.stdin is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        return float(self._read())

    def stop(self) -> None:
        """End the training."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def _read(self) -> str:
        output = self._processes[0].stdout
        assert output is not None
        line = output.readline()
        if not line:
            raise SystemExit("a training has failed; its message is above")
        return json.loads(line)


def compare(what: str, updates: int, turns: int) -> dict[str, float | list[float]]:
    """Return the median speeds in frames a second, and median and quartiles of their ratio."""
    sides = {name: Side(name, what, updates, turns + 1) for name in SIDES}
    speeds: dict[str, list[float]] = {name: [] for name in SIDES}
    try:
        for number in range(turns):
            for name in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
                speeds[name].append(sides[name].turn())
    finally:
        for side in sides.values():
            side.stop()
    ranks, threads = (speeds[name][WARM_UP:] for name in SIDES)
    ratios = [a / b for a, b in zip(ranks, threads, strict=True)]
    return {
        "ranks": statistics.median(ranks),
        "threads": statistics.median(threads),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(*json.loads(options.child))
        return
    result: dict[str, object] = {"updates": options.updates, "turns": options.turns}
    for what in COMPARISONS:
        found = compare(what, options.updates, options.turns)
        low, high = found["ratio_quartiles"]
        print(
            f"{what}: {found['ranks']:.0f} frames/s of 2 ranks with 1 thread each, {found['threads']:.0f} of 1 process "
            f"with 2 threads, ratio {found['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})",
            flush=True,
        )
        result[what] = found
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
