"""A run neither disturbs the program around it nor is disturbed by it: random numbers, threads, devices."""

import json
import re

import pytest
import torch
from warm_kernels import rectified_run, tiny_run

from torchrsm import NonFiniteError, RectifyingConfig, Trainer, Watcher, load
from torchrsm.devices import available_devices
from torchrsm.rsm import kernels
from torchrsm.runs.checkpoint import CHECKPOINT_FILE
from torchrsm.runs.settings import TrainingConfig
from torchrsm.runs.trainer import METRICS_FILE
from torchrsm.storage.tensors import load_tensors, save_tensors


def weights_of(folder):
    return load_tensors(folder / CHECKPOINT_FILE)[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- Random numbers ---------------------------------------------------------------------------------------------------


def test_draws_around_a_run_do_not_change_it(tmp_path):
    """Before it is built, between building and running, from each report, and from another run beside it."""
    config = rectified_run(steps=12, log_steps=3)
    Trainer(config, tmp_path / "alone").run()
    torch.manual_seed(7)
    torch.rand(5)
    trainer = Trainer(config, tmp_path / "disturbed")
    torch.rand(3)
    other = Trainer(rectified_run(steps=3, seed=4), tmp_path / "other")

    def disturb(record) -> None:
        torch.rand(11)
        if record.step == 6:
            other.run()

    trainer.run(disturb)
    assert same(weights_of(tmp_path / "alone"), weights_of(tmp_path / "disturbed"))


def test_a_run_does_not_change_what_is_drawn_around_it(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(6)
    torch.manual_seed(7)
    got = [torch.rand(1)]
    trainer = Trainer(rectified_run(steps=4, log_steps=2), tmp_path / "run")
    got.append(torch.rand(1))
    trainer.run(lambda record: got.append(torch.rand(1)) if record.step < 4 else None)
    got.append(torch.rand(1))
    load(tmp_path / "run")  # makes weights before it reads them
    got.append(torch.rand(1))
    watcher = Watcher((1, 8, 8))
    watcher.see(torch.zeros(1, 8, 8))
    got.append(torch.rand(1))
    assert torch.equal(torch.cat(got), expected)


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_threads():
    before = kernels.threads(), torch.get_num_threads()
    kernels.set_threads(3, torch_threads=2)
    yield (3, 2)
    kernels.set_threads(*before)


def threads():
    return kernels.threads(), torch.get_num_threads()


class Stop(Exception):  # noqa: N818
    pass


def test_threads_are_those_of_before_however_a_run_ends(tmp_path, three_threads):
    trainer = Trainer(rectified_run(steps=4, threads=1, log_steps=1), tmp_path / "whole")
    assert threads() == three_threads
    used = []
    trainer.run(lambda record: used.append(threads()))
    assert set(used) == {(1, 1)}
    assert threads() == three_threads
    for number, fault in enumerate((Stop, NonFiniteError, KeyboardInterrupt)):

        def fail(record, fault=fault) -> None:
            raise fault

        with pytest.raises(fault):
            Trainer(rectified_run(steps=4, threads=1, log_steps=1), tmp_path / f"{number}").run(fail)
        assert threads() == three_threads


def test_a_watcher_leaves_the_threads_alone(three_threads):
    watcher = Watcher((1, 8, 8))
    assert threads() == three_threads
    watcher.see(torch.zeros(1, 8, 8))
    assert threads() == three_threads
    with pytest.raises(ValueError, match="frame must be"):
        watcher.see(torch.ones(1, 8, 8) * 2)
    assert threads() == three_threads


def test_threads_in_use_are_put_back_after_a_fault(three_threads):
    def work() -> None:
        assert threads() == (1, 1)
        kernels.set_threads(2, torch_threads=2)
        raise Stop

    with pytest.raises(Stop), kernels.threads_in_use(1, torch_threads=1):
        work()
    assert threads() == three_threads
    with pytest.raises(ValueError, match="threads must be >= 1; got 0"), kernels.threads_in_use(0):
        work()
    assert threads() == three_threads


# --- Devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "meta", "CPU", "cpu:0"])
def test_names_that_are_no_device_are_refused(name):
    with pytest.raises(ValueError, match=r"device\n.*should be auto, cpu, cuda, cuda:N or mps"):
        TrainingConfig(steps=1, device=name)


def test_a_device_that_is_not_there_is_refused_and_nothing_is_written(tmp_path):
    missing = f"cuda:{torch.cuda.device_count()}"
    there = re.escape(", ".join(available_devices()))
    with pytest.raises(ValueError, match=f"device must be auto or one that is there, {there}; got '{missing}'"):
        Trainer(tiny_run(steps=1, device=missing), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_under_another_name_of_its_device(tmp_path):
    Trainer(tiny_run(steps=2), tmp_path / "run").run()
    assert Trainer(tiny_run(steps=2, device="auto"), tmp_path / "run", resume=True).step == 2


# --- Checkpoints of before --------------------------------------------------------------------------------------------


def without_a_weight(**training):
    return rectified_run({"adversarial_weight": 0.0, "motion_weight": 0.0, "gradient_norm": None}, **training)


def test_a_checkpoint_with_a_discriminator_that_is_no_more_goes_on(tmp_path):
    """Older runs had one at any weight, and summed four terms of the rectifier, some of them always 0."""
    config = without_a_weight(steps=20, log_steps=6)
    Trainer(config, tmp_path / "whole").run()

    def stop(record) -> None:
        if record.step == 18:
            raise Stop

    eager = config.replace(**{"training.checkpoint_seconds": 0.0})
    with pytest.raises(Stop):
        Trainer(eager, tmp_path / "run").run(stop)
    path = tmp_path / "run" / CHECKPOINT_FILE
    tensors, header = load_tensors(path)
    assert header["step"] == 17
    frames, error, squared = header["sums"]
    assert header.pop("loss_names") == ["rectifier/squared error"]
    for name, shape in {"frame.weight": (128, 144), "frame.bias": (128,), "unit.weight": (1, 256)}.items():
        tensors[f"discriminator.{name}"] = torch.rand(shape)
    save_tensors(path, tensors, {**header, "sums": [frames, error, squared, 0.0, 0.0, 0.0]})
    Trainer(eager, tmp_path / "run", resume=True).run()
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))
    lines = [(tmp_path / name / METRICS_FILE).read_text() for name in ("whole", "run")]
    assert lines[0] == lines[1]


def test_no_discriminator_is_made_saved_or_named_without_its_weight(tmp_path):
    trainer = Trainer(without_a_weight(steps=14, log_steps=14), tmp_path / "run")
    trainer.run()
    assert list(trainer.learner.modules) == ["model"]
    assert not any(name.startswith("discriminator") for name in weights_of(tmp_path / "run"))
    last = json.loads((tmp_path / "run" / METRICS_FILE).read_text().splitlines()[-1])
    assert list(last["losses"]) == ["rectifier/squared error"]
    assert RectifyingConfig(adversarial_weight=0.0).real_label == 0.9


# --- Weights that are not finite --------------------------------------------------------------------------------------


def test_weights_are_looked_at_where_a_phase_ends(tmp_path):
    """Without any checkpoint in between, and where no loss tells: the rectifier does not learn yet."""
    trainer = Trainer(rectified_run(steps=20, log_steps=3), tmp_path / "run")

    def spoil(record) -> None:
        assert record.step <= 9
        if record.step == 9:
            with torch.no_grad():
                trainer.model.rectifier.tail.bias[0] = float("nan")

    with pytest.raises(NonFiniteError, match="model.rectifier.tail.bias is not finite at step 10; there is no checkpo"):
        trainer.run(spoil)
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()


def test_each_named_tensor_of_a_checkpoint_is_looked_at(tmp_path):
    trainer = Trainer(rectified_run(steps=16, log_steps=1, checkpoint_seconds=0), tmp_path / "run")

    def spoil(record) -> None:
        if record.step == 13:
            (entry,) = list(trainer.learner.optimisers[0].state.values())[:1]
            entry["exp_avg"].flatten()[0] = float("inf")

    with pytest.raises(NonFiniteError, match=r"optimiser.0.0.exp_avg is not finite at step 13; the last good"):
        trainer.run(spoil)
    tensors, header = load_tensors(tmp_path / "run" / CHECKPOINT_FILE)
    assert header["step"] == 12
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
