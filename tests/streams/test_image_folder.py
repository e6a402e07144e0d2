import numpy as np
import pytest
import torch
from PIL import Image

from torchrsm.streams import ImageFolder, check_stream
from torchrsm.streams.film_store import ClipOnDisk


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        Image.fromarray(np.full((6, 8), 10 * number, np.uint8)).save(tmp_path / f"frame{number}.png")
    return tmp_path


def test_keeps_the_contract(folder):
    check_stream(ImageFolder(folder, 3, mirror=True), 40)


def test_plays_the_pictures_in_order(folder):
    stream = ImageFolder(folder, height=3, channels=3)
    assert stream.frame_shape == (3, 3, 4)
    assert [round(float(next(stream).frames.mean()) * 25.5) for _ in range(12)] == [*range(10), 0, 1]


def test_plays_a_part(folder):
    assert [len(clip) for clip in ImageFolder(folder, part=(0.8, 1)).frames] == [2]


def test_a_folder_of_still_gifs_is_one_of_pictures(tmp_path):
    for number in range(3):
        Image.new("L", (4, 4), 40 * number).save(tmp_path / f"{number}.gif")
    (clip,) = ImageFolder(tmp_path).frames
    assert clip[:, 0, 0, 0].tolist() == [0, 40, 80]


def test_many_pictures_are_kept_on_disk(folder):
    small, large = ImageFolder(folder, 3), ImageFolder(folder, 3, max_bytes=10 * 6 * 8 - 1)
    assert isinstance(large.frames[0], ClipOnDisk)
    assert small.state_dict() == large.state_dict()
    for _ in range(20):
        assert torch.equal(next(small).frames, next(large).frames)


def test_refuses_nothing(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must have pictures in it"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        ImageFolder(tmp_path / "missing")


def test_white_is_told_for_pictures_of_12_bits(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((4, 4), 1000 * (number + 1), np.uint16)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="say which value is white"):
        ImageFolder(tmp_path)
    (clip,) = ImageFolder(tmp_path, white=4095).frames
    assert clip[:, 0, 0, 0].tolist() == [62, 125, 187]


def test_refuses_a_folder_of_animations_and_tells_what_they_are(tmp_path):
    images = [Image.new("L", (4, 4), 40 * number) for number in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    with pytest.raises(ValueError, match=r"must have single pictures in it; got the animation a\.gif of 3"):
        ImageFolder(tmp_path)
