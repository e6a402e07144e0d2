import contextlib
import json
import math
import os
import resource
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from device_under_test import device_name, here, is_foreign
from warm_kernels import rectified_run, tiny_run

from torchrsm import NonFiniteError, RectifyingConfig, Trainer, load, precision, preset
from torchrsm.precision import products, products_in
from torchrsm.rsm import kernels
from torchrsm.runs.record import learning_curve
from torchrsm.runs.settings import RUN_FILE, RunConfig, TrainingConfig, equal_time, learned_from, load_run_config
from torchrsm.runs.trainer import CHECKPOINT_FILE, METRICS_FILE, TIMING_FILE
from torchrsm.state import flatten
from torchrsm.storage.tensors import load_tensors, save_tensors
from torchrsm.streams import ArrayStream, BouncingBalls
from torchrsm.streams.settings import BouncingBallsConfig, VariedBallsConfig


def records(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_a_run_learns_records_and_leaves_a_model(tmp_path):
    seen = []
    model = Trainer(tiny_run(steps=200), tmp_path / "run").run(seen.append)
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(10, 201, 10)) == [record.step for record in seen]
    assert lines[-1]["frame_squared_error"] < 0.6 * lines[0]["frame_squared_error"]
    assert all(len(line["losses"]) == 2 for line in lines)
    timing = [json.loads(line) for line in (tmp_path / "run" / TIMING_FILE).read_text().splitlines()]
    assert [line["step"] for line in timing] == [line["step"] for line in lines]
    frames = 10 * tiny_run().training.batch_size  # of a record
    assert sum(frames / record.frames_per_second for record in seen) == pytest.approx(seen[-1].seconds)
    assert seen[-1].progress == 1.0
    assert not model.training
    loaded = load(tmp_path / "run", device=device_name())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert load_run_config(tmp_path / "run") == tiny_run(steps=200)


def test_the_recorded_error_is_that_of_the_frames_after_the_first(tmp_path, monkeypatch):
    frames = torch.rand(4, 5, 12, 12)
    trainer = Trainer(tiny_run(steps=5, batch_size=4, log_steps=5), tmp_path / "run", stream=ArrayStream(frames, 4))
    # Without dropout and learning the run can be repeated by hand.
    trainer.model.eval()
    monkeypatch.setattr(trainer.model, "train", lambda mode=True: trainer.model)
    monkeypatch.setattr(trainer.learner._learning, "step", lambda prediction, wins: None)
    model, frames = trainer.run(), here(frames)
    state, errors = model.initial_state((4, 1, 12, 12)), []
    for t in range(5):
        prediction = model.predict(state)
        errors.append((prediction.raw - frames[:, t, None]).square().sum((1, 2, 3)))
        state = model.observe(frames[:, t, None], prediction, state)
    assert records(tmp_path / "run")[0]["frame_squared_error"] == pytest.approx(
        torch.stack(errors[1:]).mean().item(), rel=1e-5
    )


def test_a_learning_curve_is_the_mean_of_each_stretch(tmp_path):
    lines = [("stack", 10.0, 4.0), ("stack", 29.0, 2.0), ("stack", 31.0, 1.0)]
    lines += [("rectifier", 40.0, 0.5), ("rectifier", 60.4, 0.3)]
    with open(tmp_path / METRICS_FILE, "w") as metrics, open(tmp_path / TIMING_FILE, "w") as timing:
        for phase, seconds, error in lines:
            print(json.dumps({"phase": phase, "frame_squared_error": error}), file=metrics)
            print(json.dumps({"seconds": seconds}), file=timing)
    curve = learning_curve(tmp_path, minutes=0.5)
    assert curve.minutes == [0.5, 1.0, 1.0]
    assert curve.phase == ["stack", "stack", "rectifier"]
    assert curve.frame_squared_error == [3.0, 1.0, 0.4]


@pytest.mark.cpu_only
def test_a_run_computes_in_its_precision_and_puts_the_setting_back(tmp_path):
    def weights(precision, name):
        config = rectified_run({"share": 0.5}, steps=12, precision=precision)
        wide = {"groups": 80, "active_groups": 6, "cells_per_group": 1, "recurrent_kernel_size": 3}
        config = config.replace(**{f"model.layers.0.{setting}": value for setting, value in wide.items()})
        trainer = Trainer(config, tmp_path / name)
        model = trainer.run(lambda record: seen.append(products(CPU)))
        return {part: torch.cat([w.flatten() for w in getattr(model, part).parameters()]) for part in PARTS}

    CPU, PARTS, seen = torch.device("cpu"), ("stack", "rectifier"), []
    exact, again, auto = weights("float32", "a"), weights("float32", "b"), weights("auto", "c")
    assert set(seen[:2]) == {"float32"}
    assert products(CPU) == "float32"
    with products_in("auto"):
        fastest = products(CPU)
    if fastest == "bfloat16":
        rounded = weights("bfloat16", "d")
        assert seen[-1] == "bfloat16"
        for part in PARTS:
            assert torch.equal(rounded[part], auto[part])
            assert not torch.equal(rounded[part], exact[part])
            assert (rounded[part] - exact[part]).abs().max() < 0.1
    for part in PARTS:
        assert torch.equal(exact[part], again[part])
        assert fastest == "bfloat16" or torch.equal(exact[part], auto[part])


