import contextlib
import io
import json
import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from torchrsm import bouncing_ball_frames, load, preset, shipped_models
from torchrsm.cli import main
from torchrsm.scoring.evaluation import NextFrameScores
from torchrsm.scoring.rollouts import RolloutScores
from torchrsm.scoring.sequences import imagine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of small layers on 12 x 12 frames."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "tiny", "--out", str(folder), "--steps", "5", "--threads", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Two sequences ``[2, 9, 12, 12]`` in a file."""
    array = np.random.default_rng(0).random((2, 9, 12, 12), dtype=np.float32)
    path = tmp_path_factory.mktemp("frames") / "frames.npz"
    np.savez(path, frames=array)
    return array, path


def dream(*arguments):
    return main(["dream", *(str(argument) for argument in arguments)])


def test_numbers_of_all_sequences_are_those_of_the_rollout(tmp_path, run, frames, capsys):
    array, path = frames
    assert dream(run, "--frames", path, "--prime", 4, "--steps", 7, "--out", tmp_path / "d.npz") == 0
    assert f"2 dream(s) of 7 steps after 4 frames of {path}: {tmp_path / 'd.npz'}" in capsys.readouterr().out
    with np.load(tmp_path / "d.npz") as arrays:
        assert sorted(arrays) == ["frames", "prime", "truth"]
        assert np.array_equal(arrays["prime"][:, :, 0], array[:, :4])
        assert np.array_equal(arrays["truth"][:, :, 0], array[:, 4:9])
        expected = imagine(load(run), torch.from_numpy(array)[:, :4, None], 7)
        assert np.array_equal(arrays["frames"], expected.numpy())


