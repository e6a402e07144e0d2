"""Compares ways in which a rectifier learns, on the stack of one trained model, for equal time.

    python benchmarks/rectifiers.py --stack balls --minutes 5 --seeds 0,1,2 --out runs/rectifiers [--rows NAME,...]

A row is a rectifier, end to end (``unet``) or of local stages (``local``); what teaches it, the squared error, that and
an adversary of two weights, or the energy score; and whether streams dream on the way and are held to the world's
motion. Nothing else differs. Beside them stand the stack alone and a filter that sharpens its prediction.

The rows learn from the stream of the stack, and are scored on what is held out of it. So a stack that was trained on
balls that are kicked (``torchrsm train kicked-balls``) or that turn at a mark (``two-way-balls``) compares them where
several futures are possible; name a file of its own for it with ``--json``. At the mark it is counted how often they
turn left.

The same call goes on where one was interrupted; benchmarks/seeded.py says what the folder holds. After each row all of
that goes to benchmarks/results/rectifiers.json, from which benchmarks/results_table.py makes the table. The filter is
chosen on validation sequences, scores are of the test sequences.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchrsm import Evaluator, LocalConfig, UNetConfig, VideoPredictor, load
from torchrsm.predictor import Predictor
from torchrsm.rectifiers import RectifierConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import on_stack_of, without_dreams
from torchrsm.runs.settings import RunConfig, equal_time, load_run_config
from torchrsm.sampling import Sampled
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.scoring.rollouts import evaluate_rollouts, world_geometry
from torchrsm.scoring.samples import evaluate_samples
from torchrsm.scoring.sequences import predict_sequences
from torchrsm.scoring.two_ways import evaluate_two_ways
from torchrsm.storage.shipped import find_model
from torchrsm.streams.chance_balls import two_way_ball_sequences
from torchrsm.streams.settings import PUBLISHED_BALLS, BallWorldConfig, TwoWayBallsConfig
from torchrsm.streams.splits import frames_sha256, held_out_frames, split_seed

sys.path.insert(0, str(Path(__file__).parent))
from seeded import SeededResults, names, numbers
from trained import trained

RESULTS = Path(__file__).parent / "results"

KINDS: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "sees_frames": False},
    "local": {"kind": "local"},
}

LOSSES: dict[str, dict[str, Any]] = {
    "squared-error": {"adversarial_weight": 0.0},
    "gan-0.0002": {"adversarial_weight": 0.0002},
    "gan-0.02": {"adversarial_weight": 0.02},
    "energy-score": {"adversarial_weight": 0.0, "loss": "energy_score"},
}

NOISE = {"noise_channels": 8}

PRIME, DREAM_STEPS, LONG_DREAM_STEPS = 50, 150, 1000

SAMPLES = 16

GAINS, LEVELS = (1.25, 1.5, 2.0, 3.0), (0.4, 0.5, 0.6)


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: of its files.
        label: what it is.
        run: what is trained; None where nothing is.
    """

    name: str
    label: str
    run: RunConfig | None


def rows_on(stack: str) -> list[Row]:
    """Return all rows on the stack of a model, the folder of its run or the name of a shipped one.

    Raises:
        ValueError: it has no rectifier that learns.
        FileNotFoundError: there is no such run.
    """
    folder = find_model(stack)
    base = load_run_config(folder)
    if not isinstance(base, RunConfig) or base.rectifying is None:
        raise ValueError(f"the model must be RSM with a rectifier that learns; got {base.name!r}")
    base = on_stack_of(base, str(folder))
    return [
        Row("none", "none: the stack alone", None),
        Row("sharpening", "a filter that sharpens, chosen by dreams of validation sequences", None),
        *_learned(base),
    ]


def world_of(stack: str) -> BallWorldConfig:
    """Return the world of balls that a stack has learned from.

    Raises:
        SystemExit: it has learned from something else.
    """
    run = load_run_config(find_model(stack))
    if not isinstance(run, RunConfig) or not isinstance(run.stream, BallWorldConfig):
        raise SystemExit(f"--stack must be RSM that has learned from one world of balls; got {run.name!r}")
    return run.stream


