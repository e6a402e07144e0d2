"""Ablation: which part of a system carries its result, every row trained for the same time and scored alike.

    python benchmarks/ablation.py --minutes 5 --seeds 0,1,2 --out runs/ablation [--system balls] [--rows NAME,...]

The rows are the system's stack alone, with other rectifiers, without its parts, and the last frames without any stack;
then the system's own weights, cut in the test. ``--rows`` names some of them.

The same call goes on where one was interrupted; benchmarks/seeded.py says what the folder holds. After each row all of
that goes to benchmarks/results/ablation.json, from which benchmarks/results_table.py makes the table. Choices are made
on validation sequences, scores are of the test sequences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torchrsm import Evaluator, VideoPredictor, bouncing_ball_frames, fit, frame_shape, load, preset
from torchrsm.baselines import SequenceModel
from torchrsm.interventions import with_shuffled_winners, without_feedback, without_memory
from torchrsm.learning.rectifying import RectifyingConfig
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import LayerConfig
from torchrsm.runs.presets import lowest_layers
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import AnyRunConfig, RunConfig, equal_time
from torchrsm.scoring.evaluation import NextFrameScores
from torchrsm.scoring.rollouts import evaluate_rollouts
from torchrsm.streams.splits import frames_sha256

sys.path.insert(0, str(Path(__file__).parent))
from rectifiers import sharpened
from results_table import RESULTS, run_described
from seeded import SeededResults, names, numbers
from trained import trained

SHAPE = (1, 30, 30)  # of the test sequences' frames

PRIME, DREAM_STEPS = 50, 150

LAST_FRAMES = 4  # of a window, in the rows that have one


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: of its files.
        label: what it is.
        run: of the model that is scored.
        source: the row whose weights it takes; None if it is trained itself.
        change: what makes the model of that row's; nothing learns anew.
        cut: how a cut in the test changes what is seen; empty for no cut.
    """

    name: str
    label: str
    run: AnyRunConfig
    source: str | None = None
    change: Callable[[VideoPredictor], VideoPredictor] | None = None
    cut: str = ""

    @property
    def described(self) -> tuple[str, str]:
        """What each part sees, and how it learns."""
        if self.cut:
            return f"as `{self.run.name}`, but {self.cut}", f"as `{self.run.name}`; nothing learns anew"
        return run_described(self.run)


def rows_of(base: RunConfig) -> list[Row]:
    """Return all rows of a system; those of parts that it does not have are left out.

    Raises:
        ValueError: its rectifier does not learn, or it learns from frames of another size than the test sequences'.
    """
    if base.rectifying is None:
        raise ValueError(f"system must have a rectifier that learns; got {base.name!r}")
    if frame_shape(base.stream) != SHAPE:
        got = " x ".join(map(str, frame_shape(base.stream)))
        raise ValueError(f"system must learn from frames of 1 x 30 x 30; got {got}")
    rectifier = VideoPredictor(base.model).rectifier
    assert rectifier is not None
    sees_winners = "cells" in rectifier.sees
    itself = f"`{base.name}` itself"
    filtered = base.replace(**{"model.rectifier": SharpeningConfig(), "rectifying": None})
    rows = [
        Row("stack", "the stack alone, raw", stack_alone(base)),
        Row(
            "sharpening",
            "+ a sharpening filter, chosen by dreams of validation sequences",
            filtered,
            "stack",
            sharpened,
        ),
        Row("published-rectifier", "+ the published rectifier (GAN)", with_published_rectifier(base)),
        Row("prediction", "+ a rectifier that sees the prediction alone", seeing_the_prediction(base)),
        Row("system", f"+ the winners, too: {itself}" if sees_winners else itself, base),
        Row("last-frames", f"+ the last {LAST_FRAMES} frames, too, in stack and rectifier", seeing_frames(base)),
        Row("frames-alone", f"the last {LAST_FRAMES} frames alone, no stack (`unet`)", without_stack(base)),
        *depths(base),
        Row("no-memory", "trained without memory: recurrent weights 0 in all layers", without_recurrence(base)),
    ]
    if base.model.symmetry != "none":
        free = base.replace(**{"model.symmetry": "none"})
        rows.append(Row("no-symmetry", "trained without symmetry: turned copies of a cell learn apart", free))
    if len(base.model.layers) > 1:
        cut = base.replace(**{"model.feedback": False, "model.fresh_feedback": False})
        rows += [
            Row("no-feedback", "trained without feedback: the layer above learns and only the rectifier hears it", cut),
            Row(
                "one-layer-no-memory",
                "trained with one layer and without memory: the last input is all that it has",
                without_recurrence(lowest_layers(base, 1)),
            ),
        ]
    rows += [
        Row(name, label, base, "system", change, seen) for name, label, change, seen in cuts_of(base, sees_winners)
    ]
    return rows


