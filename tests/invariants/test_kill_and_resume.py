"""A run that is killed at any moment and resumed ends exactly as the run that nobody disturbed."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from warm_kernels import rectified_run, tiny_run

from torchrsm import Trainer
from torchrsm.runs.settings import RUN_FILE
from torchrsm.runs.trainer import CHECKPOINT_FILE, METRICS_FILE
from torchrsm.storage.tensors import load_tensors

KILLS = {"stack": 12, "stack and rectifier": 6}  # `benchmarks/kills.py` makes more
STEPS = {"stack": 100, "stack and rectifier": 60}


def train(folder: Path, steps: int, learns: str = "stack") -> None:
    run = tiny_run if learns == "stack" else rectified_run
    config = run(steps=steps, threads=2, checkpoint_seconds=0.05, log_steps=7)
    Trainer(config, folder, resume=(folder / RUN_FILE).exists()).run()


def result(folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    return load_tensors(folder / CHECKPOINT_FILE)[0], (folder / METRICS_FILE).read_bytes()


def assert_identical(one: Path, other: Path) -> None:
    (tensors, metrics), (tensors_other, metrics_other) = result(one), result(other)
    assert metrics == metrics_other
    assert tensors.keys() == tensors_other.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, tensors_other[name]), name


def test_runs_repeat_and_stop_and_resume_bit_by_bit(tmp_path: Path) -> None:
    config = tiny_run(steps=40)
    for name in ("one", "again"):
        Trainer(config, tmp_path / name).run()
    assert_identical(tmp_path / "one", tmp_path / "again")

    class Enough(Exception):  # noqa: N818
        pass

    def stop(record) -> None:
        if record.step == 20:
            raise Enough

    eager = tiny_run(steps=40, checkpoint_seconds=0)
    try:
        Trainer(eager, tmp_path / "stopped").run(stop)
    except Enough:
        assert Trainer(eager, tmp_path / "stopped", resume=True).step == 19  # step 20 fell after the last checkpoint
    Trainer(eager, tmp_path / "stopped", resume=True).run()
    assert_identical(tmp_path / "one", tmp_path / "stopped")


@pytest.mark.cpu_only  # a process that is forked has no other device
@pytest.mark.parametrize("learns", KILLS)
def test_random_kills_change_nothing(tmp_path: Path, learns: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm_kernels"])
    moments = random.Random(1)
    steps, kills, folders = STEPS[learns], 0, []
    while kills < KILLS[learns]:
        folder = tmp_path / f"killed-{len(folders)}"
        folders.append(folder)
        while True:
            life = context.Process(target=train, args=(folder, steps, learns))
            life.start()
            life.join(moments.uniform(0.05, 0.6) if kills < KILLS[learns] else None)
            if not life.is_alive():
                assert life.exitcode == 0
                break
            life.kill()
            life.join()
            kills += 1
    train(tmp_path / "whole", steps, learns)
    for folder in folders:
        assert_identical(folder, tmp_path / "whole")


def test_a_kill_before_the_first_checkpoint_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    config = tiny_run(steps=10)
    Trainer(config, tmp_path / "begun")  # dies before its first step
    Trainer(config, tmp_path / "begun", resume=True).run()
    Trainer(config, tmp_path / "whole").run()
    assert_identical(tmp_path / "begun", tmp_path / "whole")


def test_kills_leave_no_broken_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    life = context.Process(target=train, args=(tmp_path / "run", 100_000))
    life.start()
    while not (tmp_path / "run" / CHECKPOINT_FILE).exists():
        time.sleep(0.01)
        assert life.is_alive()
    life.kill()
    life.join()
    tensors, header = load_tensors(tmp_path / "run" / CHECKPOINT_FILE)
    assert header["step"] > 0
    assert all(tensor.isfinite().all() for tensor in tensors.values())
