"""Nothing that a command reads is overwritten by it, and a full disk leaves the former files."""

import contextlib
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_films import film, pictures

from torchrsm.cli import main
from torchrsm.cli.outputs import check_output_folder, check_outputs


@pytest.fixture
def clip(tmp_path):
    return film(tmp_path / "clip.mp4", pictures(12))


@pytest.fixture
def array(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((1, 5, 30, 30), np.float32))
    return tmp_path / "array.npy"


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def link(way, source):
    """Give another path of a file."""
    other = source.with_name(f"other{source.suffix}")
    if way == "same":
        return source
    if way == "hard link":
        os.link(source, other)
    if way == "symbolic link":
        other.symlink_to(source)
    if way == "through a folder":
        (source.parent / "link").symlink_to(source.parent, target_is_directory=True)
        return source.parent / "link" / source.name
    if way == "relative":
        return Path(os.path.relpath(source))
    if way == "dotted":
        return source.parent / "." / ".." / source.parent.name / source.name
    return other


WAYS = ["same", "hard link", "symbolic link", "through a folder", "relative", "dotted"]


@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_is_the_input_is_refused(tmp_path, clip, refused, way):
    target = link(way, clip)
    before = content(tmp_path)
    refused("predict", "copy-last", clip, "--out", target, says=["out must not be a file that is read", target])
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "copy-last", "clip.mp4", "--out", "film.mp4", "--json", "clip.mp4"),
        ("dream", "copy-last", "--prime-from", "clip.mp4", "--out", "clip.mp4"),
        ("dream", "copy-last", "--prime-from", "clip.mp4", "--out", "film.gif", "--json", "clip.mp4"),
        ("dream", "copy-last", "--frames", "array.npy", "--out", "dream.npz", "--json", "array.npy"),
        ("evaluate", "copy-last", "--frames", "array.npy", "--json", "array.npy"),
        ("evaluate", "copy-last", "--frames", "array.npy", "--strip", "array.png"),
        ("predict", "copy-last", "pictures", "--out", "pictures/film.mp4"),
        ("predict", "copy-last", "pictures", "--out", "film.mp4", "--json", "pictures/errors.json"),
        ("dream", "copy-last", "--prime-from", "pictures", "--out", "pictures/dream.png"),
        ("evaluate", "run", "--json", "run/run.json"),
        ("evaluate", "run", "--json", "run/checkpoint.safetensors"),
        ("predict", "run", "clip.mp4", "--out", "film.mp4", "--json", "run/model.safetensors"),
        ("predict", "copy-last", "clip.mp4", "--out", "film.mp4", "--json", "film.mp4"),
        ("dream", "copy-last", "--out", "d.npz", "--json", "./d.npz"),
        ("evaluate", "copy-last", "--rollout-steps", "5", "--strip", "a.png", "--plot", "a.png"),
        ("train", "video", "pictures", "--out", "pictures"),
        ("train", "video", "clip.mp4", "--out", "clip.mp4"),
        ("train", "balls", "--stack-from", "run", "--out", "run"),
    ],
)
def test_no_command_writes_over_what_it_reads(tmp_path, run, clip, array, refused, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("L", (30, 30), number).save(f"pictures/{number}.png")
    os.link("array.npy", "array.png")
    before = content(tmp_path)
    refused(*arguments, says=["must"])
    assert content(tmp_path) == before


def test_a_link_into_a_folder_that_is_read_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    os.link(tmp_path / "pictures" / "a.png", tmp_path / "out.png")
    with pytest.raises(ValueError, match="out must not be a file that is read"):
        check_outputs({"out": tmp_path / "out.png"}, [tmp_path / "pictures"])
    (tmp_path / "other.png").symlink_to(tmp_path / "pictures" / "new.png")
    with pytest.raises(ValueError, match="out must not be in a folder that is read"):
        check_outputs({"out": tmp_path / "other.png"}, [tmp_path / "pictures"])


def test_scores_may_lie_in_the_folder_of_the_run(run):
    check_outputs({"json": run / "scores.json", "strip": None}, [str(run), None, "no-such-file"])


def test_a_shipped_model_is_read_by_its_name(refused):
    from torchrsm.storage.shipped import MODELS_FOLDER

    before = content(MODELS_FOLDER)
    refused("evaluate", "balls", "--json", MODELS_FOLDER / "balls" / "config.json", says=["a file of the model"])
    assert content(MODELS_FOLDER) == before


def test_a_device_is_not_replaced_by_a_file(refused):
    refused("evaluate", "copy-last", "--json", "/dev/null", says=["cannot write /dev/null: it is no plain file"])
    assert not Path("/dev/null").is_file()


def test_an_output_folder_may_hold_the_film(tmp_path, clip):
    check_output_folder(tmp_path, [clip, None])
    with pytest.raises(ValueError, match="out must not be what is read"):
        check_output_folder(tmp_path / ".." / tmp_path.name, [tmp_path])


# A full disk


@contextlib.contextmanager
def room_for(size):
    """Let no file become larger than ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 60])
@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (("predict", "copy-last", "clip.mp4", "--out", "film.mp4"), "film.mp4"),
        (("predict", "copy-last", "array.npy", "--out", "film.mp4", "--json", "e.json"), "film.mp4"),
        (("dream", "copy-last", "--prime-from", "clip.mp4", "--prime", 4, "--steps", 3, "--out", "d.mp4"), "d.mp4"),
        (("dream", "copy-last", "--frames", "array.npy", "--prime", 4, "--steps", 3, "--out", "d.gif"), "d.gif"),
        (("dream", "copy-last", "--frames", "array.npy", "--prime", 4, "--steps", 3, "--out", "d.png"), "d.png"),
        (("dream", "copy-last", "--frames", "array.npy", "--prime", 4, "--steps", 3, "--out", "d.npz"), "d.npz"),
        (("evaluate", "copy-last", "--frames", "array.npy", "--json", "s.json"), "s.json"),
        (("evaluate", "copy-last", "--frames", "array.npy", "--strip", "s.png"), "s.png"),
        (("evaluate", "copy-last", "--sequences", 2, "--rollout-steps", 2, "--plot", "p.png"), "p.png"),
    ],
)
def test_a_full_disk_is_one_line_and_keeps_the_former_file(
    tmp_path, clip, array, refused, monkeypatch, room, arguments, target
):
    monkeypatch.chdir(tmp_path)
    Path(target).write_text("former")
    before = content(tmp_path)
    with room_for(room):
        refused(*arguments, says=[f"cannot write {target}: File too large"])
    assert content(tmp_path) == before


def test_a_full_disk_leaves_no_run(tmp_path, clip, refused):
    with room_for(100):
        refused("train", "tiny", "--out", tmp_path / "run", "--steps", 1, says=["cannot write", "File too large"])
    assert list(tmp_path.iterdir()) == [clip]


def test_numbers_are_written_with_the_place_of_each(tmp_path, clip):
    assert (
        main(["predict", "copy-last", str(clip), "--out", str(tmp_path / "f.mp4"), "--json", str(tmp_path / "e")]) == 0
    )
    said = json.loads((tmp_path / "e").read_text())
    assert said["clips"] == [{"name": str(clip), "frames": 12}]
    assert said["numbers"] == list(range(12))