def _learned(base: RunConfig) -> Iterator[Row]:
    assert base.rectifying is not None
    titles = {"unet": "end to end", "local": "local stages"}
    losses = {
        "squared-error": "squared error",
        "gan-0.0002": "squared error and GAN, 0.0002",
        "gan-0.02": "squared error and GAN, 0.02",
        "energy-score": "energy score",
    }
    for kind, loss, motion in itertools.product(KINDS, LOSSES, (False, True)):
        learning = (base.rectifying if motion else without_dreams(base.rectifying)).replace(**LOSSES[loss])
        config = KINDS[kind] | (NOISE if loss == "energy-score" else {})
        run = base.replace(**{"rectifying": learning, "model.rectifier": _rectifier(config)})
        end = ", motion" if motion else ""
        yield Row(f"{kind}-{loss}{'-motion' if motion else ''}", f"{titles[kind]}: {losses[loss]}{end}", run)


def _rectifier(settings: dict[str, Any]) -> RectifierConfig:
    kind: type[RectifierConfig] = LocalConfig if settings["kind"] == "local" else UNetConfig
    return kind.model_validate(settings)


def with_rectifier(model: VideoPredictor, rectifier: SharpeningConfig | None) -> VideoPredictor:
    """Return a model of the same stack with another rectifier, which has no weights."""
    other = VideoPredictor(model.config.replace(rectifier=rectifier))
    other.stack.load_state_dict(model.stack.state_dict())
    return other.eval()


def sharpened(model: VideoPredictor, world: BallWorldConfig = PUBLISHED_BALLS, sequences: int = 10) -> VideoPredictor:
    """Return the model with the filter whose validation dreams show the right number of balls in most frames.

    By the error of the next frame no sharpening would be best: an average is what the squared error asks for.
    """
    frames, geometry = held_out_frames(world, "validation", sequences), world_geometry(world)
    shares = {}
    for gain, level in itertools.product(GAINS, LEVELS):
        candidate = with_rectifier(model, SharpeningConfig(gain=gain, level=level))
        physics = evaluate_rollouts(candidate, frames, steps=50, geometry=geometry).physics
        shares[gain, level] = physics.windows[0].right_count
    gain, level = max(shares, key=lambda pair: shares[pair])
    print(f"sharpening: gain {gain:g}, level {level:g} is best on validation", flush=True)
    return with_rectifier(model, SharpeningConfig(gain=gain, level=level))


def scores_of(
    model: VideoPredictor, frames: Tensor, dreams: int, samples: int, world: BallWorldConfig = PUBLISHED_BALLS
) -> dict[str, Any]:
    """Return what a row is measured by; of a rectifier that draws, by its draws.

    The energy score of a prediction that is no chance is the length of its error.
    """
    geometry = world_geometry(world)
    drawn: Predictor[Any, Any] = Sampled(model) if model.draws_futures else model
    scores = Evaluator(frames, similarity=False).evaluate(drawn)
    found: dict[str, Any] = {"frame_squared_error": scores.frame_squared_error.all_predictable.mean}
    if model.draws_futures:
        draws = evaluate_samples(model, frames[:samples], SAMPLES)
        found |= {
            "mean_error": draws.mean_error.mean,
            "raw_error": draws.raw_error.mean,
            "energy_score": draws.energy_score.mean,
            "first_energy_score": draws.first_energy_score.mean,
            "calibration": draws.calibration,
            "blurred": draws.blurred,
            "blurred_truth": draws.blurred_truth,
        }
    else:
        predicted, raw = _predictions(model, frames[:samples])
        came = frames[:samples, 1:]
        error = frame_squared_error(predicted, came).sqrt()
        blurred = [((x > 0.1) & (x < 0.9)).double().mean().item() for x in (predicted, came)]
        found |= {
            "mean_error": None,
            "raw_error": frame_squared_error(raw, came).mean().item(),
            "energy_score": error.mean().item(),
            "first_energy_score": error[:, 0].mean().item(),
            "calibration": None,
            "blurred": blurred[0],
            "blurred_truth": blurred[1],
        }
    for steps, name in ((DREAM_STEPS, "dream"), (LONG_DREAM_STEPS, "long_dream")):
        physics = evaluate_rollouts(drawn, frames[:dreams], prime=PRIME, steps=steps, geometry=geometry).physics
        whole, last = physics.windows[-1], physics.windows[-2] if len(physics.windows) > 1 else physics.windows[-1]
        found[name] = {
            "steps": steps,
            "energy": whole.kinetic_energy,
            "last_energy": last.kinetic_energy,
            "lifetime": physics.lifetime,
            "alive": physics.never_ended,
        }
    if isinstance(world, TwoWayBallsConfig):
        sequences = two_way_ball_sequences(len(frames), seed=split_seed("test", len(frames)), **world.arguments())
        ways = evaluate_two_ways(model, sequences, SAMPLES if model.draws_futures else 0, radius=world.radius)
        found["two_ways"] = ways._asdict()
    return found


