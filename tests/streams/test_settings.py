import warnings

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from small_films import damaged, film, textured, true_numbers

from torchrsm import bouncing_ball_frames, fit, preset
from torchrsm.media.films import write_mp4
from torchrsm.runs.presets import PRESETS
from torchrsm.streams import (
    BouncingBalls,
    ClipStream,
    DamagedFilmWarning,
    MovingMNIST,
    VariedBalls,
    bouncing_ball_sequences,
    check_stream,
    moving_mnist_sequences,
)
from torchrsm.streams.settings import (
    AnyStreamConfig,
    BouncingBallsConfig,
    MovingMNISTConfig,
    VariedBallsConfig,
    VideoConfig,
    frame_shape,
    make_stream,
    outside,
    unseen,
)
from torchrsm.streams.splits import VALIDATION_SEED, held_out_frames

SOURCE = TypeAdapter(AnyStreamConfig)


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
    validation, test = held_out_frames(config, "validation"), held_out_frames(config)
    assert validation.shape == (2, 2, 1, 8, 16)  # of the last 5 of 20 frames, and the last 8 of 30
    assert test.shape == (2, 3, 1, 8, 16)
    for clip, first in ((0, 15), (1, 22)):
        halves = torch.cat([validation[clip], test[clip]]) if clip == 0 else validation[clip]
        assert [round(float(frame.mean()) * 255 / 8) for frame in halves] == list(range(first, first + len(halves)))
    assert round(float(test[1, 0].mean()) * 255 / 8) == 26
    assert max(learned) < 22 * 8 / 255 - 0.01


def test_three_parts_need_frames(clips):
    for share, split, message in (
        (
            0.0,
            "test",
            r"the test part, half of held_out = 0, must leave a frame .* got a clip of 20 frames: .*a.mp4",
        ),
        (0.05, "validation", r"the validation part, .* must leave a frame of each clip"),
        (0.1, "validation", r"must leave 2 frames in a row of each clip; got 1: .*a.mp4"),
        (0.2, "tset", "split must be one of test, validation; got 'tset'"),
    ):
        with pytest.raises(ValueError, match=message):
            held_out_frames(VideoConfig(path=str(clips), height=8, held_out=share), split)
    with pytest.raises(ValueError, match="must leave 3 frames in a row or more to learn from; got 1 with held_out"):
        make_stream(VideoConfig(path=str(clips / "a.mp4"), height=8, held_out=0.94), 1, seed=0)


