"""Training frames per second of the fused kernel beside the dense reference, in one run, taking turns.

Also says what share of the machine's multiply-add peak the fused forward step reaches: its multiply-adds, counted from
the inputs that are not zero, against those of a large matrix product on the same threads.

    python benchmarks/engine_speed.py [--preset paper] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from torchrsm import LocalLearning, Prediction, RunConfig, VideoPredictor, preset, restart
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells
from torchrsm.rsm.kernels import EngineName
from torchrsm.rsm.layer import LayerState, RSMLayer
from torchrsm.streams.settings import make_stream


class Loop:
    """A training loop that can be taken up again for a few steps at a time."""

    def __init__(self, run: RunConfig, engine: EngineName, batch: int, threads: int) -> None:
        torch.manual_seed(0)
        # The dense engine's threads are torch's; the fused one brings its own, and torch's would stand in their way.
        self.torch_threads = threads if engine == "reference" else 1
        self.model = VideoPredictor(run.model, engine).train()
        self.learning = LocalLearning(self.model, run.learning)
        self.learning.set_progress(0.5)
        self.stream = make_stream(run.stream, batch, run.training.seed)
        self.state = self.fresh = self.model.initial_state((batch, *self.stream.frame_shape))

    def step(self) -> Prediction:
        """Learn from one frame of each stream."""
        frames, starts, *_ = next(self.stream)
        state = restart(self.state, self.fresh, starts)
        prediction = self.model.predict_raw(state)
        self.learning.find_gradients(self.model.losses(prediction, frames, ~starts))
        self.learning.step(prediction)
        self.state = self.model.observe(frames, prediction, state)
        return prediction

    def frames_per_second(self, steps: int) -> float:
        """Take these steps and return their speed."""
        torch.set_num_threads(self.torch_threads)
        begun = time.perf_counter()
        for _ in range(steps):
            self.step()
        return steps * self.stream.batch_size / (time.perf_counter() - begun)


def multiply_adds(layer: RSMLayer, state: LayerState, prediction: Prediction, level: int) -> float:
    """Return the multiply-adds of one layer's forward step over the batch, from the inputs that are not zero."""
    config = layer.config
    locations = prediction.layers[level].cells.index.shape[1:3].numel()
    batch = prediction.frame.shape[0]
    reach = config.kernel_size**2 / config.stride**2  # windows that an input is in, edges aside
    if isinstance(state.input, Cells):
        inputs = float((state.input.value != 0).sum())
    else:
        inputs = float((state.input != 0).sum())
    feedforward = inputs * reach * config.groups
    recurrent = float((state.cells.value != 0).sum()) * config.recurrent_kernel_size**2 * config.cells
    feedback = 0 if layer.feedback is None else batch * locations * 2 * config.cells
    decoder = batch * locations * config.active_groups * layer.decoder.shape[1]
    return feedforward + recurrent + feedback + decoder * (level == 0)


def peak(threads: int) -> float:
    """Return multiply-adds a second of a large float32 matrix product."""
    torch.set_num_threads(threads)
    a = torch.randn(1536, 1536)
    a @ a
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    return 1536**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch", type=int, help="streams in parallel; the preset's if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fused-steps", type=int, default=12)
    parser.add_argument("--reference-steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    run = preset(options.preset)
    batch, threads = options.batch or run.training.batch_size, kernels.threads()
    fused, reference = (Loop(run, engine, batch, threads) for engine in ("fused", "reference"))
    for loop in (fused, reference):
        loop.frames_per_second(2)  # compile, and leave the state of the first frames behind
    rows = []
    for turn in range(options.rounds):
        rows.append(
            (fused.frames_per_second(options.fused_steps), reference.frames_per_second(options.reference_steps))
        )
        ours, theirs = rows[-1]
        print(f"turn {turn + 1}: fused {ours:7.0f}  reference {theirs:6.1f}  {ours / theirs:5.1f} x", flush=True)

    torch.set_num_threads(1)
    prediction = fused.step()
    work = sum(
        multiply_adds(layer, state, prediction, level)
        for level, (layer, state) in enumerate(zip(fused.model.stack.layers, fused.state, strict=True))
    )
    times = []
    with torch.no_grad():
        for _ in range(10):
            begun = time.perf_counter()
            fused.model.predict_raw(fused.state)
            times.append(time.perf_counter() - begun)
    reached, possible = work / statistics.median(times), peak(threads)
    result = {
        "preset": options.preset,
        "batch_size": batch,
        "threads": threads,
        "fused_frames_per_second": statistics.median(row[0] for row in rows),
        "reference_frames_per_second": statistics.median(row[1] for row in rows),
        "ratio": statistics.median(row[0] / row[1] for row in rows),
        "ratios": [row[0] / row[1] for row in rows],
        "forward_multiply_adds_per_frame": work / batch,
        "forward_multiply_adds_per_second": reached,
        "peak_multiply_adds_per_second": possible,
        "forward_share_of_peak": reached / possible,
    }
    print(
        f"{options.preset}, batch {batch}, {threads} threads: fused {result['fused_frames_per_second']:.0f} frames/s,"
        f" reference {result['reference_frames_per_second']:.1f}, median ratio {result['ratio']:.1f} x"
    )
    print(
        f"forward step: {work / batch / 1e6:.2f} M multiply-adds a frame, {reached / 1e9:.1f} G a second,"
        f" {reached / possible:.0%} of the peak of {possible / 1e9:.0f} G"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
