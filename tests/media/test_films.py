import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from torchrsm.media.films import dream_frames, save_video

BACKGROUND, PRIMING, DREAMING = (22, 23, 28), (70, 140, 255), (255, 95, 160)


def film(n=1, t=6, known=6, prime=2, channels=1, height=10, width=12, **settings):
    truth, shown = torch.zeros(n, known, channels, height, width), torch.zeros(n, t, channels, height, width)
    truth[..., :4] = 1  # the left third
    shown[..., 2:6] = 1  # half over it, half beside
    return dream_frames(truth, shown, prime, **settings)


def decode(path):
    """Return all pictures of a film, their rate, and the name of their codec."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return pictures, float(stream.average_rate), stream.codec_context.name


def colours(picture):
    return {tuple(int(x) for x in colour) for colour in picture.reshape(-1, 3)}


def test_a_picture_shows_the_overlay_and_the_model_alone():
    frames = film()
    assert frames.dtype == np.uint8
    assert frames.shape[0] == 6
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    # 12 pixels are drawn 20 wide each: 14 margin, 240, 8 gap, 240.
    row = frames[3, -14 - 100]
    over, alone = row[14 : 14 + 240], row[14 + 248 : 14 + 488]
    assert [tuple(over[20 * column + 10]) for column in (0, 3, 5, 8)] == [
        (0, 102, 255),  # the truth alone
        (255, 0, 255),  # both
        (255, 0, 0),  # the prediction alone
        (0, 0, 0),
    ]
    assert [alone[20 * column + 10, 0] for column in (0, 3, 5, 8)] == [0, 255, 255, 0]


def test_the_title_tells_priming_from_dreaming():
    frames = film(t=10, known=10, prime=4)
    bars = [(frame[35:39] == PRIMING).all(-1).sum() for frame in frames]
    dreams = [(frame[35:39] == DREAMING).all(-1).sum() for frame in frames]
    assert sorted(set(bars[:4])) == bars[:4]
    assert all(abs(bar - bars[3]) <= 4 for bar in bars[4:])  # full, but for the column where the other begins
    assert dreams[:4] == [0] * 4
    assert sorted(set(dreams[4:])) == dreams[4:]
    assert len(set(dreams[4:])) == 6
    titles = frames[:, 10:30]
    assert (titles[:4] == DREAMING).all(-1).sum() == 0
    assert all((title == DREAMING).all(-1).any() for title in titles[4:])


@pytest.mark.parametrize(("prime", "colour", "other"), [(0, DREAMING, PRIMING), (5, PRIMING, DREAMING)])
def test_a_film_may_be_all_dream_or_all_priming(prime, colour, other):
    frames = film(t=5, known=prime, prime=prime)
    assert [bool((frame[35:39] == colour).all(-1).any()) for frame in frames] == [True] * 5
    assert not (frames[:, 35:39] == other).all(-1).any()


@pytest.mark.parametrize(("height", "width"), [(5, 5), (30, 4), (7, 300)])
def test_frames_of_any_size_leave_room_for_the_text(height, width):
    frames = film(height=height, width=width, frame_pixels=16)
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    names = frames[0, 50:66]
    written = np.flatnonzero((names != BACKGROUND).any((0, 2)))
    assert (np.diff(written) > 6).sum() == 1  # the names do not run into each other: words stand closer
    assert written[-1] < frames.shape[2] - 14
    title = (frames[-1, 8:32] != BACKGROUND).any((0, 2))
    assert not title[-14:].any()


def test_beyond_the_truth_the_dream_is_shown_as_it_is():
    frames = film(t=6, known=3)
    assert (0, 102, 255) in colours(frames[2])
    assert not {(0, 102, 255), (255, 0, 255), (255, 0, 0)} & colours(frames[3])


def test_sequences_are_stacked_and_colours_kept():
    truth, shown = torch.zeros(3, 4, 1, 12, 12), torch.zeros(3, 4, 1, 12, 12)
    truth[1], shown[2] = 1, 1
    picture = dream_frames(truth, shown, 2)[3]
    assert [tuple(picture[y, 100].tolist()) for y in (-762 + 120, -514 + 120, -14 - 120)] == [
        (0, 0, 0),
        (0, 102, 255),
        (255, 0, 0),
    ]
    shown = torch.zeros(1, 3, 3, 8, 8)
    shown[:, :, 1] = 1
    assert (0, 255, 0) in colours(dream_frames(torch.zeros(1, 1, 3, 8, 8), shown, 1)[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prime": 7}, r"truth must have 1 sequences of prime = 7 to 6 frames; got 1 of 6"),
        ({"known": 1, "prime": 2}, r"prime = 2 to 6 frames; got 1 of 1"),
        ({"t": 0, "known": 0, "prime": 0}, r"got \[1, 0, 1, 10, 12\] and \[1, 0, 1, 10, 12\]"),
        ({"frame_pixels": 15}, r"frame_pixels must be >= 16; got 15"),
    ],
)
def test_refuses_what_does_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        film(**settings)


@pytest.mark.parametrize(
    ("truth", "shown", "message"),
    [
        ((1, 4, 1, 8, 8), (4, 1, 8, 8), r"the same frames; got \[1, 4, 1, 8, 8\] and \[4, 1, 8, 8\]"),
        ((1, 4, 1, 8, 8), (1, 4, 1, 8, 9), r"the same frames; got \[1, 4, 1, 8, 8\] and \[1, 4, 1, 8, 9\]"),
        ((1, 4, 1, 8, 8), (1, 4, 3, 8, 8), r"the same frames; got \[1, 4, 1, 8, 8\] and \[1, 4, 3, 8, 8\]"),
        ((3, 4, 1, 8, 8), (2, 4, 1, 8, 8), r"truth must have 2 sequences .*; got 3 of 4"),
    ],
)
def test_refuses_sequences_of_other_shapes(truth, shown, message):
    with pytest.raises(ValueError, match=message):
        dream_frames(torch.zeros(truth), torch.zeros(shown), 2)


def test_a_film_of_a_dream_keeps_its_colours_as_an_mp4(tmp_path):
    frames = film(n=2, height=11)
    save_video(frames, tmp_path / "film.mp4")
    read = decode(tmp_path / "film.mp4")[0]
    assert read.shape == frames.shape
    # From the left: the truth alone, both, the prediction alone, and nothing; then the model alone.
    y = frames.shape[1] - 14 - 110
    for left, right, colour in ((0, 2, (0, 102, 255)), (2, 4, (255, 0, 255)), (4, 6, (255, 0, 0)), (6, 12, (0, 0, 0))):
        patch = read[:, y - 40 : y + 40, 14 + 20 * left + 5 : 14 + 20 * right - 5]
        assert np.abs(patch.mean((0, 1, 2)) - colour).max() < 10
    assert read[:, y, 14 + 248 + 20 * 4].min() > 240


@pytest.mark.parametrize("codecs", [{"libx264", "mpeg4"}, {"mpeg4"}])
@pytest.mark.parametrize("rate", [0.5, 12.5])
def test_an_mp4_reads_back(tmp_path, monkeypatch, rate, codecs):
    codecs = codecs & av.codecs_available
    monkeypatch.setattr(av, "codecs_available", codecs)
    frames = np.zeros((7, 33, 48, 3), np.uint8)
    frames[:, :, 24:] = (250, 30, 40)
    save_video(frames, tmp_path / "film.mp4", rate)
    assert os.listdir(tmp_path) == ["film.mp4"]
    read, read_rate, codec = decode(tmp_path / "film.mp4")
    assert (read_rate, codec) == (rate, "h264" if "libx264" in codecs else "mpeg4")
    assert read.shape == (7, 32, 48, 3)  # an odd last row is cut
    assert np.abs(read[:, :, 30:].mean((0, 1, 2)) - (250, 30, 40)).max() < 12
    assert read[:, :, :20].mean() < 12


def test_a_gif_reads_back(tmp_path):
    frames = np.zeros((5, 21, 31, 3), np.uint8)
    for index in range(5):
        frames[index, :, 5 * index : 5 * index + 5] = (255, 0, 255)
    save_video(frames, tmp_path / "film.gif", 20)
    with Image.open(tmp_path / "film.gif") as picture:
        assert (picture.n_frames, picture.size) == (5, (31, 21))
        assert (picture.info["loop"], picture.info["duration"]) == (0, 50)
        picture.seek(3)
        assert np.asarray(picture.convert("RGB"))[10, [17, 3]].tolist() == [[255, 0, 255], [0, 0, 0]]


@pytest.mark.parametrize(("rate", "milliseconds"), [(1, 1000), (30, 30), (50, 20)])
def test_a_gif_lasts_hundredths_of_a_second(tmp_path, rate, milliseconds):
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 255)])
    save_video(frames, str(tmp_path / "film.GIF"), rate)
    with Image.open(tmp_path / "film.GIF") as picture:
        durations = []
        for index in range(picture.n_frames):
            picture.seek(index)
            durations.append(picture.info["duration"])
    assert durations == [milliseconds] * 2


@pytest.mark.parametrize(
    ("name", "frames", "rate", "message"),
    [
        ("film.avi", np.zeros((1, 4, 4, 3), np.uint8), 20, r"must end in \.mp4 or \.gif; got '.*film\.avi'"),
        (
            "film.mp4",
            np.zeros((1, 4, 4), np.uint8),
            20,
            r"uint8 \[time, height, width, 3\]; got uint8 \[1, 4, 4\]",
        ),
        ("film.mp4", np.zeros((1, 4, 4, 3)), 20, r"got float64 \[1, 4, 4, 3\]"),
        ("film.mp4", np.zeros((0, 4, 4, 3), np.uint8), 20, r"got uint8 \[0, 4, 4, 3\]"),
        (
            "film.mp4",
            np.zeros((1, 4, 4, 3), np.uint8),
            0,
            r"frames_per_second must be in 0\.001\.\.1000; got 0",
        ),
        ("film.mp4", np.zeros((1, 4, 4, 3), np.uint8), float("nan"), r"in 0\.001\.\.1000; got nan"),
        ("film.mp4", np.zeros((1, 4, 4, 3), np.uint8), 1001, r"in 0\.001\.\.1000; got 1001"),
        ("film.gif", np.zeros((1, 4, 4, 3), np.uint8), 60, r"of a GIF must be in 1\.\.50; got 60"),
        ("film.gif", np.zeros((1, 4, 4, 3), np.uint8), 0.5, r"of a GIF must be in 1\.\.50; got 0\.5"),
        ("film.mp4", np.zeros((1, 1, 4, 3), np.uint8), 20, r"MP4 must be 2 x 2 or larger; got 1 x 4"),
        ("film", np.zeros((1, 4, 4, 3), np.uint8), 20, r"must end in \.mp4 or \.gif; got '.*film'"),
    ],
)
def test_refuses_what_is_no_film(tmp_path, name, frames, rate, message):
    with pytest.raises(ValueError, match=message):
        save_video(frames, tmp_path / name, rate)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_a_former_film_survives_a_failure(tmp_path, monkeypatch, name):
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    target = tmp_path / name
    save_video(frames, target)
    before = target.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_video(frames + 255, target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_a_folder_that_cannot_be_written_to_is_named_and_none_is_made(tmp_path, name):
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=rf"cannot write .*missing/{name}: No such file"):
        save_video(frames, tmp_path / "missing" / name)
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        save_video(frames, tmp_path / "file" / name)
    assert os.listdir(tmp_path) == ["file"]
