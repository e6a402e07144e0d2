import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.tiny_run import train

from torchrsm import TEST_SEED, load, preset
from torchrsm.cli import main
from torchrsm.runs.lock import locked
from torchrsm.runs.settings import flatten_settings, load_run_config
from torchrsm.runs.trainer import METRICS_FILE

RUN_FILES = {
    "run.json",
    "config.json",
    "model.safetensors",
    "checkpoint.safetensors",
    "metrics.jsonl",
    "timing.jsonl",
}


def test_every_setting_of_a_run_is_a_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "balls", "--help"]) == 0
    flags = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    settings = flatten_settings(preset("balls").model_dump(mode="json"))
    del settings["name"], settings["stream.kind"], settings["model.head"]  # the preset's own
    single = {re.sub(r"(rates|betas)\.\d$", r"\1", name).removeprefix("training.") for name in settings}
    assert flags >= {"--" + name.replace("_", "-") for name in single}


def test_a_run_takes_overrides_and_leaves_its_files(tmp_path, capsys):
    overrides = ["--model.layers.0.groups", "14", "--learning.learning-rates", "0.001", "0.002", "--stream.balls", "2"]
    assert train(tmp_path / "run", "--seed", "7", *overrides) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == RUN_FILES
    config = load_run_config(tmp_path / "run")
    assert (config.name, config.training.steps, config.training.minutes, config.training.seed) == ("tiny", 12, None, 7)
    assert [layer.groups for layer in config.model.layers] == [14, 10]
    assert config.learning.learning_rates == (0.001, 0.002)
    assert config.stream.balls == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()] == [10, 12]
    output, error = capsys.readouterr()
    assert error == ""
    *_, ended, following = output.splitlines()
    assert ended == f"{tmp_path / 'run'} is trained: 12 steps, 0.0 minutes"
    assert following.startswith(f"next: torchrsm evaluate {tmp_path / 'run'}, torchrsm dream ")
    assert "100%" in output


def test_a_budget_in_minutes_takes_the_place_of_steps(tmp_path):
    assert main(["train", "tiny", "--out", str(tmp_path), "--minutes", "0.002", "--threads", "1"]) == 0
    training = load_run_config(tmp_path).training
    assert (training.steps, training.minutes) == (None, 0.002)


def test_a_stopped_run_ends_with_130_and_resumes_to_the_same_end(tmp_path, run, refused, monkeypatch, capsys):
    @contextlib.contextmanager
    def interrupting(name, done):
        yield lambda record: os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("torchrsm.cli.train.reporting", interrupting)
        arguments = ("train", "tiny", "--out", tmp_path, "--steps", 12, "--threads", 1)
        refused(*arguments, says=["stopped at step 10; the checkpoint is saved"], code=130)
    assert train(tmp_path, "--resume") == 0
    assert f"resuming {tmp_path} at step 10\n" in capsys.readouterr().out
    weights, expected = load(tmp_path).state_dict(), load(run).state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (tmp_path / METRICS_FILE).read_text() == (run / METRICS_FILE).read_text()


def test_a_finished_run_resumes_to_nothing_more(run, capsys):
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert train(run, "--resume") == 0
    assert f"resuming {run} at step 12\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_record_goes_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path, "--tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    errors = events.Scalars("frame_squared_error")
    written = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [event.step for event in errors] == [10, 12]
    assert [event.value for event in errors] == pytest.approx([line["frame_squared_error"] for line in written])
    assert {"frames_per_second", "loss/layer_1", "loss/layer_2"} <= set(events.Tags()["scalars"])