def cuts_of(base: RunConfig, sees_winners: bool) -> Iterator[tuple[str, str, Callable[..., VideoPredictor], str]]:
    """Return the cuts in the test: name, label, what makes them, and how what is seen changes."""
    yield "memory-zeroed", "recurrent weights set to 0", without_memory, "no memory"
    if len(base.model.layers) > 1 and base.model.feedback:
        yield "feedback-zeroed", "feedback weights set to 0", without_feedback, "no feedback"
        both = "recurrent and feedback weights set to 0"
        yield "both-zeroed", both, lambda m: without_feedback(without_memory(m)), "neither memory nor feedback"
    if sees_winners:
        for among in ("locations", "cells"):
            label = f"winners that the rectifier sees shuffled among {among}"
            yield f"shuffled-{among}", label, shuffling(among), f"winners are shuffled among {among}"


def shuffling(among: str) -> Callable[[VideoPredictor], VideoPredictor]:
    """Return what shuffles the winners of a model, see `with_shuffled_winners`."""
    return lambda model: with_shuffled_winners(model, among)  # type: ignore[arg-type]


def stack_alone(base: RunConfig) -> RunConfig:
    """Return the stack with the whole time to itself."""
    return base.replace(**{"model.rectifier": None, "rectifying": None})


def with_published_rectifier(base: RunConfig) -> RunConfig:
    """Return the published rectifier and how it learns, in the time that the system's own has."""
    assert base.rectifying is not None
    times = RectifyingConfig(share=base.rectifying.share, stack_share=base.rectifying.stack_share)
    return base.replace(**{"model.rectifier": PaperConfig(), "rectifying": times})


def seeing_the_prediction(base: RunConfig) -> RunConfig:
    """Return a rectifier like the system's, but for what it sees."""
    own = base.model.rectifier
    alike = own if isinstance(own, CompactConfig | UNetConfig) else CompactConfig()
    frames = {"sees_frames": False} if isinstance(alike, UNetConfig) else {}
    return base.replace(**{"model.rectifier": alike.replace(sees_cells=False, **frames)})


def seeing_frames(base: RunConfig) -> RunConfig:
    """Return a rectifier that sees prediction, winners and last frames; the stack reads these frames, too."""
    frames = max(LAST_FRAMES, base.model.layers[0].input_frames)
    return base.replace(**{"model.rectifier": UNetConfig(), "model.layers.0.input_frames": frames})


def without_stack(base: RunConfig) -> AnyRunConfig:
    """Return the network of the rectifier with frames alone, on the stream of the system, with the same symmetry."""
    alone = preset("unet").replace(**{"model.symmetry": base.model.symmetry})
    return fit(alone, frame_shape(base.stream), base.stream)


def depths(base: RunConfig) -> Iterator[Row]:
    """Return the system with fewer layers: the lowest one, the lowest two and so on."""
    for count in range(1, len(base.model.layers)):
        layers = "one layer" if count == 1 else f"{count} layers"
        yield Row(f"layers-{count}", f"{layers} of {len(base.model.layers)}", lowest_layers(base, count))


def without_recurrence(base: RunConfig) -> RunConfig:
    """Return the system with layers that never hear their own past."""
    idle = ["recurrent_kernel_size", "recurrent_decay", "normalisation"]
    top = len(base.model.layers) - 1
    changes: dict[str, Any] = {}
    for level in range(len(base.model.layers)):
        hears_above = level < top and base.model.feedback
        for name in idle if hears_above else [*idle, "dropout", "recurrent_deviation"]:
            changes[f"model.layers.{level}.{name}"] = LayerConfig.model_fields[name].default
        changes[f"model.layers.{level}.recurrent"] = False
    return base.replace(**changes)


