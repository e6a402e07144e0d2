import shutil
from pathlib import Path

import numpy as np
import pytest
from warm_kernels import tiny_run

from torchrsm import Trainer, VideoConfig
from torchrsm.runs.film import found, with_absolute_path
from torchrsm.runs.settings import load_run_config
from torchrsm.streams.settings import BouncingBallsConfig


def learning_from(path, steps=1):
    run = tiny_run(steps=steps)
    return run.replace(stream=VideoConfig(path=path, height=12, width=12))


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "films" / "film.npy"
    path.parent.mkdir()
    np.save(path, np.random.default_rng(0).random((1, 20, 12, 12), dtype=np.float32))
    return path


def test_a_run_knows_its_film_by_its_absolute_path(tmp_path, film, monkeypatch):
    monkeypatch.chdir(film.parent)
    trainer = Trainer(learning_from(Path("film.npy")), tmp_path / "run")
    assert trainer.config.stream.path == str(film)
    assert load_run_config(tmp_path / "run").stream.path == str(film)
    monkeypatch.chdir("/")
    assert Trainer(trainer.config, tmp_path / "run", resume=True).stream.frame_shape == (1, 12, 12)


@pytest.mark.parametrize("place", ["run", "."])
def test_a_run_finds_its_film_when_both_were_moved(tmp_path, film, place):
    config = learning_from(str(film), steps=2)
    Trainer(config, tmp_path / "run").run()
    (tmp_path / "moved").mkdir()
    (tmp_path / "run").rename(tmp_path / "moved" / "run")
    film.rename(tmp_path / "moved" / place / "film.npy")
    stream = load_run_config(tmp_path / "moved" / "run").stream
    assert found(stream, tmp_path / "moved" / "run").path == str(tmp_path / "moved" / place / "film.npy")
    longer = config.replace(training=config.training.replace(steps=4))
    assert Trainer(longer, tmp_path / "moved" / "run", resume=True).step == 2


def test_what_is_nowhere_keeps_its_path(tmp_path):
    stream = VideoConfig(path="/no/film.mp4")
    assert found(stream, tmp_path) == stream
    balls = tiny_run()
    assert found(balls.stream, tmp_path) is balls.stream
    assert isinstance(balls.stream, BouncingBallsConfig)
    assert with_absolute_path(balls) == balls


def test_a_film_whose_name_is_no_text_is_written_and_read(tmp_path, film):
    odd = film.with_name("fil\udcffm.npy")
    shutil.copy(film, odd)
    Trainer(learning_from(odd), tmp_path / "run").run()
    assert load_run_config(tmp_path / "run").stream.path == str(odd)


@pytest.mark.parametrize("frames", [1, 2])
def test_too_little_to_learn_from_is_refused_before_there_is_a_folder(tmp_path, film, frames):
    np.save(film, np.zeros((1, frames, 12, 12), np.float32))
    with pytest.raises(
        ValueError, match=f"must leave 3 frames in a row or more to learn from; got {frames} with held_out"
    ):
        Trainer(learning_from(str(film)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
