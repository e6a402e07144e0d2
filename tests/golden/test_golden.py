"""Twenty steps of the tiny preset, written down: a change of any number here is a change of the method.

A refactoring must leave the file as it is. A change that is meant: ``python tests/golden/test_golden.py`` writes it
anew, and the changelog says what changed and why.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent.parent / "reference")]

from lessons import follow  # noqa: E402
from warm_kernels import tiny_run  # noqa: E402

from torchrsm import LocalLearning, VideoPredictor, restart  # noqa: E402
from torchrsm.streams.settings import make_stream  # noqa: E402

FILE = Path(__file__).parent / "tiny.json"
STEPS = 20


def golden_run() -> list[dict]:
    """Losses, winners and weights at each step; no random number but the stream's, so any torch gives the same."""
    run = tiny_run()
    model = VideoPredictor(run.model).eval()  # eval: without dropout
    with torch.no_grad():
        for parameter in model.parameters():
            wave = torch.arange(parameter.numel(), dtype=torch.float64).mul(12.9898).sin().mul(43758.5453)
            parameter.copy_((wave.frac() * 0.3).reshape(parameter.shape))
    learning = LocalLearning(model, run.learning)
    stream = make_stream(run.stream, 4, run.training.seed)
    state = fresh = model.initial_state((4, *stream.frame_shape))
    record = []
    for step in range(STEPS):
        frames, starts, *_ = next(stream)
        state = restart(state, fresh, starts)
        prediction = model.predict(state)
        losses = model.losses(prediction, frames, ~starts)
        follow(learning, losses, prediction, step / STEPS)
        state = model.observe(frames, prediction, state)
        record.append(
            {
                "losses": [float(loss.detach()) for loss in losses],
                "winners": [int(part.cells.index.sum()) for part in prediction.layers],
                "weights": float(sum(p.detach().double().abs().sum() for p in model.parameters())),
            }
        )
    return record


def test_golden_run() -> None:
    expected, got = json.loads(FILE.read_text()), golden_run()
    assert len(got) == len(expected) == STEPS
    for step, (new, old) in enumerate(zip(got, expected, strict=True)):
        assert new["winners"] == old["winners"], step
        assert new["losses"] == pytest.approx(old["losses"], rel=1e-4), step
        assert new["weights"] == pytest.approx(old["weights"], rel=1e-6), step


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden_run(), indent=1) + "\n")