class Ablation:
    """The rows of a system in a folder.

    Args:
        options: those of the command line.

    Raises:
        SystemExit: the options do not fit, or the folder holds another ablation.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        base = preset(options.system)
        if not isinstance(base, RunConfig):
            raise SystemExit(f"--system must be RSM; got {options.system!r}")
        try:
            self.rows = rows_of(base)
        except ValueError as error:
            raise SystemExit(f"--system: {error}") from None
        known = [row.name for row in self.rows]
        unknown = [name for name in options.rows or () if name not in known]
        if unknown:
            raise SystemExit(f"--rows must be of {', '.join(known)}; got {unknown[0]}")
        self.chosen = [row for row in self.rows if row.name in (options.rows or known)]
        self.seeds: list[int] = options.seeds
        self.settings = {
            "system": options.system,
            "minutes": options.minutes,
            "threads": options.threads,
            "sequences": options.sequences,
            "dream_sequences": min(options.dreams, options.sequences),
            "dream_steps": DREAM_STEPS,
        }
        self.frames = bouncing_ball_frames("test", options.sequences)
        self.results = SeededResults(options.out, options.json, self.settings)

    def run(self) -> None:
        """Do what is not done yet, and write the results after each row."""
        for seed in self.seeds:
            for row in self.chosen:
                if not self.results.has(row.name, seed):
                    scores = self.score(row, seed)
                    self.results.keep(row.name, seed, scores.to_json())
                    print(f"{row.name} seed {seed}: {scores.frame_squared_error.all_predictable}", flush=True)
                self.write()

    def score(self, row: Row, seed: int) -> NextFrameScores:
        """Train a row, or what it is made from, and score it."""
        source = next(other for other in self.rows if other.name == (row.source or row.name))
        folder = self.train(source, seed)
        threads = self.settings["threads"]
        with kernels.threads_in_use(threads, torch_threads=threads):
            model = load(folder)
            if row.change is not None:
                assert isinstance(model, VideoPredictor)
                model = row.change(model)
            return self.scored(model, f"{row.name}-seed-{seed}", training_summary(folder))

    def scored(
        self, model: VideoPredictor | SequenceModel, name: str, training: dict[str, str | int | float] | None
    ) -> NextFrameScores:
        """Score a model on the test sequences; the first of them are dreamt on from."""
        frames = self.frames
        scores = Evaluator(frames, similarity=False).evaluate(model, model=name)
        dreamt = frames[: self.settings["dream_sequences"]]
        rollout = evaluate_rollouts(model, dreamt, prime=PRIME, steps=DREAM_STEPS)
        return scores.model_copy(update={"rollout": rollout, "training": training})

    def train(self, row: Row, seed: int) -> Path:
        """Train a row to the end of its time, from where it was left; return its folder."""
        time = equal_time(self.settings["minutes"], self.settings["threads"], seed)
        run = row.run.replace(training=row.run.training.replace(**time))
        folder = self.results.run_folder(row.name, seed)
        trained(run, folder)
        return folder

    def write(self) -> None:
        """Write the results."""
        entries = []
        for row in self.rows:
            sees, learns = row.described
            entries.append({"name": row.name, "label": row.label, "cut": bool(row.cut), "sees": sees, "learns": learns})
        self.results.write(entries, seed_result, frames_sha256=frames_sha256(self.frames))


def seed_result(seed: int, written: str) -> dict[str, Any]:
    """Return what one training seed of a row scored: means and standard deviations over sequences."""
    scores = NextFrameScores.model_validate_json(written)
    assert scores.rollout is not None
    error, raw, training = scores.frame_squared_error, scores.raw_frame_squared_error, scores.training or {}
    return {
        "seed": seed,
        "minutes": training.get("minutes"),
        "frames": training.get("frames"),
        **{name: getattr(error, name) for name in ("all_predictable", "after_2", "after_10")},
        "raw": None if raw is None else raw.all_predictable,
        "alive": scores.rollout.physics.never_ended,
        "lifetime": scores.rollout.physics.lifetime,
        "energy": scores.rollout.physics.windows[0].kinetic_energy,
    }


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="balls", help="name of a preset; the rows are made from it")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each row and seed")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of training, with commas between")
    parser.add_argument("--rows", type=names, help="names of rows, with commas between; all if left out")
    parser.add_argument("--threads", type=int, default=1, help="of training and scoring")
    parser.add_argument("--sequences", type=int, default=200, help="test sequences that are scored")
    parser.add_argument("--dreams", type=int, default=50, help="of these, how many are dreamt on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be > 0; got {options.minutes:g}")
    if options.sequences < 2 or options.dreams < 1:
        parser.error(f"--sequences must be >= 2 and --dreams >= 1; got {options.sequences} and {options.dreams}")
    return options


def main(arguments: list[str] | None = None) -> None:
    Ablation(options_of(arguments)).run()


if __name__ == "__main__":
    main()
