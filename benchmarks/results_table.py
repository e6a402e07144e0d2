"""Writes the result tables from the files in benchmarks/results, between markers, and draws the plots.

    python benchmarks/results_table.py [--check]

README.md gets one short table, docs/science/results.md all of them but those of costs and their predictions, which
docs/science/scaling.md gets. With ``--check`` nothing is written; the exit code
is 1 if a page does not say what the files say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from torchrsm.baselines import ConstantVelocityConfig, CopyLastConfig, DTSBNConfig, FramesUNetConfig, SimVPConfig
from torchrsm.baselines.rtrbm import BoltzmannConfig
from torchrsm.model import VideoPredictor
from torchrsm.rsm.symmetry import tied_parts
from torchrsm.runs.bench import Results, Row, draw, read_results, verdict
from torchrsm.runs.bench.memory_results import MemoryResults, memory_table
from torchrsm.runs.bench.online_results import OnlineResults, Search, draw_online, drift_table, online_table
from torchrsm.runs.presets import preset
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig

sys.path.insert(0, str(Path(__file__).parent))
from scaling import tables as tables_of_costs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
ALL_RESULTS = ROOT / "docs" / "science" / "results.md"
COSTS = ROOT / "docs" / "science" / "scaling.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# The systems of README.md; the stack of `balls` alone is put among them by its error.
HEADLINE = ("balls", "balls-window", "simvp", "predrnn", "convlstm-wide", "copy-last")

SEEDS = ["balls-seed-0.json", "balls-seed-1.json", "balls-seed-2.json"]

# Label, result file, which of its errors, and the published figure of the same quantity (docs/science/protocol.md).
RECTIFIED, RAW = "frame_squared_error", "raw_frame_squared_error"
ROWS = [
    ("frame t-1 (`copy-last`)", "copy-last.json", RECTIFIED, "11.82 ± 0.27"),
    ("**RSM, two layers, rectified** (`balls`)", SEEDS[0], RECTIFIED, "0.41 ± 0.05"),
    ("the same, raw", SEEDS[0], RAW, "3.72 ± 0.30"),
    ("RSM on four frames at once, rectified (`balls-window`)", "balls-window-seed-0.json", RECTIFIED, "0.41 ± 0.05"),
    ("the same, raw", "balls-window-seed-0.json", RAW, "3.72 ± 0.30"),
    ("RTRBM whose last frame sets the biases, too (`rtrbm --model.direct`)", "rtrbm-direct.json", RECTIFIED, "-"),
    ("RSM, the published two layers, raw (`paper-fast`)", "paper-fast.json", RECTIFIED, "3.72 ± 0.30"),
    ("RSM, the published first layer alone, raw (`paper-fast-1l`)", "paper-fast-1l.json", RECTIFIED, "-"),
]

# Every part for minutes, over several seeds; and the shipped model, cut in the test.
ABLATIONS = ("ablation.json", "ablation-shipped.json")

# On the stack of `balls`, and on those that learned from worlds in which several futures are possible.
RECTIFIERS = ("rectifiers.json", "rectifiers-kicked.json", "rectifiers-two-way.json")

WORLDS = ("world-digits-32.json", "world-digits-64.json", "world-traffic.json", "world-bikes.json")


def read(name: str) -> Any:
    """Return the content of a result file, or None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def score(summary: dict[str, float] | None) -> str:
    """Write mean ± standard deviation."""
    return "-" if summary is None else f"{summary['mean']:.2f} ± {summary['sd']:.2f}"


def cores(count: int) -> str:
    """Write how many cores there were."""
    return "1 core" if count == 1 else f"{count} cores"


def number(value: float | None) -> str:
    """Write a figure that may be unknown."""
    return "-" if value is None else f"{value:.2f}"


def tables() -> str:
    """Return all that stands between the markers of docs/science/results.md."""
    parts = (
        *(_bench(), _systems(), _errors(), *map(_ablation, ABLATIONS), _rectifiers(), _stages(), _rectifier_cost()),
        *(_where_the_past_decides(), _words(), _online(), _dreams()),
        *(_worlds_of_balls(), _worlds(), _watching(), _film_memory(), _speed()),
    )
    return "\n\n".join(part for part in parts if part)