def test_tensorboard_without_its_package_is_refused_before_the_run(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    says = ["tensorboard is missing; install the extra: pip install 'torchrsm[tensorboard]'"]
    refused("train", "tiny", "--out", tmp_path / "run", "--steps", 1, "--tensorboard", says=says)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_no_longer_finite_ends_with_1(tmp_path, refused):
    arguments = ("--steps", 9, "--threads", 1, "--learning.learning-rates", "1e38")
    refused("train", "tiny", "--out", tmp_path / "run", *arguments, says=["at step", "checkpoint"], code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("more",), ["unknown: more"]),
        (("--sped", 3), ["unknown: --sped, 3; see torchrsm train tiny --help"]),
        (("--model.layers.0.gruops", 3), ["unknown: --model.layers.0.gruops"]),
        (("--model.layers.2.groups", 3), ["unknown: --model.layers.2.groups"]),
        (("--model.layers.0.groups",), ["--model.layers.0.groups needs 1 value"]),
        (("--model.layers.0.groups", "many"), ["--model.layers.0.groups must be INT; got 'many'"]),
        (("--model.layers.0.groups", 2.5), ["--model.layers.0.groups must be INT; got '2.5'"]),
        (("--model.layers.0.groups", 0), ["model.layers.0: groups", "greater than 0; got 0"]),
        (("--model.layers.0.groups", 10**13), ["not enough memory"]),
        (("--model.layers.0.active-groups", 13), ["model.layers.0: active_groups", "1..groups = 1..12; got 13"]),
        (("--model.layers.1.active-groups", 11), ["model.layers.1: active_groups", "1..groups = 1..10; got 11"]),
        (("--model.layers.0.dropout", "half"), ["--model.layers.0.dropout must be FLOAT; got 'half'"]),
        (("--model.layers.0.dropout", 1), ["model.layers.0: dropout", "less than 1; got 1.0"]),
        (("--model.layers.0.dropout", "nan"), ["model.layers.0: dropout", "finite", "got nan"]),
        (
            ("--model.layers.0.activation", "relu"),
            ["activation must be one of 'sigmoid', 'identity', 'softmax'; got"],
        ),
        (("--model.height", "None"), ["model: height and width go together; got None and 12"]),
        (("--stream.resolution", 20), ["frames of 12 x 12; got 20 x 20"]),
        (("--stream.balls", 50), ["the balls do not fit: 50 balls of radius 1.2"]),
        (("--learning.learning-rates", 1, 1, 1), ["learning_rates must have 1 or 2 entries", "got 3"]),
        (("--learning.learning-rates", "fast"), ["--learning.learning-rates", "'fast'"]),
        (("--learning.betas", 0.9), ["--learning.betas needs 2 value"]),
        (("--steps", "many"), ["--steps must be INT; got 'many'"]),
        (("--steps", 0), ["steps", "greater than 0; got 0"]),
        (("--steps", -3), ["steps", "greater than 0; got -3"]),
        (("--steps", 3, "--minutes", 1), ["exactly one of steps and minutes must be given; got 3 and 1.0"]),
        (("--steps", "None"), ["exactly one of steps and minutes must be given; got None and None"]),
        (("--minutes", -1), ["minutes", "greater than 0; got -1.0"]),
        (("--minutes", "inf"), ["minutes", "finite", "got inf"]),
        (("--batch-size", 0), ["batch_size", "greater than 0; got 0"]),
        (("--seed", -1), ["seed", "greater than or equal to 0; got -1"]),
        (("--seed", TEST_SEED), [f"seed must not be {TEST_SEED} (test)", "never trained on"]),
    ],
)
def test_bad_settings_are_refused_and_leave_no_folder(tmp_path, refused, arguments, says):
    assert refused("train", "tiny", "--out", tmp_path / "run", *arguments, says=says) == ""
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_folder_gets_one_of_its_own(tmp_path, refused, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/tiny", "runs/tiny-2"):
        assert main(["train", "tiny", "--steps", "1"]) == 0
        said = capsys.readouterr().out
        assert f"run folder: {folder}\n" in said
        assert f"{folder} is trained: 1 steps" in said
        assert (tmp_path / folder / "model.safetensors").is_file()
    refused("train", "tiny", "--out", says=["--out needs 1 value"])


def test_films_without_a_place_go_to_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("clip.npy", np.random.default_rng(0).integers(0, 255, (6, 12, 12), dtype=np.uint8))
    assert main(["dream", "copy-last", "--prime", "2", "--steps", "3"]) == 0
    assert "runs/copy-last-dream.mp4" in capsys.readouterr().out
    assert main(["predict", "copy-last", "clip.npy"]) == 0
    assert "film: runs/clip-prediction.mp4" in capsys.readouterr().out
    assert sorted(path.name for path in Path("runs").iterdir()) == ["clip-prediction.mp4", "copy-last-dream.mp4"]


def test_a_narrow_terminal_changes_no_message(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    refused(
        "train",
        "tiny",
        "--out",
        tmp_path,
        "--seed",
        "two and a half",
        says=["--seed must be INT; got 'two and a half'"],
    )
    refused("train", "tiny", "--out", tmp_path, "--seed", -1, says=["seed must be greater than or equal to 0"])


def test_a_folder_with_a_run_is_not_overwritten(run, refused):
    before = {path: path.read_bytes() for path in run.iterdir()}
    refused(
        "train", "tiny", "--out", run, "--steps", 12, says=[f"{run} holds a run; resume it or choose another folder"]
    )
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_resuming_needs_the_same_run(tmp_path, run, refused):
    refused("train", "tiny", "--out", tmp_path, "--resume", says=[f"{tmp_path} holds no run: it has no run.json"])
    arguments = ("train", "tiny", "--out", run, "--threads", 1, "--resume")
    refused(*arguments, "--steps", 11, says=[f"{run} was begun for 12 steps; it can go on for more, not for 11"])
    says = ["was begun with model.layers.0.groups = 12; it cannot go on with 13"]
    refused(*arguments, "--steps", 12, "--model.layers.0.groups", 13, says=says)


def test_an_unwritable_folder_is_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        refused("train", "tiny", "--out", folder, "--steps", 1, says=[f"cannot make the folder {folder}: "])


def test_a_run_goes_on_by_its_folder_alone(tmp_path, run, capsys):
    assert train(tmp_path / "run", "--model.layers.0.groups", "14", steps=4) == 0
    capsys.readouterr()
    for name in ([], ["tiny"]):  # the settings need not be said again
        assert main(["train", *name, "--resume", "--out", str(tmp_path / "run")]) == 0
        assert f"resuming {tmp_path / 'run'} at step 4\n" in capsys.readouterr().out


def test_a_finished_run_is_extended(tmp_path, capsys):
    assert train(tmp_path / "run", steps=10) == 0
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps=20"]) == 0
    assert load_run_config(tmp_path / "run").training.steps == 20
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_a_run_of_minutes_is_extended_by_minutes(tmp_path, refused):
    folder = str(tmp_path / "run")
    assert main(["train", "tiny", "--out", folder, "--minutes", "0.002", "--threads", "1"]) == 0
    assert main(["train", "--out", folder, "--resume", "--minutes", "0.004"]) == 0
    assert load_run_config(folder).training.minutes == 0.004
    refused("train", "--out", folder, "--resume", "--minutes", "0.003", says=["can go on for more, not for 0.003"])
    refused("train", "--out", folder, "--resume", "--steps", "9", says=["a longer budget must be one of minutes, too"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume"], "missing --out DIR"),
        (["--resume", "--out", "nothing"], "nothing holds no run: it has no run.json"),
        (["balls", "--resume", "--out", "run"], "run was begun with tiny; it cannot go on with balls"),
        (["digits", "--resume", "--out", "run"], "run was begun with balls; it cannot go on with digits"),
        (["video", "a.mp4", "--resume", "--out", "run"], "run was begun with balls; it cannot go on with video"),
        (["--resume", "--out", "run", "--seed", "3"], "run was begun with training.seed = 0; it cannot go on with 3"),
        (["nothing", "--resume", "--out", "run"], "preset must be one of"),
    ],
)
def test_a_run_is_not_resumed_as_another(run, refused, monkeypatch, arguments, says):
    monkeypatch.chdir(run.parent)
    refused("train", *arguments, says=[says])


def test_two_processes_do_not_write_one_run(tmp_path, refused):
    assert train(tmp_path / "run", steps=1) == 0
    with locked(tmp_path / "run"):
        says = [f"{tmp_path / 'run'} is being written by process {os.getpid()}, this one"]
        refused("train", "--resume", "--out", tmp_path / "run", "--steps", 2, says=says)
    assert train(tmp_path / "run", "--resume", steps=2) == 0


def test_a_model_is_not_overwritten_by_a_run(tmp_path, run, refused):
    load(run).save(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    refused("train", "tiny", "--out", tmp_path / "model", says=["holds a model; choose another folder"])
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