@pytest.mark.cpu_only
def test_a_precision_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16 on cpu; got 'tf32'"):
        Trainer(tiny_run(steps=1, precision="tf32"), tmp_path / "run")
    monkeypatch.setattr(precision, "_of_this_cpu", lambda: "float32")
    message = "precision must be auto or float32 on this CPU, which has no bfloat16; got 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_run(steps=1, precision="bfloat16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_minute_budget_ends_in_time(tmp_path):
    trainer = Trainer(tiny_run(steps=None, minutes=0.01), tmp_path / "run")
    trainer.run()
    assert 0.6 <= trainer.seconds < 5
    assert trainer.progress == 1.0


def test_a_finished_run_resumes_to_nothing_more(tmp_path):
    Trainer(tiny_run(steps=5), tmp_path / "run").run()
    again = Trainer(tiny_run(steps=5), tmp_path / "run", resume=True)
    assert again.step == 5
    again.run()
    assert again.step == 5


def test_budget_must_be_one():
    for budget in ({}, {"steps": 3, "minutes": 1.0}):
        with pytest.raises(ValueError, match="exactly one of steps and minutes must be given"):
            TrainingConfig(**budget)


@pytest.mark.parametrize("seed", [20190528, 20190529])
def test_test_and_validation_seeds_are_never_trained_on(seed):
    with pytest.raises(ValueError, match=f"those sequences are never trained on; got {seed}"):
        TrainingConfig(steps=1, seed=seed)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    Trainer(tiny_run(steps=1), tmp_path / "run").run()
    before = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(FileExistsError, match="holds a run; resume it or choose another folder"):
        Trainer(tiny_run(steps=1), tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == before


def test_resuming_needs_a_run_with_the_same_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run: it has no run.json"):
        Trainer(tiny_run(steps=1), tmp_path / "run", resume=True)
    Trainer(tiny_run(steps=1), tmp_path / "run").run()
    with pytest.raises(ValueError, match=r"was begun with training.batch_size = .*; it cannot go on with 3"):
        Trainer(tiny_run(steps=1, batch_size=3), tmp_path / "run", resume=True)
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"run.json: name must be given"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)


def test_a_finished_run_is_extended_and_its_schedule_goes_on_over_the_new_length(tmp_path):
    Trainer(tiny_run(steps=20), tmp_path / "run").run()
    trainer = Trainer(tiny_run(steps=40), tmp_path / "run", resume=True)
    assert (trainer.step, trainer.progress) == (20, 0.5)
    assert load_run_config(tmp_path / "run").training.steps == 40
    trainer.run()
    assert [record["step"] for record in records(tmp_path / "run")] == [10, 20, 30, 40]
    assert Trainer(tiny_run(steps=40), tmp_path / "run", resume=True).progress == 1.0


def test_an_extended_run_that_goes_back_to_its_stack_learns_from_every_stream(tmp_path):
    dreaming = {"loop_share": 0.99, "loop_from": 0.0, "loop_steps": 100, "loop_error": 1e9}
    run = rectified_run(steps=30)
    run = run.replace(rectifying=run.rectifying.replace(**dreaming))
    Trainer(run, tmp_path).run()
    trainer = Trainer(run.replace(training=run.training.replace(steps=3000)), tmp_path, resume=True)
    assert bool((trainer.learner.state.alone > 0).any())
    assert trainer.phase == "stack"
    trainer.learner.begin("stack", 1)
    assert not bool(trainer.learner.state.alone.any())


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ({"steps": 20}, {"steps": 19}, "was begun for 20 steps; it can go on for more, not for 19"),
        (
            {"steps": 20},
            {"steps": None, "minutes": 9.0},
            "was begun for 20 steps; a longer budget must be one of steps",
        ),
        ({"steps": None, "minutes": 0.5}, {"steps": None, "minutes": 0.25}, "for 0.5 minutes; .* more, not for 0.25"),
    ],
)
def test_a_budget_is_never_cut(tmp_path, before, now, says):
    Trainer(tiny_run(**before), tmp_path / "run")
    with pytest.raises(ValueError, match=says):
        Trainer(tiny_run(**now), tmp_path / "run", resume=True)


def test_a_run_can_be_stopped_and_goes_on(tmp_path):
    trainer = Trainer(tiny_run(steps=40, log_steps=10), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="stopped at step 10; the checkpoint is saved"):
        trainer.run(lambda record: trainer.stop())
    trainer.run()
    assert trainer.step == 40
    assert [record["step"] for record in records(tmp_path / "run")] == [10, 20, 30, 40]


