"""Trains systems on other worlds than the balls, for the same time each, and scores them on what they have not seen.

    python benchmarks/other_worlds.py digits-32 --systems balls-window convlstm-wide --minutes 5 --out runs/worlds \
        --json benchmarks/results/world-digits-32.json
    python benchmarks/other_worlds.py video --video clip.mp4 --height 48 --systems balls-window --minutes 5 \
        --out runs/worlds --json benchmarks/results/world-video.json

Worlds: digits-32 and digits-64 (Moving MNIST, two digits; test digits of their own) and video (the last fifth, of which
nothing is learned and on which nothing is chosen). The error of repeating the frame before stands beside. Runs that are
in the folder are not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrsm import Evaluator, MovingMNISTConfig, VideoConfig, fit, frame_shape, held_out_frames, load, preset
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.splits import Split

sys.path.insert(0, str(Path(__file__).parent))
from trained import trained


def _scored(stream: VideoConfig | MovingMNISTConfig, split: Split, sequences: int) -> Tensor:
    """Return what is scored: of a film all that is held out, since nothing is chosen on it."""
    if isinstance(stream, VideoConfig):
        return torch.cat([held_out_frames(stream, "validation"), held_out_frames(stream, "test")], dim=1)
    return held_out_frames(stream, split, sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=["digits-32", "digits-64", "video"])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--systems", nargs="+", default=["balls-window", "convlstm-wide"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stream: MovingMNISTConfig | VideoConfig
    if options.world == "video":
        if options.video is None:
            parser.error("the world video needs --video FILE")
        if options.split != "test":
            parser.error(f"--split chooses among the sequences of digits; got {options.split} with a video")
        stream = VideoConfig(
            path=str(options.video), height=options.height, width=options.width, channels=options.channels
        )
    else:
        stream = MovingMNISTConfig(resolution=int(options.world.removeprefix("digits-")))
    frames, shape = _scored(stream, options.split, options.sequences), frame_shape(stream)
    evaluator = Evaluator(frames, similarity=False)
    copied = evaluator.evaluate(load("copy-last")).frame_squared_error.all_predictable
    assert copied is not None
    rows: list[dict[str, Any]] = [{"system": "copy-last", "mean": copied.mean, "sd": copied.sd}]
    for name in options.systems:
        run = fit(preset(name), shape, stream)
        budget = {"steps": None, "minutes": options.minutes, "threads": 1}
        run = run.replace(training=run.training.replace(**budget))
        folder = options.out / f"{options.world}-{name}"
        model = trained(run, folder)
        error = evaluator.evaluate(model).frame_squared_error.all_predictable
        assert error is not None
        rows.append(
            {"system": name, "mean": error.mean, "sd": error.sd, "share_of_copy_last": error.mean / copied.mean}
        )
        print(f"{folder.name}: {error}; the frame before: {copied}", flush=True)
    result = {
        "world": options.world,
        "film": options.video.name if options.video else None,
        "minutes": options.minutes,
        "split": options.split,
        "frames": list(frames.shape),
        "rows": rows,
    }
    if options.json is not None:
        write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
