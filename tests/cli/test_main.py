import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from torchrsm import PRESETS, TEST_SEED, __version__, load, preset
from torchrsm.cli import main
from torchrsm.runs.settings import flatten_settings, load_run_config
from torchrsm.runs.trainer import METRICS_FILE
from torchrsm.scoring.evaluation import Evaluator, NextFrameScores
from torchrsm.storage.folders import CONFIG_FILE, WEIGHTS_FILE
from torchrsm.storage.tensors import load_tensors, save_tensors

RUN_FILES = {
    "run.json",
    "config.json",
    "model.safetensors",
    "checkpoint.safetensors",
    "metrics.jsonl",
    "timing.jsonl",
}
PRESET_NAMES = ", ".join(PRESETS)
COMMANDS = "command must be one of train, predict, watch, serve, evaluate, bench, dream, presets, info"


def train(folder, *arguments, steps=12):
    return main(["train", "tiny", "--out", str(folder), "--steps", str(steps), "--threads", "1", *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; tests read it only."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """The same frames, ``[3, 12, 12, 12]``, as .npz and as .npy."""
    array = np.random.default_rng(0).random((3, 12, 12, 12), dtype=np.float32)
    folder = tmp_path_factory.mktemp("frames")
    np.savez(folder / "frames.npz", frames=array)
    np.save(folder / "frames.npy", array)
    return array, folder / "frames.npz", folder / "frames.npy"


@pytest.fixture
def refused(capsys):
    """Run a command that must end with a code and one line on the standard error that has all the parts."""

    def check(*arguments, says, code=2):
        assert main([str(argument) for argument in arguments]) == code
        output, error = capsys.readouterr()
        assert error.startswith("torchrsm: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        for part in says:
            assert str(part) in error
        assert not re.search(r"[╭│─]|-{3}|\[type=|Errno|Traceback", error)
        return output

    return check


# The whole of it


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "torchrsm.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_the_console_script_is_main():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="torchrsm")
    assert script.load() is main


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(capsys, flag):
    assert main([flag]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {command} " in output for command in ("train", "evaluate", "dream", "presets", "info"))
    assert "copy-last" in output


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["train"], ["--out DIR", "--steps", "--minutes", "--seed", "--resume", "--tensorboard"]),
        (["train", "tiny"], ["--out DIR", "--steps", "--minutes", "--seed", "--resume", "--tensorboard"]),
        (
            ["evaluate"],
            ["MODEL", "--frames", "--json", "--strip", "--split", "--sequences", "--rollout-steps", "--plot"],
        ),
        (["dream"], ["MODEL", "--out FILE", "--prime", "--steps", "--sequences", "--frames", "--seed", "--json"]),
        (["info"], ["MODEL"]),
        (["presets"], ["--help"]),
    ],
)
def test_every_command_has_help(capsys, command, flags):
    assert main([*command, "--help"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert f"usage: torchrsm {' '.join(command)}" in output
    assert all(flag in output for flag in flags)


def test_every_setting_of_a_run_is_a_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "balls", "--help"]) == 0
    flags = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    settings = flatten_settings(preset("balls").model_dump(mode="json"))
    del settings["name"], settings["stream.kind"]  # the preset's own
    single = {re.sub(r"(rates|betas)\.\d$", r"\1", name).removeprefix("training.") for name in settings}
    assert flags >= {"--" + name.replace("_", "-") for name in single}


def test_presets_are_listed_with_what_they_are(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(len(line.split()) > 4 for line in lines)


# Training


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
    assert output.splitlines()[-1] == f"{tmp_path / 'run'} is trained: 12 steps, 0.0 minutes"
    assert "100%" in output


def test_a_budget_in_minutes_takes_the_place_of_steps(tmp_path):
    assert main(["train", "tiny", "--out", str(tmp_path), "--minutes", "0.002", "--threads", "1"]) == 0
    training = load_run_config(tmp_path).training
    assert (training.steps, training.minutes) == (None, 0.002)


def test_a_stopped_run_ends_with_130_and_resumes_to_the_same_end(tmp_path, run, refused, monkeypatch, capsys):
    @contextlib.contextmanager
    def interrupting(name):
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
    refused("train", "tiny", "--out", tmp_path / "run", *arguments, says=["finite at step", "checkpoint"], code=1)


# Evaluation


@pytest.mark.parametrize("kind", ["run", "model"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_evaluate_scores_a_folder_on_frames_of_a_file(tmp_path, run, frames, capsys, kind, suffix):
    array, *files = frames
    file = next(file for file in files if file.suffix == suffix)
    folder = run
    if kind == "model":
        folder = tmp_path / "model"
        load(run).save(folder)
    assert main(["evaluate", str(folder), "--frames", str(file), "--json", str(tmp_path / "s.json")]) == 0
    expected = Evaluator(torch.from_numpy(array)[:, :, None]).evaluate(load(run), model=str(folder))
    scores = NextFrameScores.model_validate_json((tmp_path / "s.json").read_text())
    assert scores.model_copy(update={"frames_per_second": 0, "training": None}) == expected.model_copy(
        update={"frames_per_second": 0}
    )
    output = capsys.readouterr().out
    assert expected.frames_sha256 in output
    assert str(expected.frame_squared_error.after_2) in output


def test_the_json_holds_the_error_in_its_windows(tmp_path, frames):
    array, file, _ = frames
    assert main(["evaluate", "copy-last", "--frames", str(file), "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["model"] == "copy-last"
    assert scores["sequences"] == 3
    assert scores["frames_sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    error = np.square(array[:, 1:].astype(float) - array[:, :-1]).sum((2, 3))  # of frames 2..12
    for window, first in (("all_predictable", 2), ("after_2", 3), ("after_10", 11)):
        of_sequence = error[:, first - 2 :].mean(1)
        summary = scores["frame_squared_error"][window]
        assert summary == {"mean": pytest.approx(of_sequence.mean()), "sd": pytest.approx(of_sequence.std(ddof=1))}
    assert scores["by_frame"] == [None, *(pytest.approx(value) for value in error.mean(0))]


def test_without_frames_the_fixed_sequences_are_scored(capsys):
    digests = []
    for split in ("test", "validation"):
        assert main(["evaluate", "copy-last", "--sequences", "2", "--split", split]) == 0
        output = capsys.readouterr().out
        assert output.startswith("copy-last: 2 sequences of 100 frames, mean ± sd over sequences\n")
        digests += re.findall(r"sha256 (\w{64})\n", output)
    assert len(set(digests)) == 2


def test_strip_is_a_picture(tmp_path, run, frames, capsys):
    assert main(["evaluate", str(run), "--frames", str(frames[1]), "--strip", str(tmp_path / "s.png")]) == 0
    assert f"picture: {tmp_path / 's.png'}\n" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 9


def test_frames_too_small_for_the_similarity_are_scored_without_it(tmp_path, capsys):
    np.save(tmp_path / "small.npy", np.zeros((2, 5, 8, 8), np.float32))
    assert main(["evaluate", "copy-last", "--frames", str(tmp_path / "small.npy")]) == 0
    assert re.search(r"structural similarity +2\.\.5 +-\n", capsys.readouterr().out)


def test_info_describes_a_run_and_a_model(tmp_path, run, capsys):
    assert main(["info", str(run)]) == 0
    output = capsys.readouterr().out
    load(run).save(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    described = capsys.readouterr().out
    weights = sum(p.numel() for p in load(run).parameters())
    assert f"12 x 12, {weights:,} weights\n" in described
    assert "layer 2: 10 groups x 2 cells, 2 win, 3x3 stride 2" in described
    *model, training = output.replace(str(run), str(tmp_path)).splitlines()
    assert model == described.splitlines()
    assert training.split() == ["run:", "preset", "tiny,", "budget", "12", "steps,", "batch", "4,", "seed", "0"]


# Bad input: exit code 2 and one line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), [f"{COMMANDS}; got none"]),
        (("fly",), [f"{COMMANDS}; got fly"]),
        (("train",), [f"needs a preset first, one of {PRESET_NAMES}, or video or digits; got none"]),
        (("train", "--out", "run"), [f"needs a preset first, one of {PRESET_NAMES}, or video or digits; got --out"]),
        (("train", "ball", "--out", "run"), [f"preset must be one of {PRESET_NAMES}; got 'ball'"]),
        (("presets", "all"), ["presets: unknown: all"]),
        (("dream",), ["dream: missing"]),
        (("dream", "copy-last"), ["dream: missing --out FILE"]),
        (("dream", "--out", "d.gif"), ["dream: missing MODEL"]),
        (
            ("dream", "nothing", "--out", "d.gif"),
            ["no model folder nothing; shipped by name: ", "baselines: copy-last"],
        ),
        (("dream", "copy-last", "--out", "d.gif", "--frames", "f.npy"), ["f.npy", "existing .npy or .npz file"]),
        (("dream", "copy-last", "--out", "d.gif", "--steps", "many"), ["--steps must be INT; got 'many'"]),
        (("info",), ["info: missing MODEL"]),
        (("info", "nothing"), ["no model folder nothing"]),
        (("evaluate",), ["evaluate: missing MODEL"]),
        (("evaluate", "nothing"), ["no model folder nothing; shipped by name: balls; baselines: copy-last"]),
        (("evaluate", "."), [f". is no model folder: it has no {CONFIG_FILE}"]),
        (("evaluate", "copy-last", "more"), ["evaluate: unknown: more"]),
        (("evaluate", "copy-last", "--sequences", "1"), ["sequences", "greater than or equal to 2; got 1"]),
        (("evaluate", "copy-last", "--sequences", "two"), ["--sequences must be INT; got 'two'"]),
        (("evaluate", "copy-last", "--split", "train"), ["--split must be one of 'test', 'validation'; got 'train'"]),
        (
            ("evaluate", "copy-last", "--frames", "f.npy"),
            ["f.npy", "existing .npy or .npz file", "nothing at that path"],
        ),
        (
            ("evaluate", "copy-last", "--frames", "f.npy", "--sequences", "9"),
            ["sequences chooses among fixed sequences and cannot go with frames; got 9 with f.npy"],
        ),
        (("evaluate", "copy-last", "--json"), ["--json needs 1 value"]),
    ],
)
def test_bad_commands_are_refused(tmp_path, refused, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments, says=says) == ""


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
        (("--model.layers.0.activation", "relu"), ["activation must be one of 'sigmoid', 'identity'; got 'relu'"]),
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


def test_a_run_needs_a_folder(refused):
    refused("train", "tiny", says=["missing --out DIR"])
    refused("train", "tiny", "--out", says=["--out needs 1 value"])


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
    refused("train", "tiny", "--out", tmp_path, "--seed", -1, says=["seed: input should be greater than or equal to 0"])


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


def spoiled(value):
    frames = np.full((2, 5, 12, 12), 0.5, np.float32)
    frames[1, 2, 3, 4] = value
    return frames


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (spoiled(1.5), ["within 0..1", "maximum 1.5", "sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(-0.5), ["within 0..1", "minimum -0.5", "sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(np.nan), ["must be finite, received nan at sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(np.inf), ["must be finite, received inf at sequence 1, time 2"]),
        (np.zeros((3, 12, 12), np.float32), ["has the shape [3, 12, 12], which may", "--layout"]),
        (np.zeros((0, 3, 12, 12), np.float32), ["must not be empty", "[0, 3, 12, 12]"]),
        (np.zeros((2, 5, 12, 12), int), ["floating-point in 0..1 or uint8 or bool, received int64"]),
        (np.zeros((2, 1, 1, 12, 12), np.float32), ["sequences must have >= 2 frames", "received 1"]),
        (np.zeros((2, 5, 16, 20), np.float32), ["frames of 12 x 12; got 16 x 20"]),
        (np.zeros((2, 3, 3, 12, 12), np.float32), ["frames of 1 channels; got 3"]),
    ],
)
def test_bad_frames_are_refused(tmp_path, run, refused, array, says):
    np.save(tmp_path / "bad.npy", array)
    output = refused("evaluate", run, "--frames", tmp_path / "bad.npy", says=says)
    assert re.fullmatch(r"(.*bad.npy is read as \[clips, frames, channels, height, width\] = .*\n)?", output)


def test_files_that_hold_no_frames_are_refused(tmp_path, refused):
    (tmp_path / "text.npz").write_text("no frames")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with open(tmp_path / "pickle.npy", "wb") as file:
        np.save(file, np.array([Intruder(tmp_path / "ran")], object), allow_pickle=True)
    for name, says in (
        ("text.npz", "complete .npy or .npz file"),
        ("two.npz", "one array, or one named 'frames', received ['a', 'b']"),
        ("pickle.npy", "without pickled objects"),
        (".", "received a folder"),
    ):
        refused("evaluate", "copy-last", "--frames", tmp_path / name, says=[tmp_path / name, says])
    assert not (tmp_path / "ran").exists()


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def edit(folder, change):
    config = json.loads((folder / CONFIG_FILE).read_text())
    change(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def change_weight(folder, change):
    tensors, header = load_tensors(folder / WEIGHTS_FILE)
    change(tensors, "stack.layers.1.decoder")
    save_tensors(folder / WEIGHTS_FILE, tensors, header)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / CONFIG_FILE).unlink(), [f"is no model folder: it has no {CONFIG_FILE}"]),
        (lambda f: (f / CONFIG_FILE).write_text("{not JSON"), [CONFIG_FILE, "invalid JSON"]),
        (lambda f: edit(f, lambda c: c.update(colour=1)), [f"{CONFIG_FILE}: colour: unknown setting"]),
        (lambda f: edit(f, lambda c: c["layers"][1].update(cell=1)), ["layers.1.cell: unknown setting"]),
        (lambda f: edit(f, lambda c: c["layers"][1].update(active_groups=11)), ["layers.1", "1..10; got 11"]),
        (
            lambda f: edit(f, lambda c: c["layers"][0].update(groups=13)),
            [WEIGHTS_FILE, "weight stack.layers.0.", "must be (", "; got ("],
        ),
        (lambda f: (f / WEIGHTS_FILE).unlink(), [f"no file {{}}/{WEIGHTS_FILE}"]),
        (lambda f: os.truncate(f / WEIGHTS_FILE, 5_000), [WEIGHTS_FILE, "truncated or no safetensors file"]),
        (lambda f: os.truncate(f / WEIGHTS_FILE, 0), [WEIGHTS_FILE, "truncated or no safetensors file"]),
        (
            lambda f: (f / WEIGHTS_FILE).write_bytes(pickle.dumps(Intruder(f / "ran"))),
            [WEIGHTS_FILE, "no safetensors file"],
        ),
        (lambda f: torch.save(Intruder(f / "ran"), f / WEIGHTS_FILE), [WEIGHTS_FILE, "no safetensors file"]),
        (lambda f: save_file({"a": torch.ones(1)}, f / WEIGHTS_FILE), ["that torchrsm did not write"]),
        (
            lambda f: save_tensors(f / WEIGHTS_FILE, {"a": torch.ones(1)}, {"format": "other"}),
            ["must have the format torchrsm-model-1; got other"],
        ),
        (lambda f: change_weight(f, lambda t, n: t.pop(n)), ["weight stack.layers.1.decoder is missing"]),
        (lambda f: change_weight(f, lambda t, n: t.update(x=t[n])), ["weight x is unknown"]),
        (
            lambda f: change_weight(f, lambda t, n: t[n].flatten()[5:].fill_(torch.nan)),
            ["weight stack.layers.1.decoder is not finite"],
        ),
        (
            lambda f: change_weight(f, lambda t, n: t.update({n: t[n].double()})),
            ["weight stack.layers.1.decoder must be", "got", "float64"],
        ),
    ],
)
def test_bad_model_folders_are_refused_at_once(tmp_path, run, frames, refused, spoil, says):
    load(run).save(tmp_path / "model")
    spoil(tmp_path / "model")
    says = [part.format(tmp_path / "model") for part in says]
    for command in (("evaluate", tmp_path / "model", "--frames", frames[2]), ("info", tmp_path / "model")):
        start = time.perf_counter()
        assert refused(*command, says=[tmp_path / "model", *says]) == ""
        assert time.perf_counter() - start < 1
    assert not (tmp_path / "model" / "ran").exists()


def test_info_says_nothing_of_a_run_with_broken_settings(tmp_path, run, refused):
    load(run).save(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert refused("info", tmp_path, says=[f"{tmp_path}/run.json: name: field required"]) == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--json", "no/scores.json"), ["cannot write no/scores.json: there is no folder no"]),
        (("--json", "folder"), ["cannot write folder: it is a folder"]),
        (("--strip", "no/strip.png"), ["cannot write no/strip.png: there is no folder no"]),
        (("--strip", "strip.jpg"), ["strip must end in .png; got 'strip.jpg'"]),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_the_evaluation(
    tmp_path, run, frames, refused, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("torchrsm.cli.evaluate.Evaluator", None)  # whatever calls it fails otherwise
    assert refused("evaluate", run, "--frames", frames[1], *arguments, says=says) == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "no/dream.gif"), ["cannot write no/dream.gif: there is no folder no"]),
        (("--out", "folder.npz"), ["cannot write folder.npz: it is a folder"]),
        (("--out", "dream"), ["out must end in .mp4, .gif, .png, .npz; got 'dream'"]),
        (("--out", "dream.npz", "--json", "no/physics.json"), ["cannot write no/physics.json: there is no folder no"]),
        (("--out", "dream.npz", "--json", "dream.npz"), ["out and json must be two files; got 'dream.npz' for both"]),
        (("--out", "dream.npz", "--json", "physics.json"), ["the shape [n, t, 1, 30, 30]", "[3, 12, 1, 12, 12]"]),
        (("--out", "dream.GIF", "--frames-per-second", 60), ["of a GIF must be in 1..50; got 60"]),
        (("--out", "dream.mp4", "--frames-per-second", 0), ["frames_per_second", "0.001; got 0.0"]),
        (("--out", "dream.gif", "--prime", 13), ["prime must be <= 12, the frames of a sequence; got 13"]),
        (("--out", "dream.gif", "--sequences", 4), ["sequences must be <= 3, those of ", "got 4"]),
    ],
)
def test_bad_dreams_are_refused_before_the_dream(tmp_path, run, frames, refused, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.setattr("torchrsm.cli.dream.imagine", None)  # whatever calls it fails otherwise
    common = () if "--prime" in arguments else ("--prime", 4)
    refused("dream", run, "--frames", frames[1], *common, *arguments, says=says)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_trained_model_dreams_in_pictures(tmp_path, run, frames, capsys, suffix):
    target = tmp_path / f"dream{suffix}"
    arguments = ["--frames", frames[1], "--prime", 9, "--steps", 5, "--out", target]  # two steps beyond the truth
    assert main(["dream", str(run), *(str(argument) for argument in arguments)]) == 0
    assert f"3 dream(s) of 5 steps after 9 frames of {frames[1]}: {target}\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [target]
    if suffix == ".mp4":
        with av.open(target) as container:
            assert sum(1 for _ in container.decode(video=0)) == 14
            return
    with Image.open(target) as picture:
        assert (picture.format, getattr(picture, "n_frames", 1)) == (("GIF", 14) if suffix == ".gif" else ("PNG", 1))


def test_a_film_shows_predictions_then_the_dream_over_the_truth(tmp_path):
    levels = np.array([1, 0, 0, 1, 0, 1, 1], np.float32)
    np.save(tmp_path / "f.npy", np.broadcast_to(levels[None, :, None, None], (1, 7, 12, 12)))
    target = tmp_path / "dream.gif"
    arguments = ["--frames", str(tmp_path / "f.npy"), "--prime", "4", "--steps", "3", "--out", str(target)]
    assert main(["dream", "copy-last", *arguments]) == 0
    over, alone = [], []
    with Image.open(target) as picture:
        for index in range(picture.n_frames):
            picture.seek(index)
            pixels = picture.convert("RGB")
            over.append(pixels.getpixel((14 + 120, pixels.height - 100)))
            alone.append(pixels.getpixel((14 + 248 + 120, pixels.height - 100))[0] // 255)
    assert alone == [0, 1, 0, 0, 1, 1, 1]  # the frame before, then the last one that was seen
    colours = {(0, 0): (0, 0, 0), (1, 0): (255, 0, 0), (0, 1): (0, 102, 255), (1, 1): (255, 0, 255)}
    assert over == [colours[shown, int(true)] for shown, true in zip(alone, levels, strict=True)]


def test_the_world_of_other_frames_is_not_judged(run, refused):
    says = ["frames of 12 x 12; got 30 x 30"]
    refused("evaluate", run, "--sequences", 2, "--rollout-steps", 3, says=says)


def test_an_interrupted_evaluation_ends_with_130(frames, refused, monkeypatch):
    def interrupt(name):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("torchrsm.cli.evaluate.load", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        refused("evaluate", "copy-last", "--frames", frames[1], says=["interrupted"], code=130)
    finally:
        signal.signal(signal.SIGINT, before)
