import io
import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from torchrsm.video import dream_frames, save_video

PRIMING, DREAMING = (70, 140, 255), (255, 95, 160)


def film(n=1, t=6, known=6, prime=2, channels=1, height=10, width=12, **settings):
    truth, shown = torch.zeros(n, known, channels, height, width), torch.zeros(n, t, channels, height, width)
    truth[..., :4] = 1  # the left third
    shown[..., 2:6] = 1  # half over it, half beside
    return dream_frames(truth, shown, prime, **settings)


def colours(picture):
    return {tuple(int(x) for x in colour) for colour in picture.reshape(-1, 3)}


def test_a_picture_shows_the_overlay_and_the_model_alone():
    frames = film(frame_pixels=60)
    assert frames.dtype == np.uint8
    assert frames.shape[0] == 6
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    # 12 pixels are drawn 5 wide each: 14 margin, 60, 8 gap, 60.
    row = frames[3, -14 - 25]
    over, alone = row[14 : 14 + 60], row[14 + 68 : 14 + 128]
    assert [tuple(over[5 * column + 2]) for column in (0, 3, 5, 8)] == [
        (0, 102, 255),  # the truth alone
        (255, 0, 255),  # both
        (255, 0, 0),  # the prediction alone
        (0, 0, 0),
    ]
    assert [alone[5 * column + 2, 0] for column in (0, 3, 5, 8)] == [0, 255, 255, 0]


def test_the_title_tells_priming_from_dreaming():
    frames = film(t=10, known=10, prime=4)
    bars = [(frame[35:39] == PRIMING).all(-1).sum() for frame in frames]
    dreams = [(frame[35:39] == DREAMING).all(-1).sum() for frame in frames]
    assert sorted(set(bars[:4])) == bars[:4]
    assert all(abs(bar - bars[3]) <= 4 for bar in bars[4:])  # full, but for the column where the other begins
    assert dreams[:4] == [0] * 4
    assert sorted(set(dreams[4:])) == dreams[4:]
    assert len(dreams[4:]) == 6


def test_beyond_the_truth_the_dream_is_shown_as_it_is():
    frames = film(t=6, known=3)
    assert (0, 102, 255) in colours(frames[2])
    assert not {(0, 102, 255), (255, 0, 255), (255, 0, 0)} & colours(frames[3])


def test_sequences_are_stacked_and_colours_kept():
    assert film(n=3).shape[1] > 2 * film(n=1).shape[1]
    shown = torch.zeros(1, 3, 3, 8, 8)
    shown[:, :, 1] = 1
    assert (0, 255, 0) in colours(dream_frames(torch.zeros(1, 1, 3, 8, 8), shown, 1)[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prime": 7}, r"truth must have 1 sequences of prime = 7 to 6 frames, received 1 of 6"),
        ({"known": 1, "prime": 2}, r"prime = 2 to 6 frames, received 1 of 1"),
        ({"t": 0, "known": 0, "prime": 0}, r"received \[1, 0, 1, 10, 12\] and \[1, 0, 1, 10, 12\]"),
        ({"frame_pixels": 15}, r"frame_pixels must be >= 16, received 15"),
    ],
)
def test_refuses_what_does_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        film(**settings)


@pytest.mark.parametrize("rate", [10.0, 12.5])
def test_an_mp4_reads_back(tmp_path, rate):
    frames = np.zeros((7, 33, 48, 3), np.uint8)
    frames[:, :, 24:] = (250, 30, 40)
    save_video(frames, tmp_path / "film.mp4", rate)
    assert os.listdir(tmp_path) == ["film.mp4"]
    with av.open(tmp_path / "film.mp4") as container:
        assert float(container.streams.video[0].average_rate) == rate
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert read.shape == (7, 32, 48, 3)  # an odd last row is cut
    assert np.abs(read[:, :, 30:].mean((0, 1, 2)) - (250, 30, 40)).max() < 12
    assert read[:, :, :20].mean() < 12


def test_a_gif_reads_back(tmp_path):
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    for index in range(5):
        frames[index, :, 5 * index : 5 * index + 5] = (255, 0, 255)
    save_video(frames, tmp_path / "film.gif", 20)
    with Image.open(tmp_path / "film.gif") as picture:
        assert (picture.n_frames, picture.size) == (5, (30, 20))
        assert (picture.info["loop"], picture.info["duration"]) == (0, 50)
        picture.seek(3)
        assert np.asarray(picture.convert("RGB"))[10, [17, 3]].tolist() == [[255, 0, 255], [0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "frames", "rate", "message"),
    [
        ("film.avi", np.zeros((1, 4, 4, 3), np.uint8), 20, r"must end in \.mp4 or \.gif, received '.*film\.avi'"),
        (
            "film.mp4",
            np.zeros((1, 4, 4), np.uint8),
            20,
            r"uint8 \[time, height, width, 3\], received uint8 \[1, 4, 4\]",
        ),
        ("film.mp4", np.zeros((1, 4, 4, 3)), 20, r"received float64 \[1, 4, 4, 3\]"),
        ("film.mp4", np.zeros((0, 4, 4, 3), np.uint8), 20, r"received uint8 \[0, 4, 4, 3\]"),
        (
            "film.mp4",
            np.zeros((1, 4, 4, 3), np.uint8),
            0,
            r"frames_per_second must be in 0\.\.1000, above 0; received 0",
        ),
        ("film.gif", np.zeros((1, 4, 4, 3), np.uint8), 60, r"of a GIF must be in 1\.\.50, received 60"),
    ],
)
def test_refuses_what_is_no_film(tmp_path, name, frames, rate, message):
    with pytest.raises(ValueError, match=message):
        save_video(frames, tmp_path / name, rate)
    assert not os.listdir(tmp_path)


def test_a_former_film_survives_a_failure(tmp_path, monkeypatch):
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    target = tmp_path / "film.gif"
    save_video(frames, target)
    before = target.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_video(frames + 255, target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["film.gif"]
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"missing"):
        save_video(frames, tmp_path / "missing" / "film.gif")
    assert io.BytesIO(before).read(3) == b"GIF"
