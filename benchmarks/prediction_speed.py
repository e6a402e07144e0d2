"""Measures how fast a model predicts and dreams, one stream at a time, on one thread.

    python benchmarks/prediction_speed.py balls --json benchmarks/results/prediction_speed.json

A frame is one turn of the loop: predict, rectify, observe. Prediction hears true frames, the dream its own; the two are
timed in turn. What the machine can do beside it: the matrix product of torch on the same thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from torchrsm import bouncing_ball_frames, load
from torchrsm.rsm import kernels
from torchrsm.storage.tensors import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kernels.set_threads(1)
    model = load(arguments.model)
    frames = bouncing_ball_frames("validation", 1)
    rates: dict[str, list[float]] = {"predict": [], "dream": []}
    with torch.inference_mode():
        state = model.initial_state((1, *frames.shape[2:]))
        for t in range(50):
            state = model.observe(frames[:, t], model.predict(state), state)
        for _ in range(arguments.rounds):
            for name in rates:
                watched = state
                start = time.perf_counter()
                for t in range(arguments.frames):
                    prediction = model.predict(watched)
                    heard = prediction.frame if name == "dream" else frames[:, 50 + t % 50]
                    watched = model.observe(heard, prediction, watched)
                rates[name].append(arguments.frames / (time.perf_counter() - start))
        a = torch.rand(512, 512)
        start = time.perf_counter()
        for _ in range(20):
            a @ a
        peak = 20 * 512**3 / (time.perf_counter() - start)
    result = {
        "model": arguments.model,
        "threads": 1,
        "batch_size": 1,
        **{f"{name}_frames_per_second": round(statistics.median(rate), 1) for name, rate in rates.items()},
        "matrix_product_multiply_adds_per_second": peak,
    }
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        write_atomically(arguments.json, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