def headline() -> str:
    """Return the table of README.md, best first: the error, what a system sees, how it learns, how its dreams end."""
    bench = longest()
    rows = {row.system: row for row in bench.rows}
    chosen = [rows[system] for system in HEADLINE]
    lines = [
        (
            row.error,
            f"`{row.system}`",
            error_of(row),
            *described(row.system),
            f"{row.alive:.1%}",
        )
        for row in chosen
    ]
    raw, shipped = read(SEEDS[0]), ""
    if raw:
        error = raw[RAW]["all_predictable"]
        balls = preset("balls")
        assert isinstance(balls, RunConfig)
        (_, sees), learns = stack_described(balls)
        training = raw["training"]
        budget = f"{training['minutes']:g} min on {cores(training['threads'])}"
        name = f"`balls`, the stack of the shipped model after {budget}"
        lines.append((error["mean"], name, score(error), sees, learns, "-"))
        shipped = (
            f" The shipped `balls`, after {budget} and with one training seed, has"
            f" {score(raw[RECTIFIED]['all_predictable'])}."
        )
    trained = [row for row in chosen if row.seeds[0].minutes]
    return "\n".join(
        [
            "Squared error per frame, the sum over its 900 pixels, mean ± standard deviation over"
            f" {bench.sequences} test sequences, after {bench.minutes:g} minutes of training on {cores(bench.threads)}"
            f" ({seeds_of(trained)})."
            f" Alive: the share of dreams of {bench.dream_steps} steps that still look like the world at their end."
            f"{shipped}",
            "",
            "| system | squared error | sees | learns by | alive |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(cells)} |" for _, *cells in sorted(lines)),
        ]
    )


def seeds_of(rows: list[Row]) -> str:
    """Say how many training seeds there are."""
    counts = {len(row.seeds) for row in rows}
    if counts == {1}:
        return "one training seed each"
    return f"{min(counts)} to {max(counts)} training seeds each" if len(counts) > 1 else f"{counts.pop()} seeds each"


def described(system: str) -> tuple[str, str]:
    """Return what a system sees when it predicts, and how it learns, from the settings of its preset."""
    return run_described(preset(system))


def run_described(run: AnyRunConfig) -> tuple[str, str]:
    """Return the same of a run."""
    if isinstance(run, RunConfig):
        return rsm_described(run)
    assert isinstance(run, BaselineRunConfig)
    memory, through_time = "each frame once, and a memory", f"backpropagation through {run.learning.window} frames"
    match run.model:
        case CopyLastConfig():
            return "the last frame", "nothing"
        case ConstantVelocityConfig():
            return "the last 2 frames", "nothing"
        case BoltzmannConfig():
            return memory, f"contrastive divergence and {through_time}"
        case DTSBNConfig(order=order):
            return f"the last {order} frames, and hidden units of as many steps", "variational inference (NVIL)"
        case FramesUNetConfig(context=context, symmetry=symmetry):
            ties = tied("channel", symmetry != "none")
            return f"the last {context} frames", f"backpropagation through its layers{ties}"
        case SimVPConfig(context=context):
            return f"the last {context} frames", "backpropagation through its layers"
    return memory, through_time


def rsm_described(run: RunConfig) -> tuple[str, str]:
    """Return the same of RSM: its stack and, where there is one that learns, its rectifier."""
    (frames, stack_sees), learns = stack_described(run)
    rectifier = VideoPredictor(run.model).rectifier
    if rectifier is None:
        return stack_sees, learns
    words = {"frames": frames, "prediction": "the stack's prediction", "cells": "its winners"}
    reads = [said for seen, said in words.items() if seen in rectifier.sees]
    assert run.model.rectifier is not None
    how = "nothing"
    if run.model.rectifier.learns:
        how = f"backpropagation through its own layers{tied('channel', bool(tied_parts(rectifier)))}"
    return f"stack: {stack_sees}; rectifier: {', '.join(reads)}", f"stack: {learns}; rectifier: {how}"


def stack_described(run: RunConfig) -> tuple[tuple[str, str], str]:
    """Return which frames the stack reads, all that it sees, and how it learns."""
    first = run.model.layers[0]
    frames = "each frame once" if first.input_frames == 1 else f"the last {first.input_frames} frames"
    trace = "" if first.input_decay is None else " and what is left of those before"
    layers, several = run.model.layers, len(run.model.layers) > 1
    past = ", and a memory" if all(layer.recurrent for layer in layers) else ""
    if several and not run.model.feedback:
        past += ", but no feedback" if past else ", and neither memory nor feedback"
    elif not past:
        past = ", and of the past what the layer above feeds back" if several else ", and no memory"
    ties = tied("cell", run.model.symmetry != "none")
    return (f"{frames}{trace}", f"{frames}{trace}{past}"), f"each layer from its own error{ties}"


def tied(what: str, ties: bool) -> str:
    """Return what to add where turned copies are tied."""
    return f", turned copies of a {what} together" if ties else ""


