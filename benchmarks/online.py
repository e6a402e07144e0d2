"""Lets systems learn on line: batch 1, one stream, one pass, constant rates; the error of each frame before its update.

    python benchmarks/online.py --systems copy-last,constant-velocity,balls,simvp --search --frames 50000 \
        --seeds 0,1,2 --out runs/online
    python benchmarks/online.py --systems copy-last,constant-velocity,balls,simvp --drift --seeds 0,1,2 \
        --out runs/online

With ``--search`` the rates of each system are first tried, times each factor, on a stream of their own (`SEARCH_SEED`);
the runs, later ones with the same ``--out`` too, take the best factor. Without it they take the preset's rates. With
``--drift`` the world changes and comes back. What is there is not done again. The folder::

    search.json                  the tries
    constant/SYSTEM-seed-N.json  a run each; drift/ likewise
    constant.json, drift.json    all of them; .md the tables, .png the plots
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchrsm import preset
from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.learning.contract import NonFiniteError
from torchrsm.runs.bench.online import SEARCH_SEED, World, learn_on_line, on_line
from torchrsm.runs.bench.online_results import (
    OnlineResults,
    OnlineSeed,
    Search,
    SearchRow,
    Settings,
    draw_online,
    drift_table,
    online_table,
    summarised,
)
from torchrsm.storage.tensors import make_folder, write_atomically

sys.path.insert(0, str(Path(__file__).parent))
from learning_rate_search import scaled

SYSTEMS = ("copy-last", "constant-velocity", "balls", "balls-window", "simvp", "predrnn", "convlstm-wide")

CHANGED = {"balls": 5, "radius": 0.8}
"""The world in the middle of a drift."""


def learns(system: str) -> bool:
    """Return whether a system has anything to learn."""
    return getattr(preset(system).model, "kind", None) not in WITHOUT_WEIGHTS


def run_one(system: str, factor: float, worlds: tuple[World, ...], seed: int, label: str):
    """Let a system learn from a stream and return its errors."""
    run = preset(system)
    run = on_line(scaled(run, factor) if learns(system) else run)
    return learn_on_line(
        run, worlds, seed, lambda seen, error: print(f"{label}: {seen:,} frames, {error:.3f}", flush=True)
    )


def search(systems: list[str], factors: list[float], frames: int, folder: Path) -> Search:
    """Try the factors that were not tried yet on frames of the usual world; write each try down."""
    file = folder / "search.json"
    found = read_search(folder) or Search(frames=frames, seed=SEARCH_SEED)
    if found.frames != frames:
        raise SystemExit(f"--search-frames must be {found.frames:,} as in {file}; got {frames:,}")
    for system in filter(learns, systems):
        for factor in factors:
            if any((row.system, row.factor) == (system, factor) for row in found.rows):
                continue
            try:
                measured = run_one(
                    system, factor, (World(frames=frames),), SEARCH_SEED, f"{system} x{factor:g}, search"
                )
                kept = Settings(worlds=(World(frames=frames),), stretch=frames, first=1)
                mean = summarised(system, SEARCH_SEED, factor, measured, kept).mean
            except NonFiniteError as error:
                print(f"{system} x{factor:g} failed: {error}", flush=True)
                mean = None
            found = found.model_copy(update={"rows": (*found.rows, SearchRow(system=system, factor=factor, mean=mean))})
            write_atomically(file, (found.model_dump_json(indent=1) + "\n").encode())
    return found


def read_search(folder: Path) -> Search | None:
    """Return what was searched in a folder, or None."""
    file = folder / "search.json"
    return Search.model_validate_json(file.read_bytes()) if file.exists() else None


def collect(settings: Settings, name: str, folder: Path) -> OnlineResults:
    """Read the runs in a folder, write them to one file, and draw the table and the plot."""
    runs = [OnlineResults.model_validate_json(file.read_bytes()) for file in sorted((folder / name).glob("*.json"))]
    for one in runs:
        if one.settings != settings:
            raise SystemExit(f"{folder / name} holds runs with other settings: {one.settings}; got {settings}")
    results = OnlineResults(settings=settings, runs=tuple(run for one in runs for run in one.runs))
    if runs:
        table = online_table(results) if len(settings.worlds) == 1 else drift_table(results)
        write_atomically(folder / f"{name}.json", (results.model_dump_json(indent=1) + "\n").encode())
        write_atomically(folder / f"{name}.md", (table + "\n").encode())
        draw_online(results, folder / f"{name}.png")
    return results


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names of presets, separated by commas")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of the runs, separated by commas")
    parser.add_argument("--frames", type=int, help="of the stream (50000); of each world with --drift (20000)")
    parser.add_argument("--drift", action="store_true")
    parser.add_argument("--stretch", type=int, default=2500, help="frames of which a mean is kept")
    parser.add_argument("--first", type=int, default=300, help="frames after a change whose mean is kept")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--search-frames", type=int, default=10_000)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    systems = options.systems.split(",")
    name = "drift" if options.drift else "constant"
    frames = options.frames or (20_000 if options.drift else 50_000)
    usual = World(frames=frames)
    worlds = (usual, World(frames=frames, **CHANGED), usual) if options.drift else (usual,)
    settings = Settings(worlds=worlds, stretch=options.stretch, first=options.first)
    make_folder(options.out / name)
    collect(settings, name, options.out)
    if options.search:
        search(systems, options.factors, options.search_frames, options.out)
    searched = read_search(options.out)
    for seed in options.seeds:
        if seed == SEARCH_SEED:
            parser.error(f"--seeds must not be {SEARCH_SEED}, that of the search")
        for system in systems:
            file = options.out / name / f"{system}-seed-{seed}.json"
            if file.exists():
                continue
            factor = (searched and searched.best_factor(system)) or 1.0
            measured = run_one(system, factor, worlds, seed, f"{system} seed {seed}")
            run: OnlineSeed = summarised(system, seed, factor, measured, settings)
            one = OnlineResults(settings=settings, runs=(run,))
            write_atomically(file, (one.model_dump_json(indent=1) + "\n").encode())
            collect(settings, name, options.out)
    print((options.out / f"{name}.md").read_text())


if __name__ == "__main__":
    main()
