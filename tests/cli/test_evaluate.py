import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import small_model
from PIL import Image

from torchrsm import LayerConfig, ModelConfig, VideoPredictor, bouncing_ball_frames, load, preset
from torchrsm.cli import main
from torchrsm.runs.settings import RUN_FILE, RunConfig, save_run_config
from torchrsm.sampling import Sampled
from torchrsm.scoring.evaluation import Evaluator, NextFrameScores
from torchrsm.scoring.physics import WORLD
from torchrsm.scoring.rollouts import evaluate_rollouts, world_geometry
from torchrsm.scoring.samples import evaluate_samples
from torchrsm.streams import (
    DisturbanceConfig,
    disturbed_sequences,
    expected_noisy,
    kicked_ball_sequences,
    two_way_ball_sequences,
)
from torchrsm.streams.settings import BouncingBallsConfig, MovingMNISTConfig, VariedBallsConfig
from torchrsm.streams.splits import TEST_SEED, frames_sha256


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


def spoiled(value):
    frames = np.full((2, 5, 12, 12), 0.5, np.float32)
    frames[1, 2, 3, 4] = value
    return frames


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (spoiled(1.5), ["within 0..1", "maximum 1.5", "sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(-0.5), ["within 0..1", "minimum -0.5", "sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(np.nan), ["must be finite; got nan at sequence 1, time 2, channel 0, row 3, column 4"]),
        (spoiled(np.inf), ["must be finite; got inf at sequence 1, time 2"]),
        (np.zeros((3, 12, 12), np.float32), ["has the shape [3, 12, 12], which may", "--layout"]),
        (np.zeros((0, 3, 12, 12), np.float32), ["must not be empty", "[0, 3, 12, 12]"]),
        (np.zeros((2, 5, 12, 12), int), ["floating-point in 0..1 or uint8 or bool; got int64"]),
        (np.zeros((2, 1, 1, 12, 12), np.float32), ["sequences must have >= 2 frames", "got 1"]),
        (np.zeros((2, 5, 16, 20), np.float32), ["frames of 12 x 12; got 16 x 20"]),
        (np.zeros((2, 3, 3, 12, 12), np.float32), ["frames of 1 channels; got 3"]),
    ],
)
def test_bad_frames_are_refused(tmp_path, run, refused, array, says):
    np.save(tmp_path / "bad.npy", array)
    output = refused("evaluate", run, "--frames", tmp_path / "bad.npy", says=says)
    assert re.fullmatch(r"(.*bad.npy is read as \[clips, frames, channels, height, width\] = .*\n)?", output)


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_hold_no_frames_are_refused(tmp_path, refused):
    (tmp_path / "text.npz").write_text("no frames")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with open(tmp_path / "pickle.npy", "wb") as file:
        np.save(file, np.array([Intruder(tmp_path / "ran")], object), allow_pickle=True)
    for name, says in (
        ("text.npz", "complete .npy or .npz file"),
        ("two.npz", "one array, or one named 'frames'; got ['a', 'b']"),
        ("pickle.npy", "without pickled objects"),
        (".", "got a folder"),
    ):
        refused("evaluate", "copy-last", "--frames", tmp_path / name, says=[tmp_path / name, says])
    assert not (tmp_path / "ran").exists()


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


def test_the_world_of_other_frames_is_not_judged(run, refused):
    says = ["frames of 12 x 12; got 30 x 30"]
    refused("evaluate", run, "--sequences", 2, "--rollout-steps", 3, says=says)


