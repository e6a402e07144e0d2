"""The commands for one's own video, from the command line as a user types them."""

import json

import numpy as np
import pytest
from live_films import Pipe, transport_stream
from PIL import Image

from torchrsm import load
from torchrsm.cli import main
from torchrsm.cli.predict import in_words
from torchrsm.media.films import write_mp4
from torchrsm.rsm import kernels
from torchrsm.runs.settings import load_run_config
from torchrsm.streams import NumberedFrame, VideoReader
from torchrsm.streams.settings import MovingMNISTConfig, VideoConfig


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    kernels.set_threads(1)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Forty frames of a picture that moves to the right, 21 x 34 pixels, a size that nothing divides."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    picture = np.random.default_rng(0).integers(0, 255, (22, 34, 3), dtype=np.uint8)
    with path.open("wb") as file:
        write_mp4((np.roll(picture, time, axis=1) for time in range(40)), file, 10)
    return path


@pytest.fixture(scope="module")
def run(film, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = ["--steps", "6", "--threads", "1", "--stream.height", "21", "--stream.width", "33", "--batch-size", "2"]
    assert main(["train", "video", str(film), "--out", str(folder), *settings]) == 0
    kernels.set_threads(1)
    return folder


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_on_a_video_knows_where_it_learned(run, film):
    config = load_run_config(run)
    assert config.stream == VideoConfig(path=str(film), height=21, width=33)
    assert load(run).config.channels == 1


@pytest.mark.parametrize("system", ["balls-1l", "convlstm-wide"])
def test_other_systems_and_colours(film, tmp_path, system):
    arguments = [
        "--system",
        system,
        "--steps",
        "2",
        "--threads",
        "1",
        "--stream.channels",
        "3",
        "--stream.height",
        "24",
    ]
    arguments += ["--stream.width", "36", "--batch-size", "2"]
    assert main(["train", "video", str(film), "--out", str(tmp_path / "run"), *arguments]) == 0
    assert load(tmp_path / "run").config.channels == 3
    assert (
        main(["predict", str(tmp_path / "run"), str(film), "--out", str(tmp_path / "film.mp4"), "--frames", "4"]) == 0
    )
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["sequences"] == 1
    assert len(scores["by_frame"]) == 4  # the last tenth of forty


def test_a_resumed_run_on_a_video(film, tmp_path, capsys):
    arguments = ["train", "video", str(film), "--out", str(tmp_path / "run"), "--threads", "1", "--batch-size", "2"]
    assert main([*arguments, "--steps", "2"]) == 0
    assert main([*arguments, "--steps", "2", "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out


def test_digits(tmp_path):
    arguments = ["--steps", "2", "--threads", "1", "--stream.resolution", "32", "--batch-size", "2"]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *arguments]) == 0
    assert load_run_config(tmp_path / "run").stream == MovingMNISTConfig(resolution=32)
    assert main(["evaluate", str(tmp_path / "run"), "--sequences", "3", "--split", "validation"]) == 0


def test_predict_makes_a_film_and_its_errors(run, film, tmp_path, capsys):
    out, numbers = tmp_path / "out.mp4", tmp_path / "errors.json"
    assert main(["predict", str(run), str(film), "--out", str(out), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "40 frames" in said
    errors = json.loads(numbers.read_text())
    assert len(errors["errors"]) == len(errors["copy_errors"]) == 40
    assert errors["errors"][0] is None
    frames = np.stack(list(VideoReader(film, height=21, width=33))).astype(float) / 255
    expected = ((frames[1:] - frames[:-1]) ** 2).sum((1, 2, 3))
    assert errors["copy_errors"][1:] == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(list(VideoReader(out))) == 40


def test_a_dream_is_primed_from_a_film(run, film, tmp_path):
    out = tmp_path / "dream.npz"
    arguments = ["--prime-from", str(film), "--prime", "20", "--steps", "30", "--out", str(out)]
    assert main(["dream", str(run), *arguments]) == 0
    with np.load(out) as arrays:
        assert arrays["prime"].shape == (1, 20, 1, 21, 33)
        assert arrays["frames"].shape == (1, 30, 1, 21, 33)
        assert arrays["truth"].shape == (1, 20, 1, 21, 33)  # as far as it is known


def test_a_model_of_balls_reads_a_film_too(film, tmp_path):
    assert main(["predict", "balls", str(film), "--out", str(tmp_path / "film.mp4"), "--frames", "3"]) == 0


def test_watch_prints_a_line_for_each_frame(film, capsys):
    assert main(["watch", str(film), "--height", "16", "--frames", "25", "--threshold", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(25))
    assert set(lines[0]) == {"frame", "seconds", "error", "copy_error", "surprise", "anomaly"}
    assert lines[0]["error"] is None
    assert all(line["anomaly"] is (line["surprise"] >= 3) for line in lines)


def test_bad_input_is_one_clear_line(run, film, tmp_path, capsys):
    text = tmp_path / "notes.mp4"
    text.write_text("no film")
    assert "train video needs a file or folder first; got none" in refused(capsys, "train", "video")
    assert "got --out" in refused(capsys, "train", "video", "--out", "x")
    assert "nothing at that path" in refused(capsys, "train", "video", tmp_path / "no.mp4", "--out", tmp_path / "r")
    assert "complete video file" in refused(capsys, "train", "video", text, "--out", tmp_path / "r")
    assert "complete video file" in refused(capsys, "watch", text)
    assert "must end in .mp4" in refused(capsys, "predict", run, film, "--out", tmp_path / "a.avi")
    assert "there is no folder" in refused(capsys, "predict", run, film, "--out", tmp_path / "no" / "a.mp4")
    assert "preset must be one of" in refused(
        capsys, "train", "video", film, "--out", tmp_path / "r", "--system", "gpt"
    )
    assert "cannot go together" in refused(
        capsys, "dream", run, "--out", tmp_path / "d.mp4", "--prime-from", film, "--frames", film
    )
    assert "rollout_steps must be 0 for a model of video" in refused(capsys, "evaluate", run, "--rollout-steps", 5)
    assert "prime must be <=" in refused(
        capsys, "dream", run, "--out", tmp_path / "d.mp4", "--prime-from", film, "--prime", 41
    )
    assert not (tmp_path / "r").exists()


def test_a_camera_that_is_not_there(capsys):
    assert "/dev/video63" in refused(capsys, "watch", "63")


def test_pictures_that_do_not_tell_their_white_are_read_as_the_flag_says(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        levels = np.full((16, 16), 1000 + 500 * number, np.uint16)
        Image.fromarray(levels).save(folder / f"{number}.png")
    arguments = ["predict", "copy-last", str(folder), "--out", str(tmp_path / "film.mp4")]
    assert main(arguments) == 2
    assert "white" in capsys.readouterr().err
    assert main([*arguments, "--white", "4095", "--json", str(tmp_path / "errors.json")]) == 0
    (first, *others) = json.loads((tmp_path / "errors.json").read_text())["copy_errors"]
    assert first is None
    assert others == pytest.approx([64 * 64 * (500 / 4095) ** 2] * 3, rel=0.1)  # in steps of 1 / 255
    assert main(["watch", str(folder), "--white", "4095"]) == 0
    assert main(["dream", "copy-last", "--out", str(tmp_path / "x.npz"), "--white", "4095"]) == 2
    assert "white is that of pictures to prime on" in capsys.readouterr().err


def test_the_rate_of_a_film_is_for_films(tmp_path, capsys):
    for name in ("x.png", "x.npz"):
        assert main(["dream", "copy-last", "--out", str(tmp_path / name), "--frames-per-second", "10"]) == 2
        assert "frames_per_second is that of a film; got 10 with out" in capsys.readouterr().err


def test_watch_writes_alerts_a_film_of_them_and_what_it_learned(tmp_path, capsys):
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 255, (32, 40), dtype=np.uint8) for _ in range(2))
    film = [np.roll(one if step < 60 else other, step, 1) for step in range(90)]
    np.save(tmp_path / "film.npy", np.stack(film))
    files = {name: tmp_path / name for name in ("alerts.jsonl", "film.mp4", "learned")}
    flags = ["--alerts", files["alerts.jsonl"], "--film", files["film.mp4"], "--out", files["learned"]]
    assert main(["watch", str(tmp_path / "film.npy"), "--height", "16", *map(str, flags)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    alerts = [json.loads(line) for line in files["alerts.jsonl"].read_text().splitlines()]
    assert len(lines) == 90
    assert alerts == [line for line in lines if line["anomaly"]]
    assert 60 in [line["frame"] for line in alerts]
    shown = list(VideoReader(files["film.mp4"], channels=3))
    assert 13 <= len(shown) < 60
    assert len({frame.shape for frame in shown}) == 1
    red = [bool(frame[0, 0, :].mean() > 150 and frame[1, 0, :].mean() < 100) for frame in shown]
    assert sum(red) == len(alerts)
    # What was learned predicts the film that comes next better than a model that begins anew.
    errors = []
    for begin in ([], ["--model", str(files["learned"])]):
        assert main(["watch", str(tmp_path / "film.npy"), "--height", "16", "--frames", "40", *begin]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        errors.append(np.mean([row["error"] for row in rows[1:20]]))
    assert errors[1] < 0.9 * errors[0]


def test_watch_reads_the_standard_input(monkeypatch, capsys):
    class Standard:
        buffer = Pipe(transport_stream(30))

    monkeypatch.setattr("sys.stdin", Standard())
    assert main(["watch", "-", "--height", "16"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(30))
    assert lines[25]["seconds"] == 1.0


def test_watch_keeps_what_it_has_when_it_is_interrupted(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (1, 16, 16), dtype=np.uint8) for _ in range(5)]

    def camera(command, begins_with):
        for number, frame in enumerate(frames):
            yield None, NumberedFrame(number, number / 25, frame, False)
        raise KeyboardInterrupt

    monkeypatch.setattr("torchrsm.cli.watch._frames", camera)
    assert main(["watch", "0", "--out", str(tmp_path / "learned"), "--film", str(tmp_path / "film.mp4")]) == 130
    output, error = capsys.readouterr()
    assert len(output.splitlines()) == 5
    assert "no anomaly, so no film" in error
    assert load(tmp_path / "learned").config.channels == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--film", "film.gif"], "film must end in .mp4; got 'film.gif'"),
        (["--model", "simvp-of-nobody"], "no model folder simvp-of-nobody"),
        (["--model", "copy-last"], "model must be RSM, to learn while it watches; 'copy-last' is a CopyLast"),
        (["--alerts", "no/such/alerts.jsonl"], "no/such"),
    ],
)
def test_watch_refuses_before_it_begins(film, capsys, arguments, message):
    assert message in refused(capsys, "watch", str(film), *arguments)


def test_evaluate_scores_a_model_on_another_film(run, film, tmp_path, capsys):
    assert main(["evaluate", str(run), str(film), "--json", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert "= [1, 40, 1, 21, 33]" in said
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["sequences"], len(scores["by_frame"])) == (1, 40)
    assert (
        main(["predict", str(run), str(film), "--out", str(tmp_path / "p.mp4"), "--json", str(tmp_path / "p.json")])
        == 0
    )
    told = capsys.readouterr().out
    errors = [error for error in json.loads((tmp_path / "p.json").read_text())["errors"] if error is not None]
    assert np.mean(errors) == pytest.approx(scores["frame_squared_error"]["all_predictable"]["mean"], rel=1e-4)
    assert ("better than repeating it, " in told) != ("worse than repeating it, " in told)


def test_clips_of_a_folder_are_cut_to_the_shortest(tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, count in (("a.npy", 12), ("b.npy", 9)):
        np.save(folder / name, np.random.default_rng(0).integers(0, 255, (count, 12, 12), dtype=np.uint8))
    assert main(["evaluate", "copy-last", str(folder / "a.npy"), "--json", str(tmp_path / "s.json")]) == 0
    assert len(json.loads((tmp_path / "s.json").read_text())["by_frame"]) == 12
    capsys.readouterr()
    np.save(tmp_path / "one.npy", np.zeros((1, 12, 12), np.uint8))
    assert main(["evaluate", "copy-last", str(tmp_path / "one.npy")]) == 2
    assert "2 frames or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "copied", "said"),
    [
        (1.0, 4.0, "better than repeating it, 75% less error"),
        (6.0, 4.0, "worse than repeating it, 1.5 times its error"),
        (4.0, 4.0, "worse than repeating it, 1 times its error"),
        (0.1, 0.0, "nothing moves, so there is nothing to predict"),
    ],
)
def test_predict_says_in_words_how_itin_words(error, copied, said):
    assert in_words(error, copied) == said
