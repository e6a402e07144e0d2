import contextlib
import json
import os
import re
import signal

import pytest
from pydantic import ValidationError

from torchrsm import cli
from torchrsm.cli.progress import reporting
from torchrsm.runs.bench import (
    Bench,
    BenchConfig,
    Results,
    Row,
    Seed,
    measuring,
    peak_mebibytes,
    read_results,
    table,
    verdict,
)
from torchrsm.runs.checkpoint import CHECKPOINT_FILE, load_checkpoint
from torchrsm.runs.presets import preset
from torchrsm.runs.trainer import Trainer

SMALL = {"minutes": 0.02, "threads": 1, "sequences": 2, "dream_steps": 5, "memory_from_length": ()}


def small(**changes):
    return BenchConfig(**{"systems": ("copy-last", "balls"), **SMALL, **changes})


def seed(error=1.0, lifetime=10.0, number=0, **changes):
    values = {
        "seed": number,
        "minutes": 2.0,
        "frames": 1200,
        "all_predictable": (error, 0.5),
        "after_2": (error, 0.5),
        "after_10": (error, 0.5),
        "right_count": 1.0,
        "energy": 2.0,
        "late_energy": 1.0,
        "sharpness": 0.09,
        "lifetime": lifetime,
        "alive": 0.5,
        "curve": ((0.25, 3.0), (0.5, 2.0)),
    }
    return Seed(**(values | changes))


def row(system="balls", *seeds, rsm=False, **changes):
    values = {
        "system": system,
        "rsm": rsm,
        "published": (0.41, 0.05),
        "weights": 1_234,
        "seeds": seeds or (seed(),),
        "training_frames_per_second": 10.4,
        "prediction_frames_per_second": 320.0,
        "peak_mebibytes": {10: 500.0, 50: 700.0},
    }
    return Row(**(values | changes))


def results(*rows):
    return Results(world="balls", minutes=15, threads=1, sequences=200, dream_steps=150, frames_sha256="x", rows=rows)


# --- The whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small bench that ran once, the lines that it said, and its results."""
    folder, said = tmp_path_factory.mktemp("bench") / "out", []
    return folder, said, Bench(small(seeds=2), folder).run(reporting, said.append)


def test_a_bench_leaves_runs_scores_and_a_table(finished):
    folder, _, outcome = finished
    names = {f"{system}-seed-{number}" for system in ("copy-last", "balls") for number in (0, 1)}
    assert {path.name for path in (folder / "runs").iterdir()} == names
    assert {path.stem for path in (folder / "scores").iterdir()} == names
    assert read_results(folder / "results.json") == outcome
    assert (folder / "table.md").read_text() == table(outcome) + "\n"
    assert (folder / "error.png").stat().st_size > 1000
    still, ours = outcome.rows
    assert (still.system, ours.system) == ("copy-last", "balls")
    assert [run.seed for run in ours.seeds] == [0, 1]
    assert 11 < still.error < 13
    assert still.weights == 0
    assert still.training_frames_per_second is None
    assert ours.rsm
    assert not still.rsm
    assert ours.weights == sum(weight.numel() for weight in Trainer(preset("balls"), folder / "x").model.parameters())
    assert ours.training_frames_per_second > 1
    assert ours.prediction_frames_per_second > 1
    assert all(run.minutes >= 0.02 for run in ours.seeds)


def test_every_other_round_goes_backwards(finished):
    order = [re.match(r"(.*) seed (\d): \d", line).groups() for line in finished[1]]
    assert order == [("copy-last", "0"), ("balls", "0"), ("balls", "1"), ("copy-last", "1")]