def test_an_interrupted_evaluation_ends_with_130(frames, refused, monkeypatch):
    def interrupt(name, device):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("torchrsm.cli.evaluate.load", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        refused("evaluate", "copy-last", "--frames", frames[1], says=["interrupted"], code=130)
    finally:
        signal.signal(signal.SIGINT, before)


# --- Worlds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_any_size(tmp_path):
    """A folder with a model of frames of any size, and the run that says what it learned from."""
    layer = LayerConfig(groups=5, active_groups=2, output_bias="channel")
    model = ModelConfig(layers=(layer,))
    VideoPredictor(model).save(tmp_path / "model")
    run = RunConfig(
        name="tiny",
        model=model,
        learning={},
        stream=VariedBallsConfig(radius=(1.0, 1.5), resolutions=(12, 16)),
        training={"steps": 1},
    )
    (tmp_path / "model" / RUN_FILE).write_bytes(save_run_config(run))
    return tmp_path / "model"


def test_a_world_is_chosen_by_its_settings(tmp_path, of_any_size, capsys):
    world = ["--world.balls", "2", "--world.radius", "0.8", "--world.resolution", "14", "--world.sequence-length", "60"]
    arguments = ["evaluate", of_any_size, *world, "--world.speed", "2", "--sequences", "2", "--split", "validation"]
    arguments += ["--rollout-steps", "3", "--json", tmp_path / "s.json"]
    assert main([str(argument) for argument in arguments]) == 0
    scores = NextFrameScores.model_validate_json((tmp_path / "s.json").read_text())
    settings = BouncingBallsConfig(balls=2, radius=0.8, resolution=14, speed=2.0, sequence_length=60)
    frames = bouncing_ball_frames("validation", 2, settings)
    assert scores.frames_sha256 == frames_sha256(frames)
    assert len(scores.by_frame) == 60
    geometry = scores.rollout.physics.geometry
    assert (geometry.balls, geometry.side) == (2, 14)
    assert geometry.radius == pytest.approx(0.8 * 1.4)
    assert geometry.energy == pytest.approx(1.4**2)
    assert scores.rollout.simulator is None
    lines = capsys.readouterr().out.splitlines()
    assert "a world that the model has not seen: radius 0.8 (learned from 1 to 1.5)" in lines


def test_a_world_that_was_learned_from_needs_no_word(of_any_size, capsys):
    for arguments, said in (
        (["--world.resolution", "16"], None),
        ([], "resolution 30 (learned from 12 to 16)"),
        (["--world.resolution", "12", "--world.speed", "3"], "speed 3 (learned from 0.5 to 2)"),
    ):
        assert main(["evaluate", str(of_any_size), "--sequences", "2", *arguments]) == 0
        output = capsys.readouterr().out
        if said is None:
            assert "not seen" not in output
        else:
            assert f"a world that the model has not seen: {said}\n" in output


def test_a_model_of_unknown_training_is_not_judged(capsys):
    assert main(["evaluate", "copy-last", "--sequences", "2", "--world.radius", "0.8"]) == 0
    assert "not seen" not in capsys.readouterr().out


def test_the_published_world_in_pixels_is_the_one_that_physics_knows():
    assert world_geometry(BouncingBallsConfig()) == WORLD


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--world.balls", 0), ["world: balls must be greater than 0; got 0"]),
        (("--world.speed", 11), ["world: speed must be less than or equal to 10; got 11.0"]),
        (("--world.balls", 20), ["the balls do not fit: 20 balls of radius 1.2"]),
        (
            ("--world.sequence-length", 40, "--rollout-steps", 3),
            ["world.sequence_length must be > prime = 50", "got 40"],
        ),
    ],
)
def test_worlds_that_cannot_be_are_refused(refused, arguments, says):
    refused("evaluate", "copy-last", *arguments, says=says)


def test_a_world_goes_with_fixed_sequences_of_balls(frames, refused, tmp_path):
    refused("evaluate", "copy-last", "--frames", frames[1], "--world.balls", 2, says=["cannot go with frames"])
    run = preset("copy-last").replace(stream=MovingMNISTConfig(resolution=28))
    load("copy-last").save(tmp_path / "digits")
    (tmp_path / "digits" / RUN_FILE).write_bytes(save_run_config(run))
    refused(
        "evaluate", tmp_path / "digits", "--world.balls", 2, says=["world is for models of bouncing balls", "digits"]
    )


@pytest.fixture
def drawing(tmp_path):
    """The folder of a model that can draw."""
    small_model().save(tmp_path / "drawing")
    return tmp_path / "drawing"


def test_draws_are_scored_as_draws_and_dreamt(drawing, tmp_path, capsys):
    json_file = tmp_path / "scores.json"
    options = ["--sequences", "2", "--samples", "3", "--rollout-steps", "3", "--json", str(json_file)]
    assert main(["evaluate", str(drawing), *options]) == 0
    said = capsys.readouterr().out
    assert "3 draws of each frame that may come" in said
    assert "squared error of the mean of 3" in said
    scores = NextFrameScores.model_validate_json(json_file.read_text())
    model, frames = load(drawing), bouncing_ball_frames("test", 2)
    assert scores.samples == evaluate_samples(model, frames, 3)
    assert scores.rollout.physics == evaluate_rollouts(Sampled(model), frames, steps=3).physics


