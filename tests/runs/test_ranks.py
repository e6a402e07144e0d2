"""Runs of two real processes: the same as of one, exact resumption, and how they end when one of them is gone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from launch import begin, end, environment, free_port
from warm_kernels import tiny_run

from torchrsm import Trainer
from torchrsm.cli import main
from torchrsm.learning.distributed import joined
from torchrsm.runs.bench import Bench, BenchConfig
from torchrsm.runs.checkpoint import CHECKPOINT_FILE
from torchrsm.runs.record import METRICS_FILE
from torchrsm.storage.tensors import load_tensors

LEARNS_ALIKE = ("--model.layers.0.dropout", "0", "--model.layers.1.dropout", "0")


def run_command(rank, *arguments):
    """Run a command as a process of a launch does, with its errors in a file beside the run."""
    arguments, errors = list(arguments[:-1]), f"{arguments[-1]}.{rank}"
    sys.stderr = open(errors, "w")  # noqa: SIM115
    code = main(arguments)
    sys.stderr.flush()
    sys.exit(code)


def run_commands(*commands, errors, seconds=60):
    """Run a command on each of two ranks; return their exit codes and what each says in the error output."""
    work = run_command if commands[0] == commands[-1] else run_different
    arguments = (*commands[0], str(errors)) if work is run_command else (commands, str(errors))
    codes = end(begin(work, arguments), seconds)
    return codes, [(errors.parent / f"{errors.name}.{rank}").read_text() for rank in range(2)]


def run_different(rank, commands, errors):
    run_command(rank, *commands[rank], errors)


def train(folder, *arguments, steps=40):
    return ("train", "tiny", "--out", str(folder), "--steps", str(steps), "--threads", "1", *arguments)


def checkpoint(folder):
    return load_tensors(folder / CHECKPOINT_FILE)


def test_torchrun_trains_what_one_process_trains(tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*launcher, "-m", "torchrsm", *train(tmp_path / "two", *LEARNS_ALIKE, steps=80)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is trained: 80 steps") == 1
    assert main([*train(tmp_path / "one", *LEARNS_ALIKE, steps=80)]) == 0
    (one, header), (two, header_two) = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert header_two["ranks"] == 2
    assert "ranks" not in header
    assert header_two["stream"] == header["stream"]
    assert two.keys() - one.keys() == {"rank.1.random"}
    for name, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
        else:
            assert torch.equal(two[name], value), name
    lines, lines_two = ((tmp_path / name / METRICS_FILE).read_text().splitlines() for name in ("one", "two"))
    assert len(lines) == len(lines_two) == 8
    for line, line_two in zip(lines, lines_two, strict=True):
        error, error_two = (json.loads(text)["frame_squared_error"] for text in (line, line_two))
        assert error_two == pytest.approx(error, rel=1e-4)


def train_in_parts(rank, folder, steps, stop_at):
    """Train with dropout; in the first part stop after a step as if by a signal at rank 1."""
    config = tiny_run(steps=steps, threads=1, log_steps=7, checkpoint_seconds=0)
    with joined("train") as ranks:
        trainer = Trainer(config, folder, resume=(folder / "run.json").exists(), ranks=ranks)
        if stop_at is not None:
            teach = trainer.learner.teach

            def teach_and_stop(batches, progress):
                if trainer.step == stop_at and ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return teach(batches, progress)

            trainer.learner.teach = teach_and_stop
            with pytest.raises(KeyboardInterrupt, match=f"stopped at step {stop_at + 1}"):
                trainer.run()
        else:
            trainer.run()


def test_a_signal_at_one_rank_stops_all_and_resumption_is_exact(tmp_path):
    assert end(begin(train_in_parts, (tmp_path / "whole", 30, None))) == [0, 0]
    assert end(begin(train_in_parts, (tmp_path / "parts", 30, 13))) == [0, 0]
    assert checkpoint(tmp_path / "parts")[1]["step"] == 14
    assert end(begin(train_in_parts, (tmp_path / "parts", 30, None))) == [0, 0]
    whole, parts = checkpoint(tmp_path / "whole")[0], checkpoint(tmp_path / "parts")[0]
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    assert not torch.equal(whole["random"], whole["rank.1.random"])
    assert len(whole["state.alone"]) == tiny_run().training.batch_size
    assert (tmp_path / "whole" / METRICS_FILE).read_bytes() == (tmp_path / "parts" / METRICS_FILE).read_bytes()
    message = r"was begun with ranks = 2; it cannot go on with 1"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_run(steps=30, threads=1, log_steps=7, checkpoint_seconds=0), tmp_path / "parts", resume=True)


def train_for_long(rank, folder):
    run_command(rank, *train(folder, "--checkpoint-seconds", "0.2", steps=10**6), f"{folder}.errors")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_in_time_and_the_checkpoint_is_whole(tmp_path, victim):
    folder = tmp_path / "run"
    processes = begin(train_for_long, (folder,))
    deadline = time.monotonic() + 60
    while not (folder / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[victim].kill()
    processes[1 - victim].join(30)
    assert processes[1 - victim].exitcode == 1
    end(processes, 1)
    (said,) = (tmp_path / f"run.errors.{1 - victim}").read_text().splitlines()
    assert said == (
        f"torchrsm: rank {victim} has died or does not answer; the last good checkpoint is {folder / CHECKPOINT_FILE}"
    )
    assert checkpoint(folder)[1]["step"] > 0


def test_launches_that_cannot_work_say_why_on_each_rank(tmp_path):
    folder = tmp_path / "run"
    codes, said = run_commands(train(folder), train(folder, "--seed", "3"), errors=tmp_path / "mixed")
    assert codes == [2, 2]
    for text in said:
        assert text.startswith("torchrsm: all ranks must run the same command; rank 0 has 'train tiny ")
        assert len(text.splitlines()) == 1
    assert not folder.exists()

    codes, said = run_commands(train(folder, "--batch-size", "3"), errors=tmp_path / "odd")
    assert codes == [2, 2]
    assert said == ["torchrsm: batch_size must be a multiple of the number of ranks, 2; got 3\n"] * 2

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    codes, said = run_commands(train(folder), errors=tmp_path / "taken")
    assert codes == [2, 2]
    assert said == [f"torchrsm: {folder} holds a model; choose another folder\n"] * 2


def settings_that_differ(rank, folder):
    with joined("train") as ranks, pytest.raises(ValueError, match="rank 0 has training.seed = 0, rank 1 has 1"):
        Trainer(tiny_run(steps=1, seed=rank), folder, ranks=ranks)


def failing(rank, folder):
    """Rank 1 meets an error of its own; rank 0 hears of it."""
    with joined("train") as ranks:
        trainer = Trainer(tiny_run(steps=20, threads=1), folder, ranks=ranks)
        if rank == 1:
            trainer._next_batch = lambda: (_ for _ in ()).throw(OSError("the film is gone"))
        trainer.run()


def failing_and_heard(rank, folder):
    expected = "the film is gone" if rank == 1 else "rank 1 failed: the film is gone; there is no checkpoint yet"
    with pytest.raises(OSError, match=expected):
        failing(rank, folder)


def test_what_fails_on_one_rank_is_told_on_the_others(tmp_path):
    assert end(begin(settings_that_differ, (tmp_path / "run",))) == [0, 0]
    assert end(begin(failing_and_heard, (tmp_path / "failing",))) == [0, 0]


def test_a_budget_in_minutes_ends_on_all_ranks(tmp_path):
    minutes = ("train", "tiny", "--out", str(tmp_path / "run"), "--minutes", "0.01", "--threads", "1")
    codes, said = run_commands(minutes, errors=tmp_path / "errors")
    assert (codes, said) == ([0, 0], ["", ""])
    assert checkpoint(tmp_path / "run")[1]["seconds"] >= 0.6


def test_evaluation_and_dreams_are_shared(tmp_path):
    evaluate = ("evaluate", "copy-last", "--sequences", "60", "--rollout-steps", "3", "--prime", "2", "--json")
    codes, said = run_commands((*evaluate, str(tmp_path / "two.json")), errors=tmp_path / "errors")
    assert (codes, said) == ([0, 0], ["", ""])
    assert main([*evaluate, str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    del one["frames_per_second"], two["frames_per_second"]
    assert one == two
    codes, _ = run_commands(
        ("dream", "copy-last", "--out", str(tmp_path / "dream.npz"), "--steps", "2"), errors=tmp_path / "errors"
    )
    assert codes == [0, 0]
    assert (tmp_path / "dream.npz").exists()


def compare_systems(rank, folder):
    config = BenchConfig(
        systems=("copy-last", "constant-velocity"),
        minutes=1,
        threads=1,
        sequences=2,
        dream_steps=2,
        memory_from_length=(),
    )
    trained = []

    @contextlib.contextmanager
    def reporting(name):
        trained.append(name)
        yield lambda record: None

    with joined("bench") as ranks:
        results = Bench(config, folder, ranks).run(reporting, lambda text: None)
    assert trained == [("copy-last seed 0", "constant-velocity seed 0")[rank]]
    assert [row.system for row in results.rows] == ["copy-last", "constant-velocity"]


def test_a_bench_shares_out_its_systems(tmp_path):
    assert end(begin(compare_systems, (tmp_path / "bench",))) == [0, 0]
    assert len(list((tmp_path / "bench" / "scores").iterdir())) == 2


def test_an_environment_that_is_no_launch_is_refused(monkeypatch, capsys):
    for name, value in environment(5, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", "copy-last"]) == 2
    assert "RANK must be in 0..1, below WORLD_SIZE; got 5" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "first")
    assert main(["evaluate", "copy-last"]) == 2
    assert "RANK must be a number, as torchrun sets it; got 'first'" in capsys.readouterr().err


def test_a_launch_of_one_process_is_a_process_alone(tmp_path, monkeypatch):
    assert main([*train(tmp_path / "plain", steps=5)]) == 0
    for name, value in environment(0, 1, 1).items():
        monkeypatch.setenv(name, value)
    assert main([*train(tmp_path / "launched", steps=5)]) == 0
    plain, launched = (checkpoint(tmp_path / name)[0] for name in ("plain", "launched"))
    for name in plain:
        assert torch.equal(plain[name], launched[name]), name