def _predictions(model: VideoPredictor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frame predicted after each but the last, rectified and raw, ``[n, t - 1, c, h, w]`` each."""
    predicted = predict_sequences(model, frames)
    raw = predicted.frames if predicted.raw is None else predicted.raw
    return predicted.frames[:, 1:], raw[:, 1:]


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="balls", help="folder of a model, or the name of a shipped one")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each row and seed")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of training, with commas between")
    parser.add_argument("--rows", type=names, help="names of rows, with commas between; all if left out")
    parser.add_argument("--threads", type=int, default=1, help="of training and scoring")
    parser.add_argument("--sequences", type=int, default=200, help="test sequences that are scored")
    parser.add_argument("--samples", type=int, default=20, help="of these, how many are drawn several times from")
    parser.add_argument("--dreams", type=int, default=20, help="of these, how many are dreamt on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=RESULTS / "rectifiers.json")
    options = parser.parse_args(arguments)
    for name, low in (("minutes", 0), ("sequences", 1), ("samples", 0), ("dreams", 0)):
        if not getattr(options, name) > low:
            parser.error(f"--{name} must be > {low}; got {getattr(options, name):g}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    try:
        rows = rows_on(options.stack)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"--stack: {error}") from None
    known = [row.name for row in rows]
    unknown = [name for name in options.rows or () if name not in known]
    if unknown:
        raise SystemExit(f"--rows must be of {', '.join(known)}; got {unknown[0]}")
    world = world_of(options.stack)
    frames = held_out_frames(world, "test", options.sequences)
    shared = ("stack", "minutes", "threads", "sequences", "samples", "dreams")
    settings = {name: getattr(options, name) for name in shared}
    results = SeededResults(options.out, options.json, settings)
    entries = [{"name": row.name, "label": row.label} for row in rows]
    sha256 = frames_sha256(frames)
    for seed in options.seeds:
        for row in rows:
            if row.name not in (options.rows or known) or results.has(row.name, seed):
                continue
            with kernels.threads_in_use(options.threads, torch_threads=options.threads):
                model = _made(row, seed, options, results, world)
                scores = scores_of(model, frames, options.dreams, options.samples, world)
            results.keep(row.name, seed, json.dumps(scores))
            print(f"{row.name} seed {seed}: {scores['frame_squared_error']:.3f}", flush=True)
            results.write(
                entries,
                lambda seed, written: {"seed": seed} | json.loads(written),
                world=world.subject,
                energy=world_geometry(world).energy,
                frames_sha256=sha256,
            )


def _made(
    row: Row, seed: int, options: argparse.Namespace, results: SeededResults, world: BallWorldConfig
) -> VideoPredictor:
    """Return the model of a row, trained where it learns."""
    if row.run is None:
        stack = load(options.stack)
        assert isinstance(stack, VideoPredictor)
        return with_rectifier(stack, None) if row.name == "none" else sharpened(stack, world)
    time = equal_time(options.minutes, options.threads, seed)
    run = row.run.replace(training=row.run.training.replace(**time))
    model = trained(run, results.run_folder(row.name, seed))
    assert isinstance(model, VideoPredictor)
    return model.eval()


if __name__ == "__main__":
    main()