def test_the_shape_of_a_video_is_read_from_its_first_frame(tmp_path):
    path = film(tmp_path / "a.mkv", textured(60), coding={"g": "1"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) * 2 // 3))  # the rest cannot be read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frame_shape(VideoConfig(path=str(path), height=12, channels=3)) == (3, 12, 16)


def test_gaps_are_neither_learned_over_nor_tested_over(tmp_path):
    path = damaged(film(tmp_path / "a.mov", textured(100), codec="png"), 40, 51)
    damaged(path, 97, 97)
    config = VideoConfig(path=str(path), height=48, mirror=False)
    with pytest.warns(DamagedFilmWarning):
        stream = make_stream(config, 1, seed=0)
    played = [next(stream) for _ in range(69)]  # of the 87 frames that are there, without the last 17
    assert true_numbers([batch.frames[0].numpy() * 255 for batch in played]) == [*range(40), *range(52, 81)]
    assert [number for number, batch in enumerate(played) if batch.starts.item()] == [0, 40]
    with pytest.warns(DamagedFilmWarning):
        test = held_out_frames(config)
    levels = test[0] * 255
    assert true_numbers(levels.numpy()) == list(range(90, 97))
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_what_is_held_out_of_worlds():
    assert torch.equal(
        held_out_frames(BouncingBallsConfig(balls=5), "validation", 3), bouncing_ball_frames("validation", 3)
    )
    digits = held_out_frames(MovingMNISTConfig(resolution=32, sequence_length=6), "test", 4)
    assert torch.equal(digits, moving_mnist_sequences(4, seed=0, resolution=32, sequence_length=6, split="test"))
    assert not torch.equal(
        digits, held_out_frames(MovingMNISTConfig(resolution=32, sequence_length=6), "validation", 4)
    )


@pytest.mark.parametrize(
    "name", ["balls", "balls-window", "balls-1l", "balls-compact", "paper", "convlstm-wide", "simvp", "copy-last"]
)
@pytest.mark.parametrize("shape", [(3, 24, 36), (1, 30, 18)])
def test_any_system_fits_a_video(name, shape):
    stream = VideoConfig(path="clip.mp4", channels=shape[0])
    run = fit(preset(name), shape, stream)
    assert run.stream == stream
    assert run.model.channels == shape[0]
    assert (run.model.height, run.model.width) in ((None, None), shape[1:])
    assert type(run).model_validate_json(run.model_dump_json()) == run
    if name == "balls-window":
        assert run.model.rectifier.changes == "last"
        assert run.model.layers[0].input_threshold == 0
        assert run.rectifying.loop_share == 0
    if name == "balls":
        assert run.model.symmetry == "none"  # a film may have an up and a down


def test_balls_stay_what_they_are():
    for name in PRESETS:
        run = preset(name)
        assert fit(run, frame_shape(run.stream), run.stream) == run


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


# --- Worlds of balls --------------------------------------------------------------------------------------------------


def test_sizes_take_turns_and_no_sequence_is_played_twice():
    config = VariedBallsConfig(resolutions=(12, 8), balls=(2, 2), sequence_length=4)
    stream = make_stream(config, 3, seed=4)
    worlds = {"balls": (2, 2), "sequence_length": 4, "seed": 4}
    alone = [VariedBalls(3, resolution=12, **worlds), VariedBalls(3, resolution=8, first_sequence=2**40, **worlds)]
    for turn in range(10):
        for mine, theirs in zip(next(stream)[:3], next(alone[turn % 2])[:3], strict=True):
            assert torch.equal(mine, theirs)
    assert frame_shape(config) == (1, 12, 12)
    check_stream(make_stream(config, 3, seed=4), 20)
    assert isinstance(make_stream(config.replace(resolutions=(12,)), 3, seed=4), VariedBalls)
    assert torch.equal(held_out_frames(config, "validation", 2), bouncing_ball_frames("validation", 2))


def test_the_fixed_sequences_of_another_world():
    world = BouncingBallsConfig(balls=2, radius=0.8, resolution=12, speed=2.0, sequence_length=7)
    frames = bouncing_ball_frames("validation", 3, world)
    made = bouncing_ball_sequences(3, seed=VALIDATION_SEED, **world.arguments())
    assert torch.equal(frames, made.frames)
    assert (made.velocities**2).sum((2, 3)).sub(4 * 0.25).abs().max() < 1e-12  # twice the published speed


MIXTURE = VariedBallsConfig(balls=(2, 6), radius=(0.7, 1.5), speed=(0.5, 2.0), resolutions=(24, 64, 30))


@pytest.mark.parametrize(
    ("trained", "now", "reasons"),
    [
        (BouncingBallsConfig(), BouncingBallsConfig(), []),
        (BouncingBallsConfig(sequence_length=20), BouncingBallsConfig(sequence_length=30), []),
        (BouncingBallsConfig(), BouncingBallsConfig(radius=0.8), ["radius 0.8 (learned from 1.2)"]),
        (
            BouncingBallsConfig(),
            BouncingBallsConfig(balls=4, resolution=60, speed=0.5),
            ["balls 4 (learned from 3)", "resolution 60 (learned from 30)", "speed 0.5 (learned from 1)"],
        ),
        (MIXTURE, BouncingBallsConfig(), []),
        (MIXTURE, BouncingBallsConfig(balls=6, radius=1.5, resolution=40, speed=2.0), []),
        (MIXTURE, BouncingBallsConfig(balls=7), ["balls 7 (learned from 2 to 6)"]),
        (MIXTURE, BouncingBallsConfig(resolution=23, radius=0.69), ["radius 0.69 (learned from 0.7 to 1.5)"] * 2),
        (BouncingBallsConfig(balls=4), MIXTURE.replace(balls=(3, 4)), ["balls 3 to 4 (learned from 4)"] * 4),
        (MIXTURE, MIXTURE.replace(radius=(0.8, 1.0)), []),
        (BouncingBallsConfig(), MovingMNISTConfig(), ["moving digits (learned from bouncing balls)"]),
        (MovingMNISTConfig(), MovingMNISTConfig(resolution=32), ["resolution 32 (learned from 64)"]),
        (BouncingBallsConfig(), VideoConfig(path="a.mp4"), ["a video (learned from bouncing balls)"]),
        (VideoConfig(path="x/a.mp4"), VideoConfig(path="y/a.mp4", height=32), []),
        (VideoConfig(path="a.mp4"), VideoConfig(path="b.mp4"), ["video b.mp4 (learned from a.mp4)"]),
    ],
)
def test_what_lies_outside_of_what_was_learned_from(trained, now, reasons):
    found = outside(trained, now)
    assert found[: len(set(reasons))] == list(dict.fromkeys(reasons))
    assert len(found) == len(reasons)
    if reasons:
        assert unseen(trained, now) == f"a world that the model has not seen: {', '.join(found)}"
    else:
        assert unseen(trained, now) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balls": (6, 2)}, "balls must be the smallest and the largest, in this order; got 6 and 2"),
        ({"radius": (0.7, 2.5)}, "must cover at most 50% of the box; got 118% with 6 balls of radius 2.5"),
        ({"resolutions": (24, 24)}, "resolutions must be different from each other; got"),
        ({"resolutions": ()}, "resolutions\n.*at least 1"),
        ({"resolutions": (3,)}, "resolutions.0\n.*greater than or equal to 4"),
        ({"speed": (0.0, 1.0)}, "speed must be a number above 0 and at most 10; got 0.0"),
    ],
)
def test_bad_ranges_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        VariedBallsConfig(**settings)
