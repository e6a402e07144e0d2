"""Films as a model reads them: every clip, the right part of the picture, whatever the name."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_films import damaged, film, pictures, textured

from torchrsm import VideoConfig, load
from torchrsm.cli import main
from torchrsm.cli.reading import FrameSize, clips_for, middle, size_for
from torchrsm.rsm import kernels
from torchrsm.runs.settings import load_run_config


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    kernels.set_threads(1)


def commanded(*arguments):
    return main([str(argument) for argument in arguments])


def learned(path, folder, *settings):
    """A baseline, or another system, that has learned a little from a film."""
    common = ["--steps", 1, "--threads", 1, "--batch-size", 1]
    assert commanded("train", "video", path, "--out", folder, *common, *settings) == 0
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two films of one size in a folder, of 6 and 9 frames."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "b2.mp4", pictures(6))
    film(folder / "b10.mp4", pictures(9))
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A film of 9:16, as cameras make them."""
    return film(tmp_path_factory.mktemp("wide") / "wide.mp4", pictures(12, 90, 160))


# Several clips


def test_all_films_of_a_folder_are_predicted_one_after_the_other(films, tmp_path, capsys):
    out, numbers = tmp_path / "out.mp4", tmp_path / "numbers.json"
    assert commanded("predict", "copy-last", films, "--out", out, "--json", numbers) == 0
    said = json.loads(numbers.read_text())
    assert said["clips"] == [
        {"name": str(films / "b2.mp4"), "frames": 6},
        {"name": str(films / "b10.mp4"), "frames": 9},
    ]
    assert said["numbers"] == [*range(6), *range(9)]
    assert [place for place, error in enumerate(said["errors"]) if error is None] == [0, 6]
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 15
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{films} is read as [clips, frames, channels, height, width] = [2, 6..9, 1, 64, 85]"
    assert lines[1].startswith(f"15 frames of {films}: squared error ")


