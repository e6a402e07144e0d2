"""Measures the speed of prediction and the peak memory of training."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from torchrsm.devices import wait_for
from torchrsm.predictor import Predictor
from torchrsm.rsm import kernels
from torchrsm.runs.presets import preset
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig
from torchrsm.runs.trainer import Trainer
from torchrsm.streams.splits import bouncing_ball_frames

SPEED_ROUNDS, SPEED_FRAMES = 5, 60

MEMORY_UPDATES = 2


def prediction_speeds(systems: dict[str, Predictor[Any, Any]]) -> dict[str, float]:
    """Return frames a second, predicted and observed, one stream on one thread: the median of rounds in turn."""
    frames = bouncing_ball_frames("validation", 2)[:1]
    rates: dict[str, list[float]] = {name: [] for name in systems}
    with torch.inference_mode(), kernels.threads_in_use(1):
        for _ in range(1 + SPEED_ROUNDS):
            for name, system in systems.items():
                state = system.initial_state((1, *frames.shape[2:]))
                start = time.perf_counter()
                for frame in frames[:, :SPEED_FRAMES].unbind(1):
                    prediction = system.predict(state)
                    state = system.observe(frame.to(prediction.frame.device), prediction, state)
                wait_for(prediction.frame.device)
                rates[name].append(SPEED_FRAMES / (time.perf_counter() - start))
    return {name: statistics.median(rate[1:]) for name, rate in rates.items()}  # the first round compiles


def peak_mebibytes(run: AnyRunConfig) -> float:
    """Train in a process of its own and return the peak of its resident memory, or of that of its CUDA device."""
    child = "from torchrsm.runs.bench.measuring import print_peak; print_peak()"
    text = json.dumps([isinstance(run, BaselineRunConfig), run.model_dump(mode="json")])
    done = subprocess.run([sys.executable, "-c", child], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {run.name} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def print_peak() -> None:
    """Train a run from the standard input, without a folder, and print the peak of its memory."""
    import tempfile

    baseline, settings = json.load(sys.stdin)
    kind: type[AnyRunConfig] = BaselineRunConfig if baseline else RunConfig
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(kind.from_json(json.dumps(settings)), folder)
        trainer.run()
    on_device = trainer.device.type == "cuda"
    print(torch.cuda.max_memory_allocated(trainer.device) / 1024**2 if on_device else _peak_of_this_process())


def _peak_of_this_process() -> float:
    """Return MiB; on Linux from the kernel's own mark, since what getrusage says a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def short_run(name: str, length: int, threads: int, device: str = "cpu") -> AnyRunConfig:
    """Return a few updates of a system on sequences of a length, the window of those that have one as long."""
    run = preset(name)
    steps = MEMORY_UPDATES if isinstance(run, BaselineRunConfig) else MEMORY_UPDATES * length
    changes: dict[str, Any] = {
        "training": run.training.replace(steps=steps, minutes=None, threads=threads, device=device),
        "stream.sequence_length": length,
    }
    if isinstance(run, BaselineRunConfig):
        changes["learning.window"] = length
    return run.replace(**changes)
