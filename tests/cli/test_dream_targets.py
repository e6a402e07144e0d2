import av
import numpy as np
import pytest
from PIL import Image

from torchrsm.cli import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "no/dream.gif"), ["cannot write no/dream.gif: there is no folder no"]),
        (("--out", "folder.npz"), ["cannot write folder.npz: it is a folder"]),
        (("--out", "dream"), ["out must end in .mp4, .gif, .png, .npz, .txt; got 'dream'"]),
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
