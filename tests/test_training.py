import json
import math
import os
import resource
import signal
import threading

import pytest
import torch
from warm_kernels import tiny_run

from torchrsm import NonFiniteError, Trainer, kernels, load
from torchrsm.checkpoint import load_tensors, save_tensors
from torchrsm.streams import ArrayStream, BouncingBalls
from torchrsm.training import (
    CHECKPOINT_FILE,
    METRICS_FILE,
    RUN_FILE,
    TIMING_FILE,
    RunConfig,
    TrainingConfig,
    load_run_config,
)


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
    assert seen[-1].progress == 1.0
    assert not model.training
    loaded = load(tmp_path / "run")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert load_run_config(tmp_path / "run") == tiny_run(steps=200)


def test_the_recorded_error_is_that_of_the_frames_after_the_first(tmp_path, monkeypatch):
    frames = torch.rand(4, 5, 12, 12)
    trainer = Trainer(tiny_run(steps=5, batch_size=4, log_steps=5), tmp_path / "run", stream=ArrayStream(frames, 4))
    # Without dropout and learning the run can be repeated by hand.
    trainer.model.eval()
    monkeypatch.setattr(trainer.model, "train", lambda mode=True: trainer.model)
    monkeypatch.setattr(trainer.learning, "step", lambda losses, prediction, progress: None)
    model = trainer.run()
    state, errors = model.initial_state((4, 1, 12, 12)), []
    for t in range(5):
        prediction = model.predict(state)
        errors.append((prediction.raw - frames[:, t, None]).square().sum((1, 2, 3)))
        state = model.observe(frames[:, t, None], prediction, state)
    assert records(tmp_path / "run")[0]["frame_squared_error"] == pytest.approx(
        torch.stack(errors[1:]).mean().item(), rel=1e-5
    )


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
    with pytest.raises(ValueError, match=r"was begun with training.steps = 1; it cannot go on with 2"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"run.json: name: field required"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)


def test_truncated_and_foreign_checkpoints_are_refused(tmp_path):
    Trainer(tiny_run(steps=2), tmp_path / "run").run()
    path = tmp_path / "run" / CHECKPOINT_FILE
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is truncated"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)
    save_tensors(path, {"a": torch.ones(1)}, {"format": "other"})
    with pytest.raises(ValueError, match="must have the format torchrsm-run-1; got other"):
        Trainer(tiny_run(steps=2), tmp_path / "run", resume=True)
    save_tensors(path, {"a": torch.ones(1)}, {"format": "torchrsm-run-1"})
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

    with pytest.raises(NonFiniteError, match="layer|weights stack.layers.1") as caught:
        trainer.run(spoil)
    assert "at step 11" in str(caught.value)
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
        Trainer(tiny_run(steps=5, threads=2), tmp_path / "run", resume=True)
        assert kernels.threads() == 2
        settings = (tmp_path / "run" / RUN_FILE).read_text().replace('"threads": 2', '"threads": null')
        (tmp_path / "run" / RUN_FILE).write_text(settings)
        kernels.set_threads(1)
        Trainer(tiny_run(steps=5, threads=None), tmp_path / "run", resume=True)
        assert kernels.threads() == 2
    finally:
        kernels.set_threads(before)
