"""Measure how many frames per second a stream delivers on one core, rendering included.

Prints a table; ``--json FILE`` also writes the numbers. Each figure is the best of several runs, after compilation::

    python benchmarks/stream_speed.py --json benchmarks/results/stream_speed.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from torchrsm.streams import ArrayStream, BouncingBalls, Pad, Stream, bouncing_ball_sequences


def streams() -> dict[str, Stream]:
    return {
        "bouncing balls, 30x30, batch 1": BouncingBalls(1),
        "bouncing balls, 30x30, batch 64": BouncingBalls(64),
        "bouncing balls, 30x30, batch 256": BouncingBalls(256),
        "bouncing balls padded to 34x34, batch 256": Pad(BouncingBalls(256), 2),
        "10 balls of radius 0.6, 30x30, batch 64": BouncingBalls(64, balls=10, radius=0.6),
        "bouncing balls, 60x60, batch 64": BouncingBalls(64, resolution=60),
        "array of 30x30 frames, batch 64": ArrayStream(bouncing_ball_sequences(64).frames, 64),
    }


def frames_per_second(stream: Stream, frames: int) -> float:
    steps = -(-frames // stream.batch_size)
    begin = time.perf_counter()
    for _ in range(steps):
        next(stream)
    return steps * stream.batch_size / (time.perf_counter() - begin)


def measure(frames: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    for name, stream in streams().items():
        frames_per_second(stream, 10 * stream.batch_size)  # compile
        rows.append(
            {"stream": name, "frames_per_second": round(max(frames_per_second(stream, frames) for _ in range(runs)))}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Frames per second of the streams on one core.")
    parser.add_argument("--frames", type=int, default=20_000, help="frames of each run")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the best counts")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rows = measure(arguments.frames, arguments.runs)
    print(f"{'stream':<44}{'frames/s':>12}")
    for row in rows:
        print(f"{row['stream']:<44}{row['frames_per_second']:>12,}")
    if arguments.json:
        report = {"machine": platform.machine(), "threads": 1, "frames": arguments.frames, "streams": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