def test_one_clip_can_be_chosen(films, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    arguments = ("predict", "copy-last", films, "--out", tmp_path / "o.mp4", "--json", numbers)
    assert commanded(*arguments, "--clip", 2, "--frames", 4) == 0
    assert json.loads(numbers.read_text())["clips"] == [{"name": str(films / "b10.mp4"), "frames": 4}]
    assert f"; clip 2 is {films / 'b10.mp4'}\n" in capsys.readouterr().out
    assert commanded(*arguments, "--clip", 3) == 2
    assert f"clip must be <= 2, the clips of {films}; got 3" in capsys.readouterr().err


def test_clips_of_unequal_shapes_are_not_put_in_one_film(tmp_path, refused):
    (tmp_path / "films").mkdir()
    film(tmp_path / "films" / "a.mp4", pictures(3, 48, 64))
    film(tmp_path / "films" / "b.mp4", pictures(3, 64, 48))
    arguments = ("predict", "copy-last", tmp_path / "films", "--out", tmp_path / "o.mp4")
    refused(*arguments, says=["64 x 85 and 64 x 48 cannot go together in one film; choose one of them with --clip"])
    assert commanded(*arguments, "--clip", 2) == 0


def test_watch_goes_on_with_the_next_film_and_names_it(films, capsys):
    assert commanded("watch", films, "--height", 16) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == [*range(6), *range(9)]
    assert [line["clip"] for line in lines] == [str(films / "b2.mp4")] * 6 + [str(films / "b10.mp4")] * 9
    assert [place for place, line in enumerate(lines) if line["error"] is None] == [0, 6]


@pytest.mark.parametrize("frames", [1, 2])
def test_what_is_too_short_is_refused(tmp_path, refused, frames):
    path = film(tmp_path / "short.mp4", pictures(frames))
    refused("train", "video", path, "--out", tmp_path / "run", "--steps", 1, says=["3 frames in a row or more"])
    if frames == 1:
        refused("predict", "copy-last", path, "--out", tmp_path / "o.mp4", says=["2 frames or more to predict one"])
    assert [one.name for one in tmp_path.iterdir()] == ["short.mp4"]


# Sizes


def test_a_system_reads_the_nearest_size_that_it_can(wide, tmp_path, capsys):
    folder = learned(wide, tmp_path / "run", "--system", "simvp", "--stream.height", 48)
    output = capsys.readouterr().out
    assert f"{wide} is read as [clips, frames, channels, height, width] = [1, 12, 1, 48, 84]\n" in output
    assert "frames are read as 48 x 84 (height x width): simvp cannot read 48 x 85\n" in output
    stream = load_run_config(folder).stream
    assert (stream.height, stream.width) == (48, 84)
    config = load(folder).config
    assert (config.height, config.width) == (48, 84)
    assert commanded("evaluate", folder, "--split", "validation") == 2  # too short a film, but the right size
    assert "frames in a row of each clip" in capsys.readouterr().err
    assert commanded("predict", folder, wide, "--out", tmp_path / "o.mp4") == 0
    assert (
        f"{wide} is read as [clips, frames, channels, height, width] = [1, 12, 1, 48, 84]\n" in capsys.readouterr().out
    )


def test_a_size_that_was_asked_for_is_not_changed(wide, tmp_path, refused):
    size = ("--stream.height", 48, "--stream.width", 85)
    says = ["simvp cannot read frames of 48 x 85 (height x width); the nearest that it can read are 48 x 84"]
    refused("train", "video", wide, "--out", tmp_path / "run", "--system", "simvp", *size, says=says)
    assert not (tmp_path / "run").exists()


def test_the_middle_of_another_shape_is_read(wide, films, tmp_path, capsys):
    folder = learned(wide, tmp_path / "run", "--system", "convlstm", "--stream.height", 20)
    capsys.readouterr()
    assert commanded("predict", folder, films / "b2.mp4", "--out", tmp_path / "o.mp4") == 0
    output = capsys.readouterr().out
    assert "[1, 6, 1, 20, 36], the middle 36 x 64 of b2.mp4\n" in output


@pytest.mark.parametrize(
    ("picture", "shape", "part"),
    [
        ((90, 160), (48, 84), None),  # 1.75 and 1.78
        ((48, 64), (20, 36), (6, 0, 36, 64)),
        ((90, 160), (64, 64), (0, 35, 90, 90)),
        ((160, 90), (64, 64), (35, 0, 90, 90)),
        ((1000, 1), (30, 30), (499, 0, 1, 1)),
    ],
)
def test_the_middle_has_the_other_ratio_and_is_as_large_as_can_be(picture, shape, part):
    assert middle(picture, shape) == part


def test_pictures_are_not_squeezed(tmp_path):
    canvas = np.zeros((6, 40, 80, 3), np.uint8)
    canvas[:, :, 20:60] = 255  # the middle square is white
    path = film(tmp_path / "f.mp4", canvas)
    ((_, reader),) = clips_for(FrameSize(1, 16, 16), path).readers
    assert all(frame.min() > 250 for frame in reader)


def test_films_of_a_folder_are_cut_each_as_it_needs(tmp_path):
    film(tmp_path / "a.mp4", pictures(3, 48, 64))
    film(tmp_path / "b.mp4", pictures(3, 64, 48))
    clips = clips_for(FrameSize(1, 24, 24), tmp_path)
    assert [reader.frame_shape for _, reader in clips.readers] == [(1, 24, 24)] * 2
    assert clips.description.endswith("the middle 48 x 48 of a.mp4, the middle 48 x 48 of b.mp4")


def test_how_a_model_reads_is_that_of_its_run_or_its_weights(run):
    assert size_for(load("copy-last"), "copy-last") == FrameSize(1, 64, None)
    assert size_for(load("balls"), "balls") == FrameSize(1, 64, None)
    assert size_for(load(run), str(run)) == FrameSize(1, 12, 12)


def test_a_dream_reads_no_more_than_it_needs(tmp_path, capsys):
    path = film(tmp_path / "film.ts", textured(60), coding={"g": "1"})
    path.write_bytes(path.read_bytes()[: 3 * path.stat().st_size // 4])  # its end is missing
    out = tmp_path / "d.npz"
    assert commanded("dream", "copy-last", "--prime-from", path, "--prime", 4, "--steps", 3, "--out", out) == 0
    with np.load(out) as arrays:
        assert arrays["prime"].shape[1] == 4
        assert arrays["truth"].shape[1] == 3
    assert capsys.readouterr().err == ""
    assert commanded("predict", "copy-last", path, "--out", tmp_path / "o.mp4") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 frame is damaged or missing" in line


@pytest.mark.parametrize("command", ["predict", "watch"])
def test_frames_after_a_gap_keep_their_numbers_and_are_not_compared_with_those_before(tmp_path, capsys, command):
    path = damaged(film(tmp_path / "a.mov", textured(60), codec="png", pixels="rgb24", coding={"g": "1"}), 20, 29)
    numbers = tmp_path / "numbers.json"
    if command == "predict":
        assert commanded("predict", "copy-last", path, "--out", tmp_path / "o.mp4", "--json", numbers) == 0
        said = json.loads(numbers.read_text())
        found = [*zip(said["numbers"], said["errors"], said["copy_errors"], strict=True)]
    else:
        assert commanded("watch", path, "--height", 8) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["seconds"] for line in lines] == [round(line["frame"] / 30, 3) for line in lines]
        found = [(line["frame"], line["error"], line["copy_error"]) for line in lines]
    assert [number for number, *_ in found] == [*range(20), *range(30, 60)]
    assert [number for number, *errors in found if errors == [None, None]] == [0, 30]


# Names


@pytest.mark.parametrize("name", ["--out", "no extension", "two\nlines.mp4", "naïve ±.mp4"])
def test_any_name_can_be_read(tmp_path, name, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "plain.mp4", pictures(4, 16, 20))
    Path("plain.mp4").rename(name)
    assert main(["predict", "copy-last", "--out", "o.mp4", "--json", "e.json", "--", name]) == 0
    assert main(["predict", "copy-last", f"./{name}", "--out", "o.mp4"]) == 0
    assert Path(json.loads(Path("e.json").read_text())["video"]) == Path(name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["-x.mp4", "caf\udce9.mp4"])
def test_odd_names_are_trained_on_evaluated_and_predicted(tmp_path, name, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "plain.mp4", pictures(40, 16, 20))
    Path("plain.mp4").rename(name)
    small = ["--steps", "1", "--threads", "1", "--batch-size", "1", "--stream.height", "16"]
    assert main(["train", "video", "--out", "run", *small, "--system", "balls-1l", "--", name]) == 0
    assert load_run_config("run").stream.path == str(tmp_path / name)
    assert main(["evaluate", "run"]) == 0
    assert main(["predict", "run", "--out", "o.mp4", "--frames", "3", "--", name]) == 0
    assert main(["watch", "--frames", "2", "--height", "16", "--", name]) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_film_is_found_from_any_folder_and_after_a_move(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    film(tmp_path / "here" / "clip.mp4", pictures(40, 16, 20))
    learned("clip.mp4", "run", "--stream.height", 16, "--system", "balls-1l")
    monkeypatch.chdir("/")
    assert commanded("evaluate", tmp_path / "here" / "run") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert commanded("evaluate", tmp_path / "there" / "run") == 0
    assert f"{tmp_path / 'there' / 'clip.mp4'} is read as " in capsys.readouterr().out
    assert commanded("train", "--resume", "--out", tmp_path / "there" / "run", "--steps", 2) == 0
    os.remove(tmp_path / "there" / "clip.mp4")
    assert commanded("evaluate", tmp_path / "there" / "run") == 2
    assert f"{tmp_path / 'here' / 'clip.mp4'} must be an existing file" in capsys.readouterr().err


def test_a_path_is_a_path_in_python():
    assert VideoConfig(path=Path("films/a.mp4")).path == "films/a.mp4"
    assert VideoConfig.model_validate_json('{"path": "file:///a%FF.mp4"}').path == "/a\udcff.mp4"


# Arrays


@pytest.mark.parametrize("command", ["evaluate", "dream", "predict", "watch"])
def test_the_layout_of_an_array_can_be_said(tmp_path, command, capsys):
    np.save(tmp_path / "a.npy", np.zeros((20, 3, 30, 30), np.float32))  # time first: 20 frames of 3 clips
    path, out = tmp_path / "a.npy", tmp_path / "o.mp4"
    arguments = {
        "evaluate": ["copy-last", "--frames", path],
        "dream": ["copy-last", "--frames", path, "--prime", 5, "--steps", 2, "--out", out],
        "predict": ["copy-last", path, "--out", out],
        "watch": [path, "--height", 16, "--frames", 3],
    }[command]
    assert commanded(command, *arguments) == 2
    assert "--layout" in capsys.readouterr().err
    assert commanded(command, *arguments, "--layout", "tnhw") == 0
    said = capsys.readouterr()
    assert f"{path} is read as [clips, frames, channels, height, width] = [3, 20, 1, " in said.out + said.err


def test_a_folder_of_pictures_is_one_clip(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("L", (8, 6), 40 * number).save(tmp_path / "pictures" / f"{number}.png")
    assert commanded("predict", "copy-last", tmp_path / "pictures", "--out", tmp_path / "o.mp4") == 0
    output = capsys.readouterr().out
    assert "= [1, 3, 1, 64, 85]" in output
    error = float(torch.tensor((40 / 255) ** 2 * 64 * 85))
    assert f"squared error {error:.4g} a frame" in output
