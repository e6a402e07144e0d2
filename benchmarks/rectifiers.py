"""Compares rectifiers on the stack of one trained run: none, a sharpening filter, and several weights of lambda.

    python benchmarks/rectifiers.py runs/balls-seed-0 --minutes 4 --out runs/rectifiers [--only NAME ...]

Each that learns has the same minutes on one thread and the settings of the run, but for lambda and, where the name is
not "dreams", without dreams and motion loss. The filter's gain and level are chosen by the balls in dreams of
validation sequences. Scores on the test sequences, with dreams of 150 steps on the first 50 of them, go to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from torchrsm import Evaluator, Trainer, VideoPredictor, bouncing_ball_frames, load
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import on_stack_of, without_dreams
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import RunConfig, load_run_config
from torchrsm.scoring.rollouts import evaluate_rollouts
from torchrsm.storage.tensors import write_atomically

WEIGHTS = {"lambda-0": 0.0, "lambda-2e-4": 2e-4, "lambda-2e-2": 2e-2}  # of the adversarial term, without dreams
LEARNED = (*WEIGHTS, "dreams")
GAINS, LEVELS = (1.25, 1.5, 2.0, 3.0), (0.4, 0.5, 0.6)


def with_rectifier(model: VideoPredictor, rectifier: SharpeningConfig | None) -> VideoPredictor:
    """Return a model of the same stack with another rectifier, which has no weights."""
    other = VideoPredictor(model.config.replace(rectifier=rectifier))
    other.stack.load_state_dict(model.stack.state_dict())
    return other.eval()


def sharpened(model: VideoPredictor, sequences: int = 10) -> VideoPredictor:
    """Return the model with the filter whose validation dreams show three balls in most frames.

    By the error of the next frame no sharpening would be best: an average is what the squared error asks for.
    """
    frames = bouncing_ball_frames("validation", sequences)
    shares = {}
    for gain, level in itertools.product(GAINS, LEVELS):
        candidate = with_rectifier(model, SharpeningConfig(gain=gain, level=level))
        physics = evaluate_rollouts(candidate, frames, steps=50).physics
        shares[gain, level] = physics.windows[0].right_count
    gain, level = max(shares, key=lambda pair: shares[pair])
    print(f"sharpening: gain {gain:g}, level {level:g} is best on validation", flush=True)
    return with_rectifier(model, SharpeningConfig(gain=gain, level=level))


def trained(source: Path, folder: Path, minutes: float, name: str) -> VideoPredictor:
    """Train another rectifier on the stack of a run."""
    run = load_run_config(source)
    assert isinstance(run, RunConfig)
    assert run.rectifying is not None
    run = on_stack_of(run.replace(training=run.training.replace(minutes=minutes, steps=None, threads=1)), str(source))
    if name in WEIGHTS:
        run = run.replace(rectifying=without_dreams(run.rectifying).replace(adversarial_weight=WEIGHTS[name]))
    model = Trainer(run, folder).run()
    assert isinstance(model, VideoPredictor)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dreams", type=int, default=50)
    parser.add_argument("--only", nargs="*", choices=["none", "sharpening", *LEARNED])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    kernels.set_threads(1)
    model = load(arguments.run)
    frames = bouncing_ball_frames("test")
    for name in arguments.only or ["none", "sharpening", *LEARNED]:
        folder = arguments.out / name
        if name in LEARNED:
            rectified = trained(arguments.run, folder, arguments.minutes, name)
        else:
            rectified = with_rectifier(model, None) if name == "none" else sharpened(model)
            rectified.save(folder)
        scores = Evaluator(frames, similarity=False).evaluate(rectified, model=str(folder))
        rollout = evaluate_rollouts(rectified, frames[: arguments.dreams])
        scores = scores.model_copy(update={"rollout": rollout, "training": training_summary(folder)})
        write_atomically(arguments.results / f"rectifier-{name}.json", (scores.to_json() + "\n").encode())
        error = scores.frame_squared_error.all_predictable
        print(f"{name}: {error}, median lifetime {rollout.physics.lifetime:g}", flush=True)


if __name__ == "__main__":
    main()
