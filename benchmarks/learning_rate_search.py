"""Searches the learning rate of a system on validation sequences: its preset's rates times each factor.

    python benchmarks/learning_rate_search.py predrnn --factors 0.3 1 3 --minutes 4 --out runs/search \
        --json benchmarks/results/search-predrnn.json

All rates of a system are multiplied alike. What is there is not done again. The test sequences have no part in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from torchrsm import Evaluator, bouncing_ball_frames, preset
from torchrsm.runs.settings import AnyRunConfig, RunConfig
from torchrsm.storage.tensors import write_atomically

sys.path.insert(0, str(Path(__file__).parent))
from trained import trained


def scaled(run: AnyRunConfig, factor: float) -> AnyRunConfig:
    """Return a run with all of its learning rates times a factor."""
    rates = tuple(rate * factor for rate in run.learning.learning_rates)
    changes: dict[str, object] = {"learning.learning_rates": rates}
    if isinstance(run, RunConfig) and run.rectifying is not None:
        changes["rectifying.learning_rate"] = run.rectifying.learning_rate * factor
        if run.rectifying.matrix_learning_rate is not None:
            changes["rectifying.matrix_learning_rate"] = run.rectifying.matrix_learning_rate * factor
    return run.replace(**changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frames, rows = bouncing_ball_frames("validation", options.sequences), []
    for factor in options.factors:
        run = scaled(preset(options.system), factor)
        budget = {"steps": None, "minutes": options.minutes, "threads": 1}
        run = run.replace(training=run.training.replace(**budget))
        folder = options.out / f"{options.system}-x{factor:g}"
        model = trained(run, folder)
        error = Evaluator(frames, similarity=False).evaluate(model).frame_squared_error.all_predictable
        rows.append(
            {
                "factor": factor,
                "learning_rates": run.learning.learning_rates,
                "frame_squared_error": {"mean": error.mean, "sd": error.sd},
            }
        )
        print(f"{folder.name}: {error} on validation", flush=True)
    best = min(rows, key=lambda row: row["frame_squared_error"]["mean"])
    result = {
        "system": options.system,
        "minutes": options.minutes,
        "validation_sequences": options.sequences,
        "rows": rows,
        "best_factor": best["factor"],
    }
    print(f"best: x{best['factor']:g}")
    if options.json is not None:
        write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