def _systems() -> str:
    """What each system of the bench sees and how it learns, best first."""
    rows = sorted(longest().rows, key=lambda row: row.error) if benches() else []
    lines = [f"| `{row.system}` | {' | '.join(described(row.system))} |" for row in rows]
    head = [
        "What each system sees when it predicts a frame, and how it learns:",
        "",
        "| system | sees | learns by |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *lines]) if lines else ""


def benches() -> dict[float, Results]:
    """Return the results of the benches by their minutes; of a system in two of the same time those of more seeds."""
    found: dict[float, Results] = {}
    for file in sorted(RESULTS.glob("bench-*.json")):
        results = read_results(file)
        before = found.get(results.minutes, results)
        rows = {row.system: row for row in (*before.rows, *results.rows)}
        rows |= {row.system: row for row in before.rows if len(row.seeds) > len(rows[row.system].seeds)}
        found[results.minutes] = before.model_copy(update={"rows": tuple(rows.values())})
    return dict(sorted(found.items()))


def longest() -> Results:
    """Return all systems in one table, each from its longest bench; the rest is the longest bench's."""
    by_minutes = benches()
    rows = {row.system: row for results in by_minutes.values() for row in results.rows}
    return list(by_minutes.values())[-1].model_copy(update={"rows": tuple(rows.values())})


def _bench() -> str:
    """Every system under one scorer: the error after each time, the rest from its longest training."""
    by_minutes = benches()
    if not by_minutes:
        return ""
    rows = {row.system: row for row in longest().rows}
    errors = {minutes: {row.system: error_of(row) for row in results.rows} for minutes, results in by_minutes.items()}
    one = next(iter(by_minutes.values()))
    head = [
        "system",
        "published",
        *(f"{minutes:g} min" for minutes in by_minutes),
        "weights",
        "trains, frames/s",
        "predicts, frames/s",
        "three balls",
        "energy, px²",
        "lifetime, steps",
        "alive",
    ]
    lines = [
        "Every system under one scorer: each trained from nothing on the same stream for the same time on"
        f" {cores(one.threads)}. The other core was busy with something else, so a minute is one of processor time."
        " The columns after the errors are of a system's longest training;"
        f" three balls and energy are of the first 50 steps of {one.dream_steps} that it dreamt, after 50 true frames.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in sorted(rows.values(), key=lambda row: row.error):
        first = row.seeds[0]
        cells = [
            f"**`{row.system}`**" if row.rsm else f"`{row.system}`",
            "-" if row.published is None else pair(row.published),
            *(errors[minutes].get(row.system, "-") for minutes in by_minutes),
            f"{row.weights:,}" if row.weights else "-",
            whole(row.training_frames_per_second),
            whole(row.prediction_frames_per_second),
            f"{first.right_count:.3f}",
            number(first.energy),
            f"{row.lifetime:g}",
            f"{row.alive:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for minutes, results in by_minutes.items():
        said = verdict(results)
        if said:
            said.append("Of rows with one training seed a difference of a few per cent ranks nobody.")
        lines += ["", f"{minutes:g} minutes. {' '.join(said)}"] if said else []
    return "\n".join([*lines, *_memory(), *_searches()])


def error_of(row: Row) -> str:
    """Write the error of a system: mean ± standard deviation over sequences; of several seeds their mean and range."""
    if len(row.seeds) == 1:
        return pair(row.seeds[0].all_predictable)
    means = [seed.all_predictable[0] for seed in row.seeds]
    return f"{row.error:.3f} ({min(means):.3f}..{max(means):.3f}, {len(means)} seeds)"


def memory_peaks() -> dict[str, dict[int, float]]:
    """Return the peak memory of every system that was measured, MiB by length."""
    rows = (row for results in benches().values() for row in results.rows)
    return {row.system: row.peak_mebibytes for row in rows if row.peak_mebibytes}


def _memory() -> list[str]:
    peaks_by_system = memory_peaks()
    lengths = sorted({length for peaks in peaks_by_system.values() for length in peaks})
    if not lengths:
        return []
    lines = [
        "",
        "Peak memory of training, MiB, on sequences of so many frames, through all of which the gradient goes back"
        " (RSM's goes back through none):",
        "",
        f"| system | {' | '.join(map(str, lengths))} | growth |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for system, by_length in peaks_by_system.items():
        peaks = [by_length[length] for length in lengths if length in by_length]
        if len(peaks) == len(lengths):
            values = " | ".join(f"{peak:,.0f}" for peak in peaks)
            lines.append(f"| `{system}` | {values} | {peaks[-1] / peaks[0]:.2f} |")
    return lines


def _searches() -> list[str]:
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("search-*.json"))]
    lines = [
        f"`{search['system']}` "
        + ", ".join(f"x{row['factor']:g}: {row['frame_squared_error']['mean']:.2f}" for row in search["rows"])
        + f" ({search['minutes']:g} min)"
        for search in found
    ]
    if not lines:
        return []
    return [
        "",
        "Learning rates were searched on validation sequences, the presets' rates times a factor: "
        + "; ".join(lines)
        + ".",
    ]


def pair(value: tuple[float, float] | None) -> str:
    """Write mean ± standard deviation."""
    return "-" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def whole(value: float | None) -> str:
    """Write a count that may be unknown."""
    return "-" if value is None else f"{value:,.0f}"


def _errors() -> str:
    lines = [
        "| system | published | here: all predictable | after 2 | after 10 | training |",
        "|---|---|---|---|---|---|",
    ]
    for label, name, kind, published in ROWS:
        result = read(name)
        if result is None:
            continue
        error, training = result[kind], result.get("training")
        how = "none"
        if training:
            frames, threads = training["frames"] / 1e6, training["threads"]
            how = f"{training['minutes']:.0f} min on {cores(threads)}, {frames:.2f} M frames"
        windows = " | ".join(score(error[window]) for window in ("all_predictable", "after_2", "after_10"))
        lines.append(f"| {label} | {published} | {windows} | {how} |")
    seeds = [result[RECTIFIED]["all_predictable"]["mean"] for result in map(read, SEEDS) if result]
    if len(seeds) > 1:
        each = ", ".join(f"{value:.3f}" for value in seeds)
        lines += [
            "",
            f"Over {len(seeds)} training seeds of `balls`, rectified, all predictable: {each}; mean"
            f" {statistics.mean(seeds):.3f}, standard deviation {statistics.stdev(seeds):.3f}.",
        ]
    return "\n".join(lines)


def _ablation(file: str) -> str:
    """What of a system carries its result: rows of equal time, and what its own weights do without a part of them."""
    result = read(file)
    if not result:
        return ""
    system, rows = result["system"], result["rows"]
    whole_system = next((row for row in rows if row["name"] == "system"), None)
    lines = [
        f"Ablation of `{system}` (`benchmarks/ablation.py`): each row trained from nothing for {result['minutes']:g}"
        f" minutes on {cores(result['threads'])}, stack and rectifier together. Squared error per frame on"
        f" {result['sequences']} test sequences, the mean over training seeds (in brackets the least and the most, and"
        " how many). Times: the error beside that of the whole system of the same seeds. Raw: the error of the stack's"
        f" own prediction. Alive: of {result['dream_sequences']} dreams of {result['dream_steps']} steps.",
        "",
        "| what | squared error | times | raw | after 2 | alive | sees | learns by |",
        "|---|---|---|---|---|---|---|---|",
        *(_ablation_row(row, whole_system) for row in rows if not row["cut"]),
    ]
    cuts = [_ablation_row(row, whole_system) for row in rows if row["cut"]]
    if cuts:
        lines += [
            "",
            f"The weights of `{system}` itself, without learning anew, a part of it cut in the test:",
            "",
            "| what | squared error | times | raw | after 2 | alive | sees | learns by |",
            "|---|---|---|---|---|---|---|---|",
            *cuts,
        ]
    return "\n".join(lines)


def _ablation_row(row: dict[str, Any], whole_system: dict[str, Any] | None) -> str:
    errors = [seed["all_predictable"][0] for seed in row["seeds"]]
    of_system = {seed["seed"]: seed["all_predictable"][0] for seed in whole_system["seeds"]} if whole_system else {}
    both = [(seed["all_predictable"][0], of_system[seed["seed"]]) for seed in row["seeds"] if seed["seed"] in of_system]
    times = f"{sum(a for a, _ in both) / sum(b for _, b in both):.2f}" if both else "-"
    raw = [seed["raw"][0] for seed in row["seeds"] if seed["raw"]]
    range_ = f" ({min(errors):.3f} to {max(errors):.3f}, {len(errors)})" if len(errors) > 1 else ""
    cells = [
        row["label"],
        f"{statistics.mean(errors):.3f}{range_}",
        times,
        f"{statistics.mean(raw):.3f}" if raw else "-",
        f"{statistics.mean(seed['after_2'][0] for seed in row['seeds']):.3f}",
        f"{statistics.mean(seed['alive'] for seed in row['seeds']):.1%}",
        row["sees"],
        row["learns"],
    ]
    return f"| {' | '.join(cells)} |"


def _rectifiers() -> str:
    """What teaches a rectifier, end to end or in local stages: next frames, draws, dreams; a table for each world."""
    tables = [_rectifiers_of(result) for name in RECTIFIERS if (result := read(name))]
    return "\n\n".join(tables)


def _rectifiers_of(result: dict[str, Any]) -> str:
    two_ways = any("two_ways" in seed for row in result["rows"] for seed in row["seeds"])
    lines = [
        f"Rectifiers on a stack that has learned from {result['world']} (`benchmarks/rectifiers.py`),"
        f" {result['minutes']:g} minutes of"
        f" {cores(result['threads'])} each. Means over training seeds (of the error the least and the most, and how"
        f" many, in brackets). Those taught by the energy score draw: the squared error is that of one draw, on"
        f" {result['sequences']} test sequences; of {result['samples']} of these, the error of the mean of 16 draws and"
        " of the stack, the energy score of whole frames, lower is better (of a rectifier that does not draw the length"
        " of its error), that of frame 2 alone, spread against error (1 where draws are distributed as what comes) and"
        f" the share of pixels between 0.1 and 0.9 beside truth's. Then {result['dreams']} dreams of 150 steps and of"
        f" 1,000: the energy of balls, px² (world: {result['energy']:.3g}), and the median lifetime."
        + (
            " Last, where a ball turns left or right: the share of left turns beside truth's, and of neither."
            * two_ways
        ),
        "",
        "| rectifier | squared error | mean of 16 | stack | energy score | of frame 2 | spread | blurred | energy, 150"
        " | lifetime | energy, 1,000 | lifetime |" + " left | neither |" * two_ways,
        "|---|" + "---|" * (11 + 2 * two_ways),
        *(_rectifier_row(row, two_ways) for row in result["rows"]),
    ]
    return "\n".join(lines)


def _rectifier_row(row: dict[str, Any], two_ways: bool) -> str:
    seeds = row["seeds"]

    def mean(*path: str) -> float | None:
        values = []
        for seed in seeds:
            value: Any = seed
            for name in path:
                value = value[name]
            values.append(value)
        known = [value for value in values if value is not None]
        return statistics.mean(known) if known else None

    errors = [seed["frame_squared_error"] for seed in seeds]
    range_ = f" ({min(errors):.3f} to {max(errors):.3f}, {len(errors)})" if len(errors) > 1 else ""
    blurred, truth = mean("blurred"), mean("blurred_truth")
    cells = [
        row["label"],
        f"{statistics.mean(errors):.3f}{range_}",
        number(mean("mean_error")),
        number(mean("raw_error")),
        number(mean("energy_score")),
        number(mean("first_energy_score")),
        number(mean("calibration")),
        f"{blurred:.3f} / {truth:.3f}",
        number(mean("dream", "energy")),
        f"{mean('dream', 'lifetime'):g}",
        number(mean("long_dream", "energy")),
        f"{mean('long_dream', 'lifetime'):g}",
    ]
    if two_ways:
        cells.append(f"{mean('two_ways', 'left'):.1%} / {mean('two_ways', 'left_truth'):.1%}")
        cells.append(f"{mean('two_ways', 'neither'):.1%}")
    return f"| {' | '.join(cells)} |"


def _stages() -> str:
    """The error of each local stage."""
    result = read("stages.json")
    if not result:
        return ""
    names = ["stack", *(f"stage {number}" for number in range(1, len(result["stages"]) + 1))]
    cells = [f"{error:.3f}" for error in (result["raw"], *result["stages"])]
    beside = result["beside"]
    if beside:
        names.append(f"`{beside['model']}`, end to end")
        cells.append(f"{beside['error']:.3f}")
    return "\n".join(
        [
            f"Squared error of the frame that each stage of `{result['model']}` makes, from the error of that stage"
            f" alone (`benchmarks/stages.py`, {result['sequences']} {result['split']} sequences).",
            "",
            f"| {' | '.join(names)} |",
            "|---" * len(names) + "|",
            f"| {' | '.join(cells)} |",
        ]
    )


def _rectifier_cost() -> str:
    """What local stages cost beside a rectifier that learns end to end."""
    result = read("rectifier_cost.json")
    if not result:
        return ""
    lines = [
        f"What an update of the rectifier costs (`benchmarks/rectifier_cost.py`, {cores(result['threads'])},"
        f" {result['batch_size']} streams): milliseconds a frame, the ratio of turns (quartiles), and MiB: what the"
        " gradient needs of the forward pass (in brackets the most that one local stage needs), weights, optimisers.",
        "",
        "| rectifier | ms a frame | ratio | for the gradient | weights | optimisers |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        size = {name: value / 2**20 for name, value in row["bytes"].items()}
        stage = f" ({size['for_gradient_of_a_stage']:.1f})" if "for_gradient_of_a_stage" in size else ""
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['name']} | {row['seconds_per_frame'] * 1000:.2f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
            f" | {size['for_gradient']:.1f}{stage} | {size['weights']:.1f} | {size['optimisers']:.1f} |"
        )
    return "\n".join(lines)


def _where_the_past_decides() -> str:
    """Worlds in which the past decides: balls of which not all is seen, and symbols."""
    result = read("memory.json")
    return memory_table(MemoryResults.model_validate(result)) if result else ""


def _words() -> str:
    """Perplexity of words."""
    result = read("words.json")
    if not result:
        return ""
    rows = sorted(result["rows"], key=lambda row: statistics.mean(seed["perplexity"] for seed in row["seeds"]))
    words = result["words"]
    lines = [
        f"Perplexity of the words of `{result['text']}` (`benchmarks/words.py`): {words['train']:,} to learn from,"
        f" {words['test']:,} for the test, a vocabulary of {result['vocabulary']:,}; {result['minutes']:g} minutes of"
        f" {cores(result['threads'])} each; mean over training seeds (least to largest). The mixture with a cache and"
        " with chance is chosen on the validation part.",
        "",
        "| system | alone | with a cache | words learned from |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"**{row['name']}**" if row["rsm"] else row["name"]]
        for measure in ("perplexity", "with_cache"):
            values = [seed[measure] for seed in row["seeds"]]
            range_ = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{range_}")
        frames = [seed["training"]["frames"] for seed in row["seeds"] if seed["training"]]
        cells.append(f"{statistics.mean(frames):,.0f}" if frames else f"{words['train']:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _online() -> str:
    """Learning on line: the error before each update against the frames seen, and across a change of world."""
    constant, drift, search = read("online.json"), read("online-drift.json"), read("online-search.json")
    parts = []
    if constant:
        parts += [
            "On line: batch 1, one stream, one pass, constant rates; the error of each frame before the update that"
            " learns from it, mean over stretches of frames, over the seeds (least to largest), best first.",
            online_table(OnlineResults.model_validate(constant)),
        ]
    if drift:
        parts += [
            "The same while the world changes and comes back. The level before a change is that of the same world where"
            " it was there before, else of the world that ends.",
            drift_table(OnlineResults.model_validate(drift)),
        ]
    if search:
        tried = Search.model_validate(search)
        systems = dict.fromkeys(row.system for row in tried.rows)
        lines = [
            f"`{system}` "
            + ", ".join(f"x{row.factor:g}: {number(row.mean)}" for row in tried.rows if row.system == system)
            for system in systems
        ]
        parts.append(
            f"Their rates were searched on {tried.frames:,} frames of another stream, the presets' times a factor: "
            + "; ".join(lines)
            + "."
        )
    return "\n\n".join(parts)


def _dreams() -> str:
    short, long = read(SEEDS[0]), read("balls-dream-1000.json")
    if not short or not short.get("rollout"):
        return ""
    rollout = short["rollout"]
    named = [(f"{w['first']}..{w['last']}", w) for w in rollout["physics"]["windows"]]
    if long:
        windows = long["physics"]["windows"]
        named += [(f"{w['first']}..{w['last']}", w) for w in windows[-2:]]
    rows = [
        ("frames with exactly three balls", "1", "right_count", "{:.4f}"),
        ("mass", "1", "mass", "{:.3f}"),
        ("kinetic energy, px² (median)", "2.25", "kinetic_energy", "{:.2f}"),
        ("balls outside the box", "0", "outside", "{:.4f}"),
        ("pairs that overlap", "0", "overlap", "{:.4f}"),
        ("bounces in a step", "0.214", "bounce_rate", "{:.3f}"),
        ("reflection error, degrees (median)", "0", "reflection_degrees", "{:.1f}"),
        ("pixels between 0.1 and 0.9", "0.0895", "sharpness", "{:.4f}"),
    ]
    lines = [
        f"Dreams of `balls` (seed 0): {rollout['physics']['sequences']} test sequences, {rollout['prime']} true frames,"
        " then its own output alone. By steps of the dream:",
        "",
        "| | world | " + " | ".join(name for name, _ in named) + " |",
        "|---|---|" + "---|" * len(named),
    ]
    lines += [
        f"| {label} | {world} | " + " | ".join("-" if w[key] is None else form.format(w[key]) for _, w in named) + " |"
        for label, world, key, form in rows
    ]
    for dreams in filter(None, (rollout, long)):
        physics, steps = dreams["physics"], dreams["steps"]
        lines += [
            "",
            f"{physics['sequences']} dreams of {steps:,} steps: median lifetime {physics['lifetime']:,.0f} steps,"
            f" {physics['never_ended']:.1%} live to the end.",
        ]
    peer = read("simvp-dream-1000.json")
    if peer:
        window, physics = peer["physics"]["windows"][-1], peer["physics"]
        lines += [
            "",
            f"The same of `simvp`, from its bench: median lifetime {physics['lifetime']:,.0f} steps,"
            f" {physics['never_ended']:.1%} live to the end, kinetic energy {window['kinetic_energy']:.2f} px²,"
            f" reflection error {window['reflection_degrees']:.1f} degrees over steps"
            f" {window['first']}..{window['last']}.",
        ]
    tracked, simulator = rollout["physics"]["tracked"], rollout["simulator"] or []
    lines += [
        "",
        "| distance from the true balls, px (median), at step | " + " | ".join(str(t["step"]) for t in tracked) + " |",
        "|---|" + "---|" * len(tracked),
        "| dream | " + " | ".join(f"{t['median']:.2f}" for t in tracked) + " |",
        "| the simulator itself, started 0.03 px off | " + " | ".join(f"{t['median']:.2f}" for t in simulator) + " |",
    ]
    return "\n".join(lines)


def _worlds_of_balls() -> str:
    """One model for many worlds of balls beside a specialist for each, at equal time."""
    result = read("worlds.json")
    if not result:
        return ""
    names = ("copy-last", result["any"], result["specialist"])
    by_world: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        by_world.setdefault(row["world"], {})[row["system"]] = row
    lines = []
    for world, rows in by_world.items():
        if not all(name in rows for name in names):
            continue
        before, mixed, alone = (rows[name]["frame_squared_error"] for name in names)
        balls = rows["copy-last"]["settings"]
        pixels = balls["resolution"]
        said = f"{balls['balls']}, {balls['radius']:g}, {pixels} x {pixels}, x{balls['speed']:g}"
        shares = f"{mixed['mean'] / alone['mean']:.2f} | {mixed['mean'] / before['mean']:.3f}"
        lines.append(f"| {world} | {said} | {score(before)} | {score(alone)} | {score(mixed)} | {shares} |")
    if not lines:
        return ""
    time = f"{result['steps']:,} updates" if result["steps"] else f"{result['minutes']:g} minutes"
    where = cores(result["threads"]) if result["device"] == "cpu" else f"the device `{result['device']}`"
    head = [
        f"Worlds of balls, squared error per frame, mean ± standard deviation over {result['sequences']}"
        f" {result['split']} sequences of each world (`benchmarks/worlds.py`). `{result['any']}` is one model for all"
        f" of them, learned from a mixture; each specialist (`{result['specialist']}`) has learned that world alone."
        f" {time} of training each on {where}, seed {result['seed']}.",
        "",
        "| world | balls, radius, pixels, speed | frame t-1 | specialist | one for all | of the specialist's |"
        " of frame t-1's |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def _worlds() -> str:
    """Other worlds than the balls: error beside that of the frame before, at equal time."""
    lines = []
    for world in filter(None, map(read, WORLDS)):
        film = f"the last {world['frames'][1]} frames of a film, `{world['film']}`"
        name = {"video": film}.get(world["world"], f"Moving MNIST, {world['world'][7:]} pixels")
        for row in world["rows"]:
            share = f"{row['share_of_copy_last']:.2f}" if "share_of_copy_last" in row else "1"
            how = "none" if row["system"] == "copy-last" else f"{world['minutes']:g} min"
            error = f"{row['mean']:.3g}" if world["frames"][0] == 1 else score(row)
            lines.append(f"| {name} | `{row['system']}` | {error} | {share} | {how} |")
    if not lines:
        return ""
    head = [
        "Other worlds, squared error per frame on what was never learned from: digits of their own, the end of a"
        " film (`benchmarks/other_worlds.py`). Share: of the error of the frame before.",
        "",
        "| world | system | error | share | training |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def _watching() -> str:
    """What the watcher finds in real films, beside simple detectors."""
    measured = read("watching.json")
    if not measured:
        return ""
    kinds = sorted({kind for row in measured["detectors"].values() for kind in row["found"]})
    minutes = measured["frames"] / measured["frames_per_second"] / 60
    films = ", ".join(f"`{name}`" for name in measured["films"])
    lines = [
        f"Cuts, freezes and joins of {len(measured['films'])} real films ({films}; {minutes:.1f} minutes in all),"
        " found when they come (`benchmarks/watching.py`). The first two rows have one threshold, 4, for all films; its"
        " constants were chosen on these films. The last two have the threshold that is best on these very events with"
        " at most one false alarm a minute.",
        "",
        f"| detector | {' | '.join(f'{kind}s' for kind in kinds)} | all | false alarms a minute |",
        "|---" * (len(kinds) + 3) + "|",
    ]
    for name, row in measured["detectors"].items():
        found = [f"{row['found'][kind][0]} of {row['found'][kind][1]}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(found)} | {row['share']:.0%} | {row['false_alarms_per_minute']:.2f} |")
    return "\n".join(lines)


def _film_memory() -> str:
    """Peak memory of work on a film of seconds and on one of hours."""
    rows = read("film_memory.json") or []
    lengths = sorted({row["film_seconds"] for row in rows})
    peaks = {(row["what"], row["film_seconds"]): row["mebibytes"] for row in rows}
    lines = [
        f"| {what} | {' | '.join(f'{peaks[what, length]:.0f}' for length in lengths)} |"
        for what in dict.fromkeys(row["what"] for row in rows)
    ]
    if not lines:
        return ""
    head = [
        "Peak memory, MiB, of a process that works on a film of so many seconds (`benchmarks/film_memory.py`):",
        "",
        f"| what | {' | '.join(f'{length:,} s' for length in lengths)} |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    return "\n".join([*head, *lines])


def _speed() -> str:
    lines: list[str] = []
    engine, memory, prediction = read("engine_speed.json"), read("memory.json"), read("prediction_speed.json")
    if prediction:
        lines += [
            f"One stream at a time on one core `{prediction['model']}` predicts"
            f" {prediction['predict_frames_per_second']:.0f} frames/s and dreams"
            f" {prediction['dream_frames_per_second']:.0f} frames/s, rectifier included.",
        ]
    page = read("page_speed.json")
    if page:
        waits, memory_by_minute = page["control_milliseconds"], page["memory_mebibytes_by_minute"]
        lines += [
            "",
            f"The page's server: {page['frames_per_second_alone']:.0f} frames/s for one viewer who dreams, on one core."
            f" With {page['viewers']} viewers on {page['cores']} cores {page['frames_per_second_each']:.0f} frames/s"
            f" each, and a control answers in {waits['p50']:.0f} ms (median), {waits['p99']:.0f} ms (99 %). Memory over"
            f" {len(memory_by_minute) - 1} minutes: {min(memory_by_minute):.0f} to {max(memory_by_minute):.0f} MiB.",
        ]
    if engine:
        share, peak = engine["forward_share_of_peak"], engine["peak_multiply_adds_per_second"] / 1e9
        lines += [
            "",
            f"Training the published two layers (batch {engine['batch_size']}, {engine['threads']} threads):"
            f" {engine['fused_frames_per_second']:,.0f} frames/s with the fused engine,"
            f" {engine['reference_frames_per_second']:.0f} with the dense reference in the same run, a median ratio of"
            f" {engine['ratio']:.0f}. Its forward step does {engine['forward_multiply_adds_per_frame'] / 1e6:.1f} M"
            f" multiply-adds a frame at {share:.0%} of the machine's peak of {peak:.0f} G a second.",
        ]
    if memory:
        rows = ", ".join(
            f"{row['peak_mebibytes']:.0f} MiB after {row['frames']:,} frames in sequences of {row['sequence_length']:,}"
            for row in memory["rows"]
        )
        lines += ["", f"Peak memory of training `{memory['preset']}`: {rows}."]
    return "\n".join(lines).strip()


def costs() -> str:
    """Return all that stands between the markers of docs/science/scaling.md."""
    result = read("scaling.json")
    return "" if result is None else tables_of_costs(result)


def pages() -> dict[Path, str]:
    """Return what belongs between the markers of each page."""
    return {README: headline(), ALL_RESULTS: tables(), COSTS: costs()}


def updated(page: Path) -> str:
    """Return the text of a page with its tables put in."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{pages()[page]}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(any(updated(page) != page.read_text() for page in pages()))
    for page in pages():
        page.write_text(updated(page))
    if benches():
        peaks = memory_peaks()
        drawn = [row.model_copy(update={"peak_mebibytes": peaks.get(row.system, {})}) for row in longest().rows]
        draw(longest().model_copy(update={"rows": tuple(drawn)}), ROOT / "docs" / "bench")
    for name in ("online", "online-drift"):
        if result := read(f"{name}.json"):
            draw_online(OnlineResults.model_validate(result), ROOT / "docs" / "bench" / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