def test_a_dream_by_draws(drawing, tmp_path):
    dreams = {}
    for name, flags in (
        ("plain", []),
        ("one", ["--sample", "1"]),
        ("again", ["--sample", "1"]),
        ("two", ["--sample", "2"]),
        ("winners", ["--sample", "1", "--temperature", "0.5"]),
    ):
        file = tmp_path / f"{name}.npz"
        assert main(["dream", str(drawing), "--out", str(file), "--prime", "4", "--steps", "3", *flags]) == 0
        dreams[name] = np.load(file)["frames"]
    assert np.array_equal(dreams["one"], dreams["again"])
    assert not np.array_equal(dreams["one"], dreams["two"])
    assert not np.array_equal(dreams["one"], dreams["plain"])
    assert not np.array_equal(dreams["winners"], dreams["plain"])


def test_what_cannot_draw_is_refused(refused, tmp_path, drawing):
    refused("evaluate", "copy-last", "--samples", 4, says=["samples must be 0 for a model", "got 4"])
    refused("evaluate", drawing, "--samples", 1, says=["samples must be 0, or 2 or more", "got 1"])
    dream = ("dream", "--out", tmp_path / "d.npz")
    refused(*dream, "copy-last", "--sample", 1, says=["sample needs a model of RSM; got copy-last"])
    refused(*dream, "balls", "--sample", 1, says=["sample needs a model whose rectifier takes noise, or temperature"])
    refused(*dream, drawing, "--temperature", 0.5, says=["temperature is that of draws and needs sample; got 0.5"])


@pytest.mark.parametrize("world", ["kicked-balls", "two-way-balls"])
def test_a_model_of_an_uncertain_world_is_scored_on_that_world(tmp_path, capsys, refused, world):
    flags = ["--steps", "2", "--batch-size", "4", "--system", "balls-compact"]
    small = ["--stream.resolution", "12", "--stream.sequence-length", "60", "--model.rectifier.width", "4"]
    assert main(["train", world, "--out", str(tmp_path / "run"), *flags, *small]) == 0
    options = ["--sequences", "2", "--rollout-steps", "3", "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(tmp_path / "run"), *options]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    sequences = {"kicked-balls": kicked_ball_sequences, "two-way-balls": two_way_ball_sequences}[world]
    frames = sequences(2, seed=TEST_SEED, resolution=12, sequence_length=60).frames
    assert scores["frames_sha256"] == frames_sha256(frames)
    balls = {"kicked-balls": 3, "two-way-balls": 1}[world]
    assert scores["rollout"]["physics"]["geometry"]["balls"] == balls
    assert "has not seen" not in capsys.readouterr().out
    refused("evaluate", tmp_path / "run", "--world.balls", 2, says=["world is for models of bouncing balls", world])


def test_a_model_is_scored_on_the_truth_of_what_is_disturbed(tmp_path):
    json_file, frames = tmp_path / "scores.json", bouncing_ball_frames("test", 2)
    cases = {
        "--disturbance.noise 0.2": ({"noise": (0.2,)}, expected_noisy(frames, 0.2)),
        "--disturbance.blackout 3 --disturbance.blackout-from 5": ({"blackout": (3,), "blackout_from": 5}, frames),
        "--disturbance.bar 6": ({"bar": (6,)}, frames),
    }
    for flags, (settings, truth) in cases.items():
        options = ["--sequences", "2", "--json", str(json_file), "--strip", str(tmp_path / "strip.png")]
        assert main(["evaluate", "constant-velocity", *options, *flags.split()]) == 0
        scores = json.loads(json_file.read_text())
        shown = disturbed_sequences(frames, DisturbanceConfig(**settings))
        expected = Evaluator(truth, shown=shown).evaluate(load("constant-velocity"))
        assert scores["frame_squared_error"] == json.loads(expected.model_dump_json())["frame_squared_error"]
        assert scores["frames_sha256"] == frames_sha256(truth)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--disturbance.noise", 0.1, 0.2), ["disturbance.noise must be one value", "(0.1, 0.2)"]),
        (("--disturbance.bar", 30), ["bar must be narrower than the frames, which have 30 columns; got 30"]),
        (("--disturbance.bar", 3, "--rollout-steps", 5), ["disturbance must disturb nothing where dreams"]),
    ],
)
def test_disturbances_that_cannot_be_scored_are_refused(refused, arguments, says):
    refused("evaluate", "copy-last", *arguments, says=says)