def test_films_and_pictures_are_made(tmp_path, frames):
    common = ("copy-last", "--prime", 3, "--steps", 5)
    assert dream(*common, "--sequences", 6, "--seed", 3, "--out", tmp_path / "d.mp4") == 0
    with av.open(tmp_path / "d.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert dream(*common, "--frames", frames[1], "--frames-per-second", 10, "--out", tmp_path / "d.gif") == 0
    with Image.open(tmp_path / "d.gif") as picture:
        assert (picture.n_frames, picture.info["duration"]) == (8, 100)
    assert dream(*common, "--out", tmp_path / "d.PNG".lower()) == 0
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size[0] > picture.size[1]


def test_the_seed_and_the_number_choose_the_sequences(tmp_path):
    for name, arguments in {"test": (), "seven": ("--seed", 7), "two": ("--sequences", 2)}.items():
        out = tmp_path / f"{name}.npz"
        assert dream("copy-last", "--prime", 2, "--steps", 3, "--out", out, *arguments) == 0
    primes = {name: np.load(tmp_path / f"{name}.npz")["prime"] for name in ("test", "seven", "two")}
    assert np.array_equal(primes["two"], bouncing_ball_frames("test", 2)[:, :2].numpy())
    assert np.array_equal(primes["test"], primes["two"][:1])
    assert not np.array_equal(primes["seven"], primes["test"])


def test_the_physics_of_a_dream_is_written(tmp_path, capsys):
    target = tmp_path / "physics.json"
    assert dream("copy-last", "--steps", 20, "--sequences", 3, "--out", tmp_path / "d.npz", "--json", target) == 0
    scores = RolloutScores.model_validate_json(target.read_text())
    assert (scores.prime, scores.steps, scores.physics.sequences) == (50, 20, 3)
    assert scores.physics.windows[0].right_count == 1
    assert scores.physics.windows[0].kinetic_energy == pytest.approx(0, abs=1e-6)
    assert "3 dreams of 20 steps after 50 true frames" in capsys.readouterr().out


def test_evaluate_judges_dreams_too(tmp_path, capsys):
    target, plot = tmp_path / "scores.json", tmp_path / "physics.png"
    arguments = ["--split", "validation", "--sequences", "3", "--rollout-steps", "20", "--prime", "40"]
    assert main(["evaluate", "copy-last", *arguments, "--json", str(target), "--plot", str(plot)]) == 0
    rollout = NextFrameScores.model_validate_json(target.read_text()).rollout
    assert rollout is not None
    assert (rollout.prime, rollout.steps) == (40, 20)
    assert rollout.simulator is not None
    assert rollout.simulator[0].median < 0.1 < rollout.physics.tracked[0].median
    with Image.open(plot) as picture:
        assert picture.size[0] > 1000
    assert f"physics: {plot}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prime", 10], "prime must be <= 9, the frames of a sequence; got 10"),
        (["--prime", 0], "prime must be greater than or equal to 1; got 0"),
        (["--steps", 0], "steps must be greater than or equal to 1; got 0"),
        (["--sequences", 3], "sequences must be <= 2, those of"),
        (["--seed", 1], "seed is for bouncing balls, it cannot go with frames; got 1 with"),
    ],
)
def test_bad_dreams_are_refused(tmp_path, run, frames, capsys, arguments, says):
    target = tmp_path / "d.npz"
    base = [run, "--frames", frames[1], "--prime", 4, "--out", target]
    assert dream(*base, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not target.exists()


def test_bad_targets_are_refused_before_the_dream(tmp_path, run, capsys):
    assert dream(run, "--out", tmp_path / "d.avi") == 2
    assert "out must end in .mp4, .gif, .png, .npz, .txt; got " in capsys.readouterr().err
    assert dream(run, "--out", tmp_path / "missing" / "d.gif") == 2
    assert f"there is no folder {tmp_path / 'missing'}" in capsys.readouterr().err


def test_frames_of_another_size_are_refused_with_both_sizes(tmp_path, run, capsys):
    assert dream(run, "--out", tmp_path / "d.npz") == 2
    assert "this model reads frames of 12 x 12; got 30 x 30" in capsys.readouterr().err


def test_frames_of_another_world_have_no_physics(tmp_path, frames, capsys):
    target = tmp_path / "d.npz"
    arguments = ["--frames", frames[1], "--prime", 4, "--out", target, "--json", tmp_path / "p.json"]
    assert dream("copy-last", *arguments) == 2
    assert "frames must have the shape [n, t, 1, 30, 30]" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plot", "p.png"], "plot needs rollout_steps >= 1; got 0"),
        (["--rollout-steps", "5", "--plot", "p.jpg"], "plot must end in .png; got 'p.jpg'"),
        (["--rollout-steps", "5", "--prime", "100"], "prime must be less than 100; got 100"),
        (["--rollout-steps", "5", "--frames", "f.npz"], "rollout_steps must be 0 with frames from a file; got 5"),
    ],
)
def test_bad_evaluations_of_dreams_are_refused(capsys, arguments, says):
    assert main(["evaluate", "copy-last", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_name_that_is_not_shipped_lists_those_that_are(tmp_path, capsys):
    assert dream("bals", "--out", tmp_path / "d.gif") == 2
    error = capsys.readouterr().err
    assert "no model folder bals" in error
    assert all(name in error for name in [*shipped_models(), "copy-last"])


def test_the_shipped_model_is_described(capsys):
    for name, kind in (("balls", "unet"), ("balls-window", "unet")):
        assert main(["info", name]) == 0
        output = capsys.readouterr().out
        assert "layer 2: " in output
        assert f"rectifier: {kind}, " in output


def test_settings_of_the_rectifier_are_flags(tmp_path):
    flags = ["--rectifying.share", "0.5", "--rectifying.stack-share", "0.5", "--rectifying.adversarial-weight", "0"]
    flags += ["--model.rectifier.width", "16"]
    small = ["--batch-size", "8", "--threads", "1", "--steps", "4", "--log-steps", "1"]
    assert main(["train", "balls", "--out", str(tmp_path / "run"), *small, *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["stack", "stack", "rectifier", "rectifier"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["rectifier"] == preset("balls").model.rectifier.replace(width=16).model_dump()
    assert "model.safetensors" in os.listdir(tmp_path / "run")
