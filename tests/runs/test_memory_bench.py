"""The bench of worlds in which the past decides."""

import itertools
import json

import pytest
import torch
from pydantic import ValidationError

from torchrsm import cli
from torchrsm.cli.progress import reporting
from torchrsm.runs.bench.memory import (
    DISTURBANCES,
    N_GRAM,
    SYMBOLS,
    WORLDS,
    MemoryBench,
    MemoryBenchConfig,
    ceilings_of,
    disturbance_of,
    is_rsm,
    run_for,
    stream_of,
)
from torchrsm.runs.bench.memory_results import (
    DisturbedCase,
    MemoryResults,
    MemoryRow,
    MemorySeed,
    WindowCeiling,
    memory_table,
)
from torchrsm.runs.settings import RunConfig

SMALL = {"minutes": 0.004, "threads": 1, "sequences": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished bench of two worlds; tests read it only."""
    folder = tmp_path_factory.mktemp("memory") / "bench"
    said = []
    config = MemoryBenchConfig(worlds=("blackout", "digits-3"), systems=("copy-last", "rsm", N_GRAM), seeds=2, **SMALL)
    results = MemoryBench(config, folder).run(reporting, said.append)
    return folder, results, said


def test_a_bench_leaves_scores_tables_and_plots(finished):
    folder, results, said = finished
    rows = {(row.world, row.system): row for row in results.rows}
    assert set(rows) == {("blackout", "copy-last"), ("digits-3", "rsm"), ("digits-3", N_GRAM)}
    assert all(len(row.seeds) == 2 for row in results.rows)
    assert MemoryResults.model_validate_json((folder / "results.json").read_bytes()) == results
    assert (folder / "table.md").read_text().startswith("### blackout")
    for world in ("blackout", "digits-3"):
        assert (folder / f"{world}.png").read_bytes().startswith(b"\x89PNG")
    assert len(said) == 6
    assert "digits-3: n-gram seed 1: accuracy" in " ".join(said)


def test_every_value_is_scored(finished):
    _, results, _ = finished
    (row,) = (row for row in results.rows if row.world == "blackout")
    cases = row.seeds[0].cases
    assert tuple(case.value for case in cases) == DISTURBANCES["blackout"]
    assert all(case.error > 0 and case.after_gap > 0 and case.gap_distance > 0 for case in cases)
    # The frame before a gap is as far from the one behind it as the gap is long.
    assert cases[0].gap_distance < cases[2].gap_distance


def test_counting_reaches_the_ceiling_of_a_window(finished):
    _, results, _ = finished
    (row,) = (row for row in results.rows if row.system == N_GRAM)
    assert row.seeds[0].symbols.accuracy.all > 0.9
    assert row.seeds[0].order in (2, 3, 5, 9, 13)
    assert row.seeds[0].frames > 0


def test_nothing_is_done_twice_and_more_can_be_added(finished, tmp_path):
    folder, _, _ = finished
    said = []
    config = MemoryBenchConfig(worlds=("digits-3",), systems=(N_GRAM,), seeds=3, **SMALL)
    results = MemoryBench(config, folder).run(reporting, said.append)
    assert len(said) == 1
    assert {row.system: len(row.seeds) for row in results.rows if row.world == "digits-3"} == {"rsm": 2, N_GRAM: 3}


def test_another_bench_is_left_alone(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match="holds another bench, with minutes = 0.004; it cannot go on with 1"):
        MemoryBench(MemoryBenchConfig(**{**SMALL, "minutes": 1}), folder)


@pytest.mark.parametrize("world", WORLDS)
def test_every_system_has_a_run_in_every_world(world):
    config = MemoryBenchConfig(**SMALL)
    for system in config.systems_of(world):
        if system == N_GRAM:
            continue
        run = run_for(world, system)
        assert run.stream == stream_of(world)
        if isinstance(run, RunConfig) and run.rectifying is not None:
            assert run.rectifying.loop_share == 0  # no stream dreams where frames are disturbed
        assert is_rsm(system) == isinstance(run, RunConfig)


def test_systems_learn_from_a_mixture():
    assert stream_of("noise").disturbance.noise == (0.1, 0.2, 0.4)
    assert disturbance_of("bar", (6,)).bar == (6,)
    assert disturbance_of("blackout").blackout == (2, 5, 10, 20)


@pytest.mark.parametrize("world", SYMBOLS)
def test_ceilings_grow_with_the_window(world):
    ceilings = ceilings_of(world)
    shares = [best.all for best in ceilings]
    assert all(shorter <= longer + 1e-6 for shorter, longer in itertools.pairwise(shares))
    assert ceilings[-1].window is None


def test_systems_are_those_of_their_worlds():
    chosen = MemoryBenchConfig(**SMALL, systems=("simvp", "rsm"))
    assert chosen.systems_of("noise") == ("simvp",)
    assert chosen.systems_of("reber") == ("rsm",)
    assert "predrnn" in MemoryBenchConfig(**SMALL).systems_of("bar")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worlds": ("fog",)}, "worlds must be 'all' or among noise, flicker, blackout, bar, reber.*; got 'fog'"),
        ({"systems": ("magic",)}, "systems must be 'all' or presets, such as copy-last"),
        ({"minutes": 0}, "minutes"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MemoryBenchConfig(**{**SMALL, **changes})


def case(value, error, **others):
    return DisturbedCase(value=value, error=error, **others)


def results(*rows, ceilings=None):
    return MemoryResults(minutes=5, threads=1, sequences=50, rows=rows, ceilings=ceilings or {})


def test_the_table_has_the_best_first():
    seeds = [MemorySeed(seed=n, cases=(case(0.1, error), case(0.2, error + 1))) for n, error in enumerate((1.0, 3.0))]
    worse = MemoryRow(world="noise", system="simvp", rsm=False, seeds=tuple(seeds))
    better = MemoryRow(world="noise", system="balls", rsm=True, seeds=seeds[:1])
    lines = memory_table(results(worse, better)).splitlines()
    assert lines[0] == "### noise"
    assert lines[4] == "| system | 0.1 | 0.2 |"
    assert lines[6] == "| **balls** | 1.000 | 2.000 |"
    assert lines[7] == "| simvp | 2.000 (1.000 to 3.000) | 3.000 (2.000 to 4.000) |"


def test_the_table_says_what_is_scored_apart():
    gap = MemorySeed(seed=0, cases=(case(2, 1.0, after_gap=4.0, gap_distance=1.25), case(5, 2.0, after_gap=9.0)))
    bar = MemorySeed(seed=0, cases=(case(6, 1.0, near_bar=0.5),))
    rows = (
        MemoryRow(world="blackout", system="balls", rsm=True, seeds=(gap,)),
        MemoryRow(world="bar", system="balls", rsm=True, seeds=(bar,)),
    )
    text = memory_table(results(*rows))
    assert "| system | 2 | 5 | after a gap, 2 | after a gap, 5 | balls, px, 2 | balls, px, 5 |" in text
    assert "| **balls** | 1.000 | 2.000 | 4.000 | 9.000 | 1.250 | - |" in text
    assert "| system | 6 | near the bar, 6 |" in text


def test_the_table_of_symbols_has_the_ceilings(finished):
    _, measured, _ = finished
    text = memory_table(measured.model_copy(update={"rows": measured.rows[1:]}))
    assert "| *best for the last 4* | " in text
    assert "91.67%" in text
    assert "| *best for all before* |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    none = WindowCeiling(window=None, all=1.0, last=None)
    assert none.last is None


def test_the_command_line_runs_a_bench(tmp_path, capsys):
    out = tmp_path / "bench"
    arguments = ["bench", "memory", "--minutes", "0.004", "--threads", "1", "--out", str(out)]
    assert cli.main([*arguments, "--worlds", "digits-3", "--systems", "n-gram"]) == 0
    assert "| n-gram, order " in capsys.readouterr().out
    assert json.loads((out / "bench.json").read_text()) == {
        "bench": "memory",
        "minutes": 0.004,
        "threads": 1,
        "sequences": 50,
    }
    assert cli.main([*arguments, "--worlds", "fog"]) == 2
    assert "worlds must be 'all' or among" in capsys.readouterr().err


def test_a_trained_system_learns_something(tmp_path):
    torch.manual_seed(0)
    config = MemoryBenchConfig(worlds=("digits-3",), systems=("window-network",), **{**SMALL, "minutes": 0.03})
    (row,) = MemoryBench(config, tmp_path / "bench").run(reporting, lambda line: None).rows
    assert row.seeds[0].symbols.accuracy.all > 0.5
    assert row.seeds[0].frames > 1000
