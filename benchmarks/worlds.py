"""Trains one model for many worlds and a specialist for each of them, for the same time, and scores them all.

    python benchmarks/worlds.py --minutes 15 --out runs/worlds --json benchmarks/results/worlds.json

`balls-any` learns from a mixture of worlds, each specialist from one of `WORLDS`. All have the same architecture, begin
with nothing and learn for the same time. Each world has test sequences of its own; the error of the frame before
(`copy-last`) stands beside. The result file is written after every row. What is in it is not scored again, and runs
that are in the folder go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torchrsm import Evaluator, load, preset
from torchrsm.predictor import Predictor
from torchrsm.runs.settings import RunConfig, equal_time
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.settings import BouncingBallsConfig, unseen
from torchrsm.streams.splits import bouncing_ball_frames

sys.path.insert(0, str(Path(__file__).parent))
from trained import trained

ANY = "balls-any"
BEFORE = "copy-last"

WORLDS = {
    "published": BouncingBallsConfig(),
    "radius 0.8": BouncingBallsConfig(radius=0.8),
    "2 large balls, 24 pixels": BouncingBallsConfig(balls=2, radius=1.5, resolution=24),
    "4 small balls, 48 pixels": BouncingBallsConfig(balls=4, radius=0.7, resolution=48),
    "6 balls": BouncingBallsConfig(balls=6, radius=1.0),
    "64 pixels": BouncingBallsConfig(resolution=64),
    "half the speed": BouncingBallsConfig(speed=0.5),
    "twice the speed": BouncingBallsConfig(speed=2.0),
}
"""The worlds that are scored on, which span the ranges of the mixture."""


def specialist(any_world: RunConfig, original: RunConfig, world: BouncingBallsConfig) -> RunConfig:
    """Return the run that learns one world, as its preset does, for as long as the mixture is learned."""
    return original.replace(stream=world, training=any_world.training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--steps", type=int, help="updates in place of minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, help="in place of the presets'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--any", default=ANY, help="preset that learns the mixture")
    parser.add_argument("--specialist", default="balls", help="preset that learns one world")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), metavar="WORLD")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    budget = equal_time(options.minutes, options.threads, options.seed, options.device)
    if options.steps:
        budget |= {"steps": options.steps, "minutes": None}
    if options.batch_size:
        budget["batch_size"] = options.batch_size
    any_world, one_world = preset(options.any), preset(options.specialist)
    if not (isinstance(any_world, RunConfig) and isinstance(one_world, RunConfig)):
        parser.error(f"--any and --specialist must be presets of RSM; got {options.any} and {options.specialist}")
    mixture = any_world.replace(training=any_world.training.replace(**budget))
    settings = {
        "any": options.any,
        "specialist": options.specialist,
        "minutes": None if options.steps else options.minutes,
        "steps": options.steps,
        "batch_size": mixture.training.batch_size,
        "threads": options.threads,
        "device": options.device,
        "seed": options.seed,
        "split": options.split,
        "sequences": options.sequences,
    }
    result: dict[str, Any] = {**settings, "rows": []}
    if options.json.exists():
        result = json.loads(options.json.read_text())
        for name, value in settings.items():
            if result[name] != value:
                parser.error(f"{options.json} was begun with {name} = {result[name]}; it cannot go on with {value}")
    done = {(row["world"], row["system"]) for row in result["rows"]}
    models: dict[str, Predictor[Any, Any]] = {}
    for name in options.worlds:
        world = WORLDS[name]
        for system in (BEFORE, options.any, options.specialist):
            if (name, system) in done:
                continue
            if system == BEFORE:
                model: Predictor[Any, Any] = load(BEFORE)
            elif system == options.any:
                if system not in models:
                    models[system] = trained(mixture, options.out / system)
                model = models[system]
            else:
                folder = options.out / name.replace(",", "").replace(" ", "-")
                model = trained(specialist(mixture, one_world, world), folder)
            frames = bouncing_ball_frames(options.split, options.sequences, world)
            scores = Evaluator(frames, similarity=False).evaluate(model, model=system)
            error, raw = scores.frame_squared_error.all_predictable, scores.raw_frame_squared_error
            result["rows"].append(
                {
                    "world": name,
                    "settings": world.arguments("sequence_length"),
                    "system": system,
                    "frames_sha256_of_world": scores.frames_sha256,
                    "frame_squared_error": error._asdict(),
                    "raw_frame_squared_error": None if raw is None else raw.all_predictable._asdict(),
                    "unseen": unseen(mixture.stream, world) if system == options.any else None,
                }
            )
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())
            print(f"{name}: {system} {error}", flush=True)


if __name__ == "__main__":
    main()