def test_what_is_there_is_not_done_again_and_more_can_be_added(finished, tmp_path):
    folder = finished[0]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    said = []
    again = Bench(small(seeds=2, systems=("copy-last", "constant-velocity", "balls")), folder).run(
        reporting, said.append
    )
    assert [line.split(":")[0] for line in said] == ["constant-velocity seed 0", "constant-velocity seed 1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [one.system for one in again.rows] == ["copy-last", "constant-velocity", "balls"]
    assert again.rows[2].seeds == finished[2].rows[1].seeds
    one = Bench(small(systems=("balls",)), folder).run(reporting, said.append)
    assert one == again  # the table is of all that the folder holds


def test_an_interrupted_bench_goes_on_where_it_was(tmp_path):
    """Interrupted as by Ctrl-C at the first record, which is the end of the first phase."""

    @contextlib.contextmanager
    def interrupting(name):
        yield lambda record: os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="the checkpoint is saved"):
        Bench(small(systems=("balls",)), folder).run(interrupting)
    assert not list((folder / "scores").iterdir())
    stopped = load_checkpoint(folder / "runs" / "balls-seed-0" / CHECKPOINT_FILE)[1]
    assert 0 < stopped["seconds"] < 1.2
    records = []

    @contextlib.contextmanager
    def noting(name):
        yield records.append

    outcome = Bench(small(systems=("balls",)), folder).run(noting)
    assert records[0].step > stopped["step"]
    assert records[0].seconds > stopped["seconds"]
    assert outcome.rows[0].seeds[0].minutes >= 0.02


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("balls", "ball")}, "systems must be 'all' or among balls, .*simvp.*; got 'ball'"),
        ({"systems": ("tiny",)}, "'tiny' reads 12 x 12"),
        ({"systems": ()}, "at least 1 item"),
        ({"minutes": 0}, "greater than 0"),
        ({"minutes": float("nan")}, "finite"),
        ({"seeds": 0}, "greater than 0"),
        ({"memory_from_length": (1,)}, "memory_from_length must be at least 2 frames; got 1"),
        ({"world": "cubes"}, "balls"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        small(**changes)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bench_from_before_preset_names_had_hyphens_goes_on(tmp_path):
    Bench(small(), tmp_path)
    former = [
        "runs/paper_fast-seed-0",
        "runs/paper_fast_1l-seed-1",
        "scores/balls_1l-seed-0.json",
        "memory/balls_1l-10.json",
    ]
    for name in former:
        (tmp_path / name).write_text(name)
    Bench(small(), tmp_path)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert kept == sorted(name.replace("_", "-") for name in former)


def test_the_folder_of_another_bench_is_left_alone(finished):
    before = snapshot(finished[0])
    with pytest.raises(ValueError, match=r"holds another bench, with minutes = 0.02; it cannot go on with 0.5"):
        Bench(small(minutes=0.5), finished[0])
    with pytest.raises(ValueError, match=r"holds another bench, with threads = 1; it cannot go on with 2"):
        Bench(small(threads=2), finished[0])
    assert snapshot(finished[0]) == before


@pytest.mark.parametrize(("name", "content"), [("notes.txt", "mine"), ("bench.json", "{"), ("bench.json", "[]")])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises((FileExistsError, ValueError), match=f"{re.escape(str(tmp_path))}"):
        Bench(small(), tmp_path)
    assert snapshot(tmp_path) == {tmp_path / name: content.encode()}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        Bench(small(), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--minutes", "0"), ["minutes", "greater than 0", "got 0"]),
        (("--minutes", "1", "--systems", "balls,nonsense"), ["systems must be 'all' or among", "got 'nonsense'"]),
        (("--minutes", "1", "--memory-from-length", "10;50"), ["memory_from_length must be numbers", "'10;50'"]),
        (("--minutes", "1", "--memory-from-length", "1"), ["at least 2 frames; got 1"]),
        ((), ["--minutes"]),
    ],
)
def test_the_command_line_refuses(tmp_path, capsys, arguments, says):
    assert cli.main(["bench", "balls", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in says), error
    assert not (tmp_path / "out").exists()


def test_the_command_line_runs_a_bench(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BenchConfig.model_fields["sequences"], "default", 2)
    seen = []
    monkeypatch.setattr("torchrsm.cli.bench.Bench", lambda config, out, ranks: seen.append((config, out)) or Finished())

    class Finished:
        def run(self, reporting):
            return results(row("copy-last"), row("balls", rsm=True))

    arguments = ["--systems", "copy-last,balls", "--minutes", "15", "--seeds", "3", "--memory-from-length", ""]
    assert cli.main(["bench", "balls", "--out", str(tmp_path / "out"), "--threads", "2", *arguments]) == 0
    config, out = seen[0]
    assert (config.systems, config.minutes, config.seeds) == (("copy-last", "balls"), 15.0, 3)
    assert (config.memory_from_length, config.threads, out) == ((), 2, tmp_path / "out")
    assert "| **balls** |" in capsys.readouterr().out


# --- Table ------------------------------------------------------------------------------------------------------------


def test_the_table_says_all_of_a_row():
    lines = table(results(row("peer"), row("balls", seed(0.5), rsm=True))).splitlines()
    assert lines[2] == (
        "| peer | 0.41 ± 0.05 | 1.00 ± 0.50 | 1.00 ± 0.50 | 1,234 | 10 | 320 | 500 | 700 | 1.000 | 2.00 | 10 |"
    )
    assert lines[3].startswith("| **balls** | 0.41 ± 0.05 | 0.50 ± 0.50 |")
    assert all(line.count("|") == lines[0].count("|") for line in lines[:4])


def test_what_is_not_known_is_a_dash():
    unknown = {"published": None, "weights": 0, "training_frames_per_second": None, "peak_mebibytes": {}}
    line = table(results(row("peer", seed(energy=None), prediction_frames_per_second=None, **unknown))).splitlines()[2]
    assert line == "| peer | - | 1.00 ± 0.50 | 1.00 ± 0.50 | - | - | - | 1.000 | - | 10 |"


def test_several_seeds_have_a_spread():
    line = table(results(row("peer", seed(1.0), seed(2.0, number=1)))).splitlines()[2]
    assert "| 1.50 ± 0.50 (0.71 over seeds) |" in line


def test_the_verdict_names_the_best_peer():
    ours = row("balls", seed(0.5, 100), rsm=True)
    lines = verdict(results(row("a", seed(3.0, 5)), row("b", seed(1.5, 4)), ours, row("r", seed(9.0), rsm=True)))
    assert lines == [
        "Next-frame error: balls 0.500, best of the others b 1.500: 3.00 times lower.",
        "Lifetime of dreams: balls 100 steps, 50.0% alive at the end,"
        " best of the others a 5 steps, 50.0% alive at the end.",
    ]


def test_the_verdict_says_so_when_a_peer_is_ahead():
    lines = verdict(results(row("peer", seed(0.25, 150)), row("balls", seed(0.5, 100), rsm=True)))
    assert lines[0].endswith("2.00 times higher; peer is ahead.")
    assert lines[1].endswith("best of the others peer 150 steps, 50.0% alive at the end; peer is ahead.")
    assert verdict(results(row("peer"))) == verdict(results(row("balls", rsm=True))) == []


@pytest.mark.parametrize(("alive", "end"), [(0.4, "."), (0.5, "; neither is ahead."), (0.6, "; peer is ahead.")])
def test_where_dreams_live_equally_long_more_of_them_alive_are_better(alive, end):
    said = verdict(results(row("peer", seed(alive=alive)), row("balls", rsm=True)))[1]
    assert said.endswith(f"best of the others peer 10 steps, {alive:.1%} alive at the end{end}")


def test_results_that_are_none_are_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"world": "balls"}))
    with pytest.raises(ValueError, match=r"results\.json: minutes must be given"):
        read_results(tmp_path / "results.json")


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_training_alone():
    ballast = bytearray(800 * 2**20)  # of this process, which the measured one must not inherit
    ballast[::4096] = b"x" * len(ballast[::4096])
    peak = peak_mebibytes(measuring.short_run("balls", 5, 1))
    assert 100 < peak < 800


def test_the_window_is_the_length_and_rsm_has_none():
    run = measuring.short_run("balls", 50, 1)
    assert (run.stream.sequence_length, run.training.steps) == (50, 100)
    run = measuring.short_run("convlstm", 50, 1)
    assert (run.stream.sequence_length, run.training.steps, run.learning.window) == (50, 2, 50)
