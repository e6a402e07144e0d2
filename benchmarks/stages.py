"""The error of the frame that each stage of a rectifier makes, beside that of the stack and of another rectifier.

    python benchmarks/stages.py balls-local --beside balls --json benchmarks/results/stages.json --plot docs/stages.png

On the fixed test sequences (`--split validation` for choices). ``--beside`` is a model of the same stack whose
rectifier learns end to end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from torchrsm import Evaluator, VideoPredictor, bouncing_ball_frames, load
from torchrsm.media.plots import plot_against
from torchrsm.predictor import evaluation_mode
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.streams.splits import frames_sha256


def errors_of_stages(model: VideoPredictor, frames: torch.Tensor, batch_size: int = 50) -> tuple[float, list[float]]:
    """Return the squared error of a frame of the stack, and of each stage: means over all but the first frame.

    Args:
        model: with a rectifier.
        frames: ``[n, t, c, h, w]`` in 0..1.
        batch_size: sequences side by side.
    """
    raw, made, count = 0.0, [0.0] * len(model.rectifier.stage_names), 0
    with torch.inference_mode(), evaluation_mode(model):
        for batch in frames.split(batch_size):
            state = model.initial_state((len(batch), *batch.shape[2:]))
            for number, frame in enumerate(batch.unbind(1)):
                prediction = model.predict(state)
                if number:
                    stages = model.stages(prediction)
                    raw += frame_squared_error(prediction.raw, frame).sum().item()
                    made = [a + frame_squared_error(b, frame).sum().item() for a, b in zip(made, stages, strict=True)]
                    count += len(batch)
                state = model.observe(frame, prediction, state)
    return raw / count, [error / count for error in made]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model, or the name of a shipped one")
    parser.add_argument("--beside", help="a model of the same stack with an end-to-end rectifier")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    frames = bouncing_ball_frames(options.split, options.sequences)
    model = load(options.model)
    if not isinstance(model, VideoPredictor) or model.rectifier is None:
        parser.error(f"model must be RSM with a rectifier; got {options.model!r}")
    raw, stages = errors_of_stages(model, frames)
    result: dict[str, Any] = {
        "model": options.model,
        "split": options.split,
        "sequences": options.sequences,
        "frames_sha256": frames_sha256(frames),
        "raw": raw,
        "stages": stages,
        "beside": None,
    }
    curves = {options.model: (list(range(len(stages) + 1)), [raw, *stages])}
    if options.beside:
        scores = Evaluator(frames, similarity=False).evaluate(load(options.beside))
        error = scores.frame_squared_error.all_predictable.mean
        result["beside"] = {"model": options.beside, "error": error}
        curves[f"{options.beside}, end to end"] = ([1, len(stages)], [error, error])
    print(f"stack {raw:.3f}, stages {', '.join(f'{error:.3f}' for error in stages)}, beside: {result['beside']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot_against(curves, options.plot, across="stage (0: the stack)", upwards="", errors=True)


if __name__ == "__main__":
    main()
