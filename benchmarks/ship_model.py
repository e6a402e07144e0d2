"""Puts a trained run among the shipped models: settings, weights, run, and a card with how it was made and scores.

python benchmarks/ship_model.py runs/balls-seed-0 benchmarks/results/balls-seed-0.json --name balls
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from torchrsm import VideoPredictor, load
from torchrsm.rsm.symmetry import tied_parts
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import RUN_FILE, RunConfig, load_run_config, save_run_config
from torchrsm.storage.tensors import write_atomically

MODELS = Path(__file__).parent.parent / "models"


def sight(config: RunConfig) -> str:
    """Return a paragraph: what the stack and the rectifier see, and how each learns."""
    rectifier = VideoPredictor(config.model).rectifier
    assert rectifier is not None
    assert config.model.rectifier is not None
    kind, count = config.model.rectifier.kind, config.model.layers[0].input_frames
    frames = "the last frame" if count == 1 else f"the last {count} frames"
    reads = "the stack's prediction"
    if "cells" in rectifier.sees:
        reads += " and the winners of its layers"
    if "frames" in rectifier.sees:
        reads = f"{frames}, {reads}"
    text = (
        f"The stack reads {frames} and keeps a memory. Each of its layers learns from its own error; no gradient"
        f" crosses a layer or a step. The rectifier (`{kind}`) reads {reads}. It learns by backpropagation"
        " through its own layers."
    )
    if config.model.symmetry != "none":
        who = "Cells and channels" if tied_parts(rectifier) else "Cells"
        what = "turned and mirrored" if config.model.symmetry == "square" else "mirrored"
        text += f" {who} are tied to their {what} copies, so what they learn of one side holds for all."
    if "frames" in rectifier.sees and count > 1:
        text += f" In this world {frames} say all that can be known, so it could do as well without the stack."
    return textwrap.fill(text, 110)


def card(name: str, run: Path, scores: dict[str, Any]) -> str:
    """Return the text of a model's card."""
    config, training = load_run_config(run), training_summary(run)
    assert training is not None
    assert config.rectifying is not None
    budget = config.training
    how = f"--minutes {budget.minutes:g}" if budget.minutes else f"--steps {budget.steps}"
    error, raw, rollout = scores["frame_squared_error"], scores["raw_frame_squared_error"], scores["rollout"]
    windows = rollout["physics"]["windows"]

    def write(summary: dict[str, float]) -> str:
        return f"{summary['mean']:.3f} ± {summary['sd']:.3f}"

    rows = [f"| {window} | {write(error[window])} | {write(raw[window])} |" for window in error]
    physics = [
        f"| {w['first']}..{w['last']} | {w['right_count']:.4f} | {w['mass']:.3f} | {w['kinetic_energy']:.3f} |"
        f" {w['outside']:.4f} | {w['overlap']:.4f} | {w['reflection_degrees']:.1f} |"
        for w in windows
    ]
    r, cores = config.rectifying, "1 core" if training["threads"] == 1 else f"{training['threads']} cores"
    stack = 1 - r.share if r.stack_share is None else r.stack_share
    dreamt = "No stream dreamt while it learned."
    if r.loop_share:
        dreamt = (
            f"In the last {100 * (1 - r.loop_from):g}% of the rectifier's time {100 * r.loop_share:g}% of the streams\n"
            f"dreamt, for up to {r.loop_steps} steps, with the motion loss."
        )
    return "\n".join(
        [
            f"# {name}",
            "",
            "Predicts and imagines video of bouncing balls: a stack of two RSM layers and a rectifier. Its weights fit",
            "frames of any size; it has seen 30 x 30 pixels with three balls.",
            "",
            sight(config),
            "",
            f"    torchrsm train {config.name} --out DIR {how} --threads {training['threads']}"
            f" --seed {training['seed']}",
            "",
            f"{training['minutes']:g} minutes on {cores}: {training['steps']:,} steps,",
            f"{training['frames']:,} frames, none seen twice. The stack learned in the first {stack:.0%} of the",
            f"time, the rectifier in the last {r.share:.0%}. {dreamt} Both the next-frame",
            "scores and the dreams below are of these same weights.",
            "",
            f"## Scores on the {scores['sequences']} test sequences",
            "",
            f"SHA-256 of the frames: `{scores['frames_sha256']}`",
            "",
            "Squared error per frame, mean ± standard deviation over sequences:",
            "",
            "| frames | rectified | raw |",
            "|---|---|---|",
            *rows,
            "",
            f"Dreams of {rollout['steps']} steps after {rollout['prime']} true frames (the world: 3 balls, mass 1,"
            " 2.25 px²):",
            "",
            "| steps | three balls | mass | kinetic energy, px² | outside | overlap | reflection, degrees |",
            "|---|---|---|---|---|---|---|",
            *physics,
            "",
            f"Median lifetime {rollout['physics']['lifetime']:g} of {rollout['steps']} steps;"
            f" {rollout['physics']['never_ended']:.1%} live to the end.",
            "",
            "## Limits",
            "",
            "It has seen nothing but this world. What is left of the error is mostly bounces; a dream follows the",
            "true balls for about ten steps, then it is a video of its own. Frames of another size, or with other",
            "balls, are read, but nothing was measured on them.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    folder = MODELS / arguments.name
    load(arguments.run).save_pretrained(folder)
    text = card(arguments.name, arguments.run, json.loads(arguments.scores.read_text()))
    write_atomically(folder / "card.md", text.encode())
    write_atomically(folder / RUN_FILE, save_run_config(load_run_config(arguments.run)))
    print(folder)


if __name__ == "__main__":
    main()
