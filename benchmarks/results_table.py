"""Writes the result tables of README.md from the files in benchmarks/results, between their markers.

    python benchmarks/results_table.py [--check]

With ``--check`` nothing is written; the exit code is 1 if README.md does not say what the files say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# The published figures of the same quantity (docs/protocol.md): squared error per frame.
ROWS = [
    ("frame t-1 (`copy-last`)", "copy-last.json", "11.82 ± 0.27"),
    ("RSM, the published two layers, raw (`paper_fast`)", "paper_fast.json", "3.72 ± 0.30"),
    ("RSM, the published first layer alone, raw (`paper_fast_1l`)", "paper_fast_1l.json", "-"),
    ("RSM, raw (`balls`), 10 minutes", "balls-10-minutes.json", "-"),
    ("RSM, its first layer alone (`balls_1l`), 10 minutes", "balls_1l-10-minutes.json", "-"),
    ("RSM, its first layer alone (`balls_1l`), 30 minutes", "balls_1l-30-minutes.json", "-"),
    ("RSM, raw (`balls`), 18 minutes", "balls-two-cores.json", "-"),
]


def read(name: str) -> dict[str, Any] | None:
    """Return the content of a result file, or None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def score(summary: dict[str, float] | None) -> str:
    """Write mean ± standard deviation."""
    return "-" if summary is None else f"{summary['mean']:.2f} ± {summary['sd']:.2f}"


def tables() -> str:
    """Return all that stands between the markers."""
    lines = [
        "| system | published | here: all predictable | after 2 | after 10 | training |",
        "|---|---|---|---|---|---|",
    ]
    for label, name, published in ROWS:
        result = read(name)
        if result is None:
            continue
        error, training = result["frame_squared_error"], result.get("training")
        how = "none"
        if training:
            frames, threads = training["frames"] / 1e6, training["threads"]
            how = f"{training['minutes']:.0f} min on {threads} core(s), {frames:.2f} M frames"
        windows = " | ".join(score(error[window]) for window in ("all_predictable", "after_2", "after_10"))
        lines.append(f"| {label} | {published} | {windows} | {how} |")
    engine, memory = read("engine_speed.json"), read("memory.json")
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
    return "\n".join(lines)


def updated(readme: str) -> str:
    """Return README.md with the tables put in."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    before = path.read_text()
    after = updated(before)
    if not check:
        path.write_text(after)
    return int(check and before != after)


if __name__ == "__main__":
    sys.exit(main())
