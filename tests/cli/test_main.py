import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torchrsm import PRESETS, __version__, load
from torchrsm.cli import main
from torchrsm.storage.folders import CONFIG_FILE, WEIGHTS_FILE
from torchrsm.storage.tensors import load_tensors, save_tensors
from torchrsm.streams import handwriting

PRESET_NAMES = ", ".join(PRESETS)
WORLD_NAMES = "video, digits, kicked-balls, two-way-balls, grammar, words"
KNOWN = ["train", "predict", "watch", "serve", "evaluate", "bench", "dream", "export", "push", "pull"]
KNOWN += ["presets", "info", "doctor"]
COMMANDS = f"command must be one of {', '.join(KNOWN)}"


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), [f"{COMMANDS}; got none"]),
        (("fly",), [f"{COMMANDS}; got fly"]),
        (("train",), [f"needs a preset first, one of {PRESET_NAMES}, or one of {WORLD_NAMES}; got none"]),
        (
            ("train", "--out", "run"),
            [f"needs a preset first, one of {PRESET_NAMES}, or one of {WORLD_NAMES}; got --out"],
        ),
        (("train", "ball", "--out", "run"), [f"preset must be one of {PRESET_NAMES}; got 'ball'"]),
        (("presets", "all"), ["presets: unknown: all"]),
        (("dream",), ["dream: missing"]),
        (("dream", "copy-last", "--steps"), ["--steps needs 1 value"]),
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
        (
            ("evaluate", "nothing"),
            ["no model folder nothing; shipped by name: balls, balls-window; baselines: copy-last"],
        ),
        (("evaluate", "."), [f". is no model folder: it has no {CONFIG_FILE}"]),
        (("evaluate", "copy-last", "more"), ["more must be an existing file; got nothing at that path"]),
        (("evaluate", "copy-last", "one", "two"), ["evaluate: unknown: two"]),
        (
            ("evaluate", "copy-last", "a.mp4", "--frames", "f.npy"),
            ["frames and a video cannot go together; got f.npy and a"],
        ),
        (
            ("evaluate", "copy-last", "a.mp4", "--sequences", "9"),
            ["sequences chooses among fixed sequences and cannot"],
        ),
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


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("fastapi", "web", ["serve"]),
        ("uvicorn", "web", ["serve", "--port", "0"]),
        ("mlxtend", "digits", ["train", "digits", "--out", "run", "--steps", "1"]),
        ("tensorboard", "tensorboard", ["train", "tiny", "--out", "run", "--steps", "1", "--tensorboard"]),
    ],
)
def test_an_extra_that_is_not_installed_is_one_line(tmp_path, refused, monkeypatch, package, extra, arguments):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torchrsm.web.server", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for cached in (handwriting.handwritten_digits, handwriting._read):  # an earlier test may have read the digits
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    refused(*arguments, says=[f"install the extra: pip install 'torchrsm[{extra}]'"])
    assert list(tmp_path.iterdir()) == []


def test_memory_that_is_not_there_is_one_line(tmp_path, refused):
    arguments = ("train", "tiny", "--out", tmp_path / "run", "--model.layers.0.groups", 10**13)
    refused(*arguments, says=["not enough memory"])


def test_the_usage_names_the_baselines_that_need_no_folder(capsys):
    from torchrsm.baselines import WITHOUT_WEIGHTS

    assert main(["--help"]) == 0
    assert f"a baseline ({', '.join(WITHOUT_WEIGHTS)})" in capsys.readouterr().out


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "torchrsm", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
