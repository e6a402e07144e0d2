import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from torchrsm import bouncing_ball_frames, fit, preset
from torchrsm.media.films import write_mp4
from torchrsm.runs.presets import PRESETS
from torchrsm.streams import BouncingBalls, ClipStream, MovingMNIST, moving_mnist_sequences
from torchrsm.streams.settings import (
    BouncingBallsConfig,
    MovingMNISTConfig,
    StreamConfig,
    VideoConfig,
    frame_shape,
    make_stream,
)
from torchrsm.streams.splits import held_out_frames

SOURCE = TypeAdapter(StreamConfig)


@pytest.fixture
def clips(tmp_path):
    """A folder of two films of 20 and 30 frames, whose brightness is the time."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, frames in (("a.mp4", 20), ("b.mp4", 30)):
        with open(folder / name, "wb") as file:
            write_mp4((np.full((16, 32, 3), 8 * time, np.uint8) for time in range(frames)), file, 10)
    return folder


def test_settings_from_before_there_were_other_sources_are_balls():
    assert SOURCE.validate_python({"balls": 5}) == BouncingBallsConfig(balls=5)
    for config in (BouncingBallsConfig(radius=0.8), MovingMNISTConfig(digits=1), VideoConfig(path="x.mp4", channels=3)):
        assert SOURCE.validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="'cats'"):
        SOURCE.validate_python({"kind": "cats"})


def test_a_source_names_its_stream(clips):
    balls = make_stream(BouncingBallsConfig(balls=2, resolution=12), 3, seed=4)
    assert torch.equal(next(balls).frames, next(BouncingBalls(3, balls=2, resolution=12, seed=4)).frames)
    digits = make_stream(MovingMNISTConfig(resolution=32), 3, seed=4)
    assert torch.equal(next(digits).frames, next(MovingMNIST(3, resolution=32, seed=4, split="train")).frames)
    video = make_stream(VideoConfig(path=str(clips), height=8), 2, seed=0)
    assert isinstance(video, ClipStream)
    assert video.frame_shape == frame_shape(VideoConfig(path=str(clips), height=8)) == (1, 8, 16)


def test_what_is_held_out_is_never_learned_from(clips):
    config = VideoConfig(path=str(clips), height=8, held_out=0.25)
    stream = make_stream(config, 2, seed=0)
    learned = {round(float(frame.mean()), 2) for _ in range(60) for frame in next(stream).frames}
    held_out = held_out_frames(config)
    assert held_out.shape == (2, 5, 1, 8, 16)  # the shorter clip's quarter
    assert float(held_out[0].min()) == pytest.approx(15 * 8 / 255, abs=0.02)
    assert max(learned) < float(held_out[1].min()) + 0.01  # of the longer clip 22 of 30 frames
    assert held_out_frames(config.replace(held_out=0.1)).shape[1] == 2
    with pytest.raises(ValueError, match="held_out must leave 2 frames of each clip or more to test on; got 0"):
        held_out_frames(config.replace(held_out=0.0))


def test_what_is_held_out_of_worlds():
    assert torch.equal(
        held_out_frames(BouncingBallsConfig(balls=5), "validation", 3), bouncing_ball_frames("validation", 3)
    )
    digits = held_out_frames(MovingMNISTConfig(resolution=32, sequence_length=6), "test", 4)
    assert torch.equal(digits, moving_mnist_sequences(4, seed=0, resolution=32, sequence_length=6, split="test"))
    assert not torch.equal(
        digits, held_out_frames(MovingMNISTConfig(resolution=32, sequence_length=6), "validation", 4)
    )


@pytest.mark.parametrize("name", ["balls", "balls-1l", "balls-compact", "paper", "convlstm-wide", "simvp", "copy-last"])
@pytest.mark.parametrize("shape", [(3, 24, 36), (1, 30, 18)])
def test_any_system_fits_a_video(name, shape):
    stream = VideoConfig(path="clip.mp4", channels=shape[0])
    run = fit(preset(name), shape, stream)
    assert run.stream == stream
    assert run.model.channels == shape[0]
    assert (run.model.height, run.model.width) in ((None, None), shape[1:])
    assert type(run).model_validate_json(run.model_dump_json()) == run
    if name == "balls":
        assert run.model.rectifier.changes == "last"
        assert run.model.layers[0].input_threshold == 0
        assert run.rectifying.loop_share == 0


def test_balls_stay_what_they_are():
    for name in PRESETS:
        run = preset(name)
        channels = run.model.channels
        side = run.stream.resolution
        assert fit(run, (channels, side, side), run.stream) == run


def test_a_system_says_what_does_not_fit():
    with pytest.raises(ValueError, match="divisible by 2"):
        fit(preset("simvp"), (1, 15, 16), VideoConfig(path="x"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels\n.*1 or 3"),
        ({"held_out": 1.0}, "held_out\n.*less than 1"),
        ({"height": 3}, "height\n.*greater than or equal to 4"),
        ({"crop": "round"}, "crop\n.*'square'"),
        ({"frames_per_second": 0}, "frames_per_second\n.*greater than 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        VideoConfig(path="x.mp4", **settings)