def test_a_second_process_is_kept_out_and_told_who_is_in(tmp_path):
    def other(record):
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is being written by process {os.getpid()}, this one"):
            Trainer(tiny_run(steps=20), tmp_path, resume=True)
        seen.append(record.step)

    seen = []
    Trainer(tiny_run(steps=20), tmp_path).run(other)
    assert seen == [10, 20]
    assert Trainer(tiny_run(steps=20), tmp_path, resume=True).step == 20


def test_a_trainer_that_was_overtaken_does_not_undo_what_the_other_did(tmp_path):
    slow = Trainer(tiny_run(steps=20), tmp_path)
    Trainer(tiny_run(steps=20), tmp_path, resume=True).run()
    with pytest.raises(ValueError, match="was written by someone else in the meantime; resume the run anew"):
        slow.run()
    assert Trainer(tiny_run(steps=20), tmp_path, resume=True).step == 20


def test_a_model_is_not_overwritten_by_a_run(tmp_path):
    Trainer(tiny_run(steps=1), tmp_path / "run").model.save(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(FileExistsError, match="holds a model; choose another folder"):
        Trainer(tiny_run(steps=1), tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


@contextlib.contextmanager
def room_for(size):
    """Let no file become larger than ``size`` bytes, as on a disk that fills."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_full_disk_leaves_no_half_of_a_new_run(tmp_path, size):
    with room_for(size), pytest.raises(OSError, match="cannot write .*: File too large"):
        Trainer(tiny_run(steps=1), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_last_checkpoint_and_its_record(tmp_path):
    Trainer(tiny_run(steps=20), tmp_path).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = Trainer(tiny_run(steps=40), tmp_path, resume=True)
    settings = (tmp_path / RUN_FILE).read_bytes()
    for size in (0, 1000):
        with room_for(size), pytest.raises(OSError, match=f"cannot write {tmp_path}/.*: File too large"):
            trainer.run()
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert after == {**before, RUN_FILE: settings}
        trainer = Trainer(tiny_run(steps=40), tmp_path, resume=True)
    trainer.run()
    assert [record["step"] for record in records(tmp_path)] == [10, 20, 30, 40]


def test_truncated_and_foreign_checkpoints_are_refused(tmp_path):
    Trainer(tiny_run(steps=2), tmp_path / "run").run()
    path = tmp_path / "run" / CHECKPOINT_FILE
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is truncated"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)
    save_tensors(path, {"a": torch.ones(1)}, {"format": "other"})
    with pytest.raises(ValueError, match="must have the format torchrsm-run-3; got other"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)
    save_tensors(path, {"a": torch.ones(1)}, {"format": "torchrsm-run-3"})
    with pytest.raises(ValueError, match=r"weight .* is missing"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)


class Spoiled:
    """A stream whose frames are spoiled from one step on."""

    def __init__(self, step: int, value: float) -> None:
        self.inner = BouncingBalls(4, resolution=12, sequence_length=20)
        self.batch_size, self.frame_shape = self.inner.batch_size, self.inner.frame_shape
        self.step, self.value, self.played = step, value, 0
        self.state_dict, self.load_state_dict = self.inner.state_dict, self.inner.load_state_dict

    def __iter__(self):
        return self

    def __next__(self):
        self.played += 1
        batch = next(self.inner)
        if self.played >= self.step:
            batch.frames[0, 0, 3, 3] = self.value
        return batch


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (math.nan, NonFiniteError, "a frame with NaN or infinity at step 8"),
        (math.inf, NonFiniteError, "a frame with NaN or infinity at step 8"),
        (1.5, ValueError, r"frames must be in 0..1; the stream gave 0..1.5 at step 8"),
        (-0.5, ValueError, r"frames must be in 0..1; the stream gave -0.5..1 at step 8"),
    ],
)
def test_a_bad_frame_stops_the_run_within_its_step(tmp_path, value, error, message):
    trainer = Trainer(tiny_run(steps=20, checkpoint_seconds=0), tmp_path / "run", stream=Spoiled(8, value))
    with pytest.raises(error, match=message):
        trainer.run()
    tensors, header = load_tensors(tmp_path / "run" / CHECKPOINT_FILE)
    assert header["step"] == 7
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.parametrize("parameter", ["recurrent", "decoder", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_weight_stops_the_run_within_one_step(tmp_path, parameter, value):
    trainer = Trainer(tiny_run(steps=20, checkpoint_seconds=0), tmp_path / "run")
    steps = []

    def spoil(record) -> None:
        if record.step == 10:
            with torch.no_grad():
                getattr(trainer.model.stack.layers[1], parameter).flatten()[0] = value
        steps.append(record.step)

    with pytest.raises(NonFiniteError, match=f"model.stack.layers.1.{parameter} is not finite at step 10") as caught:
        trainer.run(spoil)
    assert str(tmp_path / "run" / CHECKPOINT_FILE) in str(caught.value)
    assert steps == [10]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    trainer = Trainer(tiny_run(steps=40, checkpoint_seconds=0), tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record) -> None:
        if record.step == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))

    try:
        with pytest.raises(OSError, match="cannot write .*: File too large"):
            trainer.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed = Trainer(tiny_run(steps=40, checkpoint_seconds=0), tmp_path / "run", resume=True)
    assert resumed.step == 19
    resumed.run()
    assert [line["step"] for line in records(tmp_path / "run")] == [10, 20, 30, 40]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot make .*file/run"):
        Trainer(tiny_run(steps=1), tmp_path / "file" / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_run_goes_on_later(tmp_path, number):
    trainer = Trainer(tiny_run(steps=30), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="stopped at step 10; the checkpoint is saved"):
        trainer.run(lambda record: os.kill(os.getpid(), number) if record.step == 10 else None)
    resumed = Trainer(tiny_run(steps=30), tmp_path / "run", resume=True)
    assert resumed.step == 10
    resumed.run()
    assert resumed.step == 30


@pytest.mark.skipif(is_foreign(), reason="the stand-in is there in one thread alone")
def test_a_run_works_outside_of_the_main_thread(tmp_path):
    trainer = Trainer(tiny_run(steps=3), tmp_path / "run")
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.step == 3


def test_run_configs_know_no_unknown_setting():
    settings = tiny_run(steps=1).model_dump()
    settings["model"]["layers"][0]["dropuot"] = 0.3
    with pytest.raises(ValueError, match=r"model.layers.0.dropuot\n +Extra inputs"):
        RunConfig.model_validate(settings)


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path):
    before = kernels.threads()
    try:
        Trainer(tiny_run(steps=5, threads=2), tmp_path / "run").run()
        kernels.set_threads(1)
        assert Trainer(tiny_run(steps=5, threads=2), tmp_path / "run", resume=True).threads == 2
        assert kernels.threads() == 1
        settings = (tmp_path / "run" / RUN_FILE).read_text().replace('"threads": 2', '"threads": null')
        (tmp_path / "run" / RUN_FILE).write_text(settings)
        kernels.set_threads(1)
        resumed = Trainer(tiny_run(steps=5, threads=None), tmp_path / "run", resume=True)
        assert resumed.threads == 2
    finally:
        kernels.set_threads(before)


# --- Two phases -------------------------------------------------------------------------------------------------------

PARTS = {METRICS_FILE: ("phase", "step", "frame_squared_error", "losses"), TIMING_FILE: ("step", "seconds")}


@pytest.mark.parametrize(("share", "boundary"), [(0.5, 10), (0.25, 15), (0.1, 18), (0.9, 2)])
def test_the_budget_is_split_between_the_phases(tmp_path, share, boundary):
    seen = []
    Trainer(rectified_run({"share": share}, steps=20, log_steps=4), tmp_path / "run").run(seen.append)
    lines = records(tmp_path / "run")
    expected = sorted({4, 8, 12, 16, 20, boundary})
    assert [line["step"] for line in lines] == expected == [record.step for record in seen]
    phases = ["stack" if step <= boundary else "rectifier" for step in expected]
    assert [line["phase"] for line in lines] == phases == [record.phase for record in seen]
    losses = [2 if phase == "stack" else 4 for phase in phases]  # one a layer, then the rectifier's
    assert [len(line["losses"]) for line in lines] == losses == [len(record.losses) for record in seen]
    for name, parts in PARTS.items():
        for line in (tmp_path / "run" / name).read_text().splitlines():
            assert tuple(json.loads(line)) == parts


def test_stack_and_rectifier_can_learn_from_the_same_frames(tmp_path):
    seen = []
    config = rectified_run({"share": 0.75, "stack_share": 0.5}, steps=20, log_steps=4)
    Trainer(config, tmp_path / "run").run(seen.append)
    phases = [(record.step, record.phase, len(record.losses)) for record in seen]
    both = [(8, "both", 6), (10, "both", 6)]
    last = [(12, "rectifier", 4), (16, "rectifier", 4), (20, "rectifier", 4)]
    assert phases == [(4, "stack", 2), (5, "stack", 2), *both, *last]
    assert seen[2].loss_names[:2] == ("loss/layer_1", "loss/layer_2")
    assert all(loss > 0 for loss in seen[2].losses[:3])


def test_a_rectifier_that_learns_beside_it_does_not_touch_the_stack(tmp_path):
    """With what random numbers there are left out, the stack learns the same as alone, bit by bit."""
    stacks = []
    settings = {"stack_share": 0.999, "loop_share": 0.0, "adversarial_weight": 0.0}
    for number, share in enumerate((0.01, 0.9)):
        config = rectified_run({**settings, "share": share}, steps=20, log_steps=20)
        layers = [layer.replace(dropout=0.0) for layer in config.model.layers]
        model = config.model.replace(layers=tuple(layers))
        trainer = Trainer(config.replace(model=model), tmp_path / f"run-{number}")
        before = {name: weight.clone() for name, weight in trainer.model.rectifier.state_dict().items()}
        after = trainer.run().rectifier.state_dict()
        assert any(not torch.equal(weight, before[name]) for name, weight in after.items()) is (share > 0.5)
        stacks.append(trainer.model.stack.state_dict())
    assert all(torch.equal(weight, stacks[1][name]) for name, weight in stacks[0].items())


def test_a_stream_that_dreams_does_not_teach_the_stack(tmp_path):
    """All streams but one dream at once; the frames that come to these change nothing in the stack."""
    frames, stacks = torch.rand(4, 6, 12, 12), []
    for number, late in enumerate((0.0, 1.0)):
        frames[:3, 3:] = late
        still = {"learning_rate": 1e-30, "loop_share": 0.75, "loop_from": 0.0, "loop_steps": 9, "motion_weight": 0.0}
        config = rectified_run({**still, "loop_error": 1e3, "share": 0.9, "stack_share": 0.999}, steps=6)
        trainer = Trainer(config, tmp_path / f"run-{number}", stream=ArrayStream(frames.clone(), 4))
        stacks.append({name: w.clone() for name, w in trainer.run().stack.state_dict().items()})
    assert all(torch.equal(weight, stacks[1][name]) for name, weight in stacks[0].items())


@pytest.mark.parametrize("stack_share", [0.1, 0.4])
def test_nothing_may_be_left_without_something_that_learns(stack_share):
    with pytest.raises(ValueError, match=r"stack_share must be >= 1 - share = 0\.5, .*; got " + str(stack_share)):
        RectifyingConfig(share=0.5, stack_share=stack_share)


def test_a_share_of_nothing_leaves_the_rectifier_as_it_was(tmp_path):
    trainer = Trainer(rectified_run({"share": 0.0}, steps=4), tmp_path / "run")
    before = {name: weight.clone() for name, weight in trainer.model.rectifier.state_dict().items()}
    model = trainer.run()
    assert [line["phase"] for line in records(tmp_path / "run")] == ["stack"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.rectifier.state_dict().items())


def test_each_phase_teaches_its_part_alone(tmp_path):
    trainer = Trainer(rectified_run({"share": 0.5}, steps=20, log_steps=1), tmp_path / "run")
    weights, dreams = {}, []

    def watch(record) -> None:
        weights[record.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        assert not any(tensor.requires_grad for tensor in flatten("state", trainer.learner.state).values())
        if record.phase == "rectifier":
            assert all(parameter.grad is None for parameter in trainer.model.stack.parameters())
            dreams.append(trainer.learner.state.alone.tolist())

    trainer.run(watch)
    for first, last, moving in ((1, 10, "stack."), (10, 20, "rectifier.")):
        for name, value in weights[first].items():
            if not name.startswith(moving):
                assert torch.equal(value, weights[last][name]), name
        changed = [name for name, value in weights[first].items() if not torch.equal(value, weights[last][name])]
        assert {name.split(".")[0] + "." for name in changed} == {moving}
        assert len(changed) > 5
    assert max(max(alone) for alone in dreams) > 1
    assert all(alone[2:] == [0, 0] for alone in dreams)  # half of the streams dream
    assert all(steps <= 4 for alone in dreams for steps in alone)


def test_the_recorded_error_of_the_second_phase_is_that_of_the_rectified_frames(tmp_path):
    frames = torch.rand(4, 6, 12, 12)
    Trainer(tiny_run(steps=30), tmp_path / "stack").run()
    still = {"learning_rate": 1e-30, "matrix_learning_rate": None, "loop_share": 0.0}
    config = rectified_run(still, tmp_path / "stack", steps=6, log_steps=6)
    trainer = Trainer(config, tmp_path / "run", stream=ArrayStream(frames, 4))
    with torch.no_grad():
        trainer.model.rectifier.tail.bias.normal_()
    model, frames = trainer.run(), here(frames)
    state, errors = model.initial_state((4, 1, 12, 12)), []
    for t in range(6):
        prediction = model.predict(state)
        errors.append((prediction.frame - frames[:, t, None]).square().sum((1, 2, 3)))
        state = model.observe(frames[:, t, None], prediction, state)
    (line,) = records(tmp_path / "run")
    expected = torch.stack(errors[1:]).mean().item()
    assert line["frame_squared_error"] == pytest.approx(expected, rel=1e-5)
    assert line["losses"]["rectifier/squared error"] == pytest.approx(expected / 144, rel=1e-5)
    assert abs(expected - 144 / 12) > 1


def test_dreams_are_not_in_the_recorded_error(tmp_path):
    """Where all streams but one dream, the record is that of the one: changing the others' frames changes nothing."""
    Trainer(tiny_run(steps=30), tmp_path / "stack").run()
    frames, errors = torch.rand(4, 6, 12, 12), []
    for number, late in enumerate((0.0, 1.0)):
        frames[:3, 3:] = late
        still = {"learning_rate": 1e-30, "matrix_learning_rate": None, "motion_weight": 0.0}
        dreams = {"loop_share": 0.75, "loop_from": 0.0, "loop_steps": 9}
        config = rectified_run({**still, **dreams}, tmp_path / "stack", steps=6, log_steps=3)
        Trainer(config, tmp_path / f"run-{number}", stream=ArrayStream(frames.clone(), 4)).run()
        errors.append([line["frame_squared_error"] for line in records(tmp_path / f"run-{number}")])
    assert errors[0] == errors[1]


def test_a_rectifier_is_saved_with_the_model(tmp_path):
    model = Trainer(rectified_run(steps=6), tmp_path / "run").run()
    again = load(tmp_path / "run", device=device_name())
    state = model.initial_state((2, 1, 12, 12))
    assert torch.equal(model.predict(state).frame, again.predict(state).frame)
    assert load_run_config(tmp_path / "run") == rectified_run(steps=6)


def test_the_rectifier_lowers_the_error_of_the_record(tmp_path):
    config = rectified_run({"share": 0.6, "loop_share": 0.0, "learning_rate": 1e-2}, steps=250, log_steps=50)
    Trainer(config, tmp_path / "run").run()
    stack, rectifier = (
        [line["frame_squared_error"] for line in records(tmp_path / "run") if line["phase"] == phase]
        for phase in ("stack", "rectifier")
    )
    assert rectifier[-1] < 0.8 * rectifier[0]
    assert rectifier[-1] < 0.8 * stack[-1]


class Enough(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("shares", [{}, {"share": 0.8, "stack_share": 0.7}])
@pytest.mark.parametrize("stop", [4, 10, 14, 19])
def test_a_run_resumes_bit_by_bit_in_either_phase(tmp_path, stop, shares):
    """Stopped in the first phase, between the two, in the second, while streams dream, or while both learn."""
    whole, eager = (rectified_run(shares, steps=20, log_steps=1, checkpoint_seconds=s) for s in (30, 0))
    Trainer(whole, tmp_path / "whole").run()

    def end(record) -> None:
        if record.step == stop + 1:  # a step after the checkpoint
            raise Enough

    with pytest.raises(Enough):
        Trainer(eager, tmp_path / "stopped").run(end)
    resumed = Trainer(eager, tmp_path / "stopped", resume=True)
    assert resumed.step == stop
    phases = {4: "both", 10: "both", 14: "rectifier", 19: "rectifier"} if shares else {4: "stack"}
    assert resumed.phase == phases.get(stop, "rectifier")
    if stop > 10:
        assert resumed.learner.state.alone.any()
        assert not any(resumed.model.rectifier.tail.weight.flatten() == 0)
    resumed.run()
    expected, got = (load_tensors(tmp_path / name / CHECKPOINT_FILE)[0] for name in ("whole", "stopped"))
    assert expected.keys() == got.keys()
    assert any(name.startswith("discriminator.") for name in got)
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert records(tmp_path / "whole") == records(tmp_path / "stopped")


def test_what_an_optimiser_remembers_lies_as_its_weight_does(tmp_path):
    """Fused steps go through the memory of both side by side, and files know no layout."""
    Trainer(rectified_run(steps=6), tmp_path / "run").run()
    resumed = Trainer(rectified_run(steps=6), tmp_path / "run", resume=True)
    strange = 0
    for optimiser in resumed.learner.optimisers[2:]:
        for weight, entry in optimiser.state.items():
            for value in entry.values():
                if value.dim() == 4:
                    assert value.stride() == weight.stride()
                    strange += not weight.is_contiguous()
    assert strange >= 4  # both averages of the first and the last convolution


def test_resuming_needs_the_same_rectifying(tmp_path):
    Trainer(rectified_run(steps=2), tmp_path / "run").run()
    for settings, message in (
        ({"learning_rate": 1e-3}, r"begun with rectifying.learning_rate = 0.002; it cannot go on with 0.001"),
        ({"loop_steps": 5}, r"begun with rectifying.loop_steps = 4; it cannot go on with 5"),
        ({"matrix_learning_rate": None}, r"begun with rectifying.matrix_learning_rate = 0.005; .* with None"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(rectified_run(settings, steps=2), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"begun with model.rectifier.blocks = 1; it cannot go on with None"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("rectifier", "rectifying", "message"),
    [
        (None, {}, "must be given only with a rectifier that learns; got settings with the rectifier 'none'"),
        ({"kind": "sharpening"}, {}, "only with a rectifier that learns; got settings with the rectifier 'sharpening'"),
        ({"kind": "compact"}, None, "given with this rectifier that learns; got none with the rectifier 'compact'"),
        ({"kind": "paper"}, None, "given with this rectifier that learns; got none with the rectifier 'paper'"),
    ],
)
def test_a_rectifier_and_its_learning_go_together(rectifier, rectifying, message):
    settings = tiny_run(steps=1).model_dump()
    settings["model"]["rectifier"], settings["rectifying"] = rectifier, rectifying
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(settings)


def test_a_fixed_rectifier_needs_no_learning(tmp_path):
    settings = tiny_run(steps=4).model_dump()
    settings["model"]["rectifier"] = {"kind": "sharpening"}
    model = Trainer(RunConfig.model_validate(settings), tmp_path / "run").run()
    prediction = model.predict(model.initial_state((1, 1, 12, 12)))
    assert prediction.frame.shape == prediction.raw.shape
    assert [line["phase"] for line in records(tmp_path / "run")] == ["stack"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_rectifier_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, value):
    trainer = Trainer(rectified_run(steps=20, log_steps=1, checkpoint_seconds=0), tmp_path / "run")

    def spoil(record) -> None:
        if record.step == 14:
            with torch.no_grad():
                trainer.model.rectifier.head.bias[0] = value

    with pytest.raises(NonFiniteError, match="model.rectifier.head.bias is not finite at step 14; the last") as caught:
        trainer.run(spoil)
    assert str(tmp_path / "run" / CHECKPOINT_FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e39}, r"model.rectifier.(head|cells|tail|blocks)\S* is not finite"),
        ({"discriminator_learning_rate": 3e38}, r"discriminator\.\S+ is not finite|rectifier/\S+ loss is (nan|inf)"),
    ],
)
def test_a_rate_beyond_reason_never_reaches_a_checkpoint(tmp_path, settings, message):
    config = rectified_run(settings, steps=20, checkpoint_seconds=0)
    with pytest.raises(NonFiniteError, match=message) as caught:
        Trainer(config, tmp_path / "run").run()
    resumed = Trainer(config, tmp_path / "run", resume=True)  # would refuse weights that are not finite
    assert resumed.step >= 10
    assert f"at step {resumed.step + 1}; the last good checkpoint" in str(caught.value)


# --- A stack that has learned already ---------------------------------------------------------------------------------


def test_a_stack_can_be_taken_as_it_is(tmp_path):
    given = Trainer(tiny_run(steps=30, seed=5), tmp_path / "stack").run()
    config = rectified_run(stack_from=tmp_path / "stack", steps=6, log_steps=3)
    model = Trainer(config, tmp_path / "run").run()
    assert [line["phase"] for line in records(tmp_path / "run")] == ["rectifier"] * 2
    for name, weight in given.stack.state_dict().items():
        assert torch.equal(weight, model.stack.state_dict()[name])
    assert model.rectifier.tail.weight.any()
    for name in ("model.safetensors", "config.json"):  # it is needed no more
        (tmp_path / "stack" / name).unlink()
    assert Trainer(config, tmp_path / "run", resume=True).step == 6


def test_a_stack_of_another_form_is_refused(tmp_path):
    settings = tiny_run(steps=1).model_dump()
    settings["model"]["pad"] = 1
    Trainer(RunConfig.model_validate(settings), tmp_path / "stack").run()
    config = rectified_run(stack_from=tmp_path / "stack", steps=6)
    with pytest.raises(ValueError, match=r"stack_from must be .* the same stack; its pad is 1, that of the run 2"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stack_is_taken_for_a_rectifier_only():
    settings = tiny_run(steps=1).model_dump()
    settings["stack_from"] = "somewhere"
    with pytest.raises(ValueError, match="stack_from needs a rectifier that learns.*; got 'somewhere'"):
        RunConfig.model_validate(settings)


# --- Warm-up ----------------------------------------------------------------------------------------------------------


def everything(trainer):
    """All that a step reads, and the generator of random numbers."""
    tensors = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    for n, optimiser in enumerate(trainer.learner.optimisers):
        for m, entry in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{n}.{m}.{key}": value for key, value in entry.items()}
    tensors |= flatten("state", trainer.learner.state)
    return {name: value.clone() for name, value in tensors.items()} | {"random": torch.get_rng_state()}


@pytest.mark.parametrize("steps", [0, 3, 8])
def test_the_warm_up_leaves_no_trace(tmp_path, steps):
    trainer = Trainer(rectified_run(steps=10, log_steps=1), tmp_path / "run")
    checked = []

    def check(record) -> None:
        if record.step == steps:
            before = everything(trainer)
            trainer.learner.warm_up()
            after = everything(trainer)
            assert before.keys() == after.keys()
            assert [name for name in before if not torch.equal(before[name], after[name])] == []
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
            checked.append(steps)

    if steps:
        trainer.run(check)
    else:
        check(SimpleNamespace(step=0))
    assert checked == [steps]


def test_a_budget_in_minutes_does_not_pay_for_the_warm_up(tmp_path, monkeypatch):
    trainer = Trainer(rectified_run(steps=None, minutes=0.5 / 60), tmp_path / "run")
    compile_, began = trainer.learner.warm_up, time.monotonic()

    def slow() -> None:
        time.sleep(1)
        compile_()

    monkeypatch.setattr(trainer.learner, "warm_up", slow)
    phases = []
    trainer.run(lambda record: phases.append(record.phase))
    assert 0.5 <= trainer.seconds <= time.monotonic() - began - 1
    assert phases[0] == "stack"
    assert phases[-1] == "rectifier"


def test_a_curve_leaves_out_records_of_no_frame(tmp_path):
    errors, seconds = [0.0, 4.0, 2.0, 0.0], [10, 20, 50, 100]
    lines = [{"step": i, "phase": "stack", "frame_squared_error": error} for i, error in enumerate(errors)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = [{"step": i, "seconds": second} for i, second in enumerate(seconds)]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    curve = learning_curve(tmp_path)
    assert (curve.minutes, curve.frame_squared_error) == ([0.5, 1.0], [4.0, 2.0])


def several_sizes(**training):
    """A small run that learns from balls on frames of two sizes."""
    run = rectified_run({"adversarial_weight": 0.0, "motion_weight": 0.0}, **training)
    layers = tuple(layer.replace(output_bias="channel", normalisation="location") for layer in run.model.layers)
    model = run.model.replace(layers=layers, height=None, width=None)
    stream = VariedBallsConfig(balls=(1, 3), resolutions=(12, 16), sequence_length=20)
    return run.replace(model=model, stream=stream)


@pytest.mark.parametrize("stop", [7, 31], ids=["stack", "rectifier"])
def test_a_run_on_frames_of_several_sizes_resumes_bit_by_bit(tmp_path, stop):
    config = several_sizes(steps=44, log_steps=1)
    Trainer(config, tmp_path / "whole").run()

    with contextlib.suppress(KeyboardInterrupt):
        trainer = Trainer(config, tmp_path / "run")
        trainer.run(lambda record: trainer.stop() if record.step == stop else None)
    resumed = Trainer(config, tmp_path / "run", resume=True)
    assert resumed.step == stop
    model = resumed.run()
    one, other = (load_tensors(tmp_path / name / CHECKPOINT_FILE)[0] for name in ("whole", "run"))
    assert one.keys() == other.keys()
    assert {"state.0.alone", "state.1.alone"} <= one.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert records(tmp_path / "whole") == records(tmp_path / "run")
    for side in (12, 16):
        assert model.predict(model.initial_state((2, 1, side, side))).frame.shape == (2, 1, side, side)
    assert learned_from(tmp_path / "run") == config.stream


def test_what_reads_frames_of_one_size_says_so(tmp_path):
    several = VariedBallsConfig(resolutions=(12, 16))
    for config, message in (
        (
            preset("convlstm").replace(stream=several),
            "the frames of a baseline must have one size; got 12 x 12, 16 x 16",
        ),
        (tiny_run(steps=2).replace(stream=several), r"frames of 12 x 12; got 16 x 16"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_what_a_model_learned_from_is_known_where_its_run_is(tmp_path):
    assert learned_from("balls") == BouncingBallsConfig()
    assert learned_from("copy-last") is None
    load("balls").save(tmp_path / "alone")
    assert learned_from(tmp_path / "alone") is None


def test_a_minute_can_be_of_processor_time(tmp_path, monkeypatch):
    """Time that passes while the process waits does not count."""
    run = tiny_run(steps=None, minutes=0.02, clock="processor", threads=1)
    trainer = Trainer(run, tmp_path)
    teach, began = trainer._teach, time.monotonic()

    def slow():
        time.sleep(0.05)
        teach()

    monkeypatch.setattr(trainer, "_teach", slow)
    trainer.run()
    assert 1.2 <= trainer.seconds < 2
    assert time.monotonic() - began > trainer.seconds + 0.05 * trainer.step * 0.9
    assert equal_time(5, 1, 3)["clock"] == "processor"
    assert equal_time(5, 2, 3)["clock"] == equal_time(5, 1, 3, "cuda")["clock"] == "wall"
    for changes in ({"threads": 2}, {"threads": None}, {"threads": 1, "device": "cuda"}):
        with pytest.raises(ValueError, match="clock must be wall unless threads is 1 and device is cpu"):
            run.training.replace(**changes)
