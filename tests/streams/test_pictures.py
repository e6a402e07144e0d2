import struct

import numpy as np
import pytest
from PIL import Image

from torchrsm.streams import ImageFolderReader


def save(folder, names, size=(12, 16)):
    for number, name in enumerate(names):
        image = Image.fromarray(np.full((*size, 3), 10 * number + 10, np.uint8))
        image.save(folder / name)
    return folder


def values(reader):
    return [int(frame[0, 0, 0]) for frame in reader]


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    save(tmp_path, ["f10.png", "f2.png", "F1.bmp", "f100.tiff", "g.webp"])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    reader = ImageFolderReader(tmp_path)
    assert [path.name for path in reader.paths] == ["F1.bmp", "f2.png", "f10.png", "f100.tiff", "g.webp"]
    assert (reader.frame_shape, reader.frame_count) == ((1, 12, 16), 5)
    assert [round(value, -1) for value in values(reader)] == [30, 20, 10, 40, 50]


def test_pictures_are_framed_like_films(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    (frame,) = ImageFolderReader(tmp_path, channels=3, crop="square", height=6)
    expected = picture[:, 2:14].reshape(6, 2, 6, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(frame - expected).max() <= 1


def test_a_picture_is_turned_as_exif_says(tmp_path):
    picture = np.zeros((8, 16), np.uint8)
    picture[:4, :4] = 255
    image = Image.fromarray(picture)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that this is to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    reader = ImageFolderReader(tmp_path)
    assert reader.frame_shape == (1, 16, 8)
    assert np.array_equal(next(iter(reader))[0], np.rot90(picture, -1))


def test_every_kind_of_pixel(tmp_path):
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = 51
    Image.fromarray(rgba).save(tmp_path / "1.png")
    Image.fromarray(np.full((4, 4), 200 * 256, np.uint16)).save(tmp_path / "2.png")
    Image.fromarray(np.full((4, 4), 150, np.uint8)).save(tmp_path / "3.png")
    Image.fromarray(np.full((4, 4), 1, bool)).save(tmp_path / "4.png")
    palette = Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).quantize(4)
    palette.save(tmp_path / "5.gif")
    assert values(ImageFolderReader(tmp_path, channels=3)) == [40, 200, 150, 255, 90]


def test_pictures_of_another_shape_need_a_size(tmp_path):
    save(tmp_path, ["1.png"], (12, 16))
    save(tmp_path, ["2.png"], (24, 32))
    assert [frame.shape for frame in ImageFolderReader(tmp_path)] == [(1, 12, 16)] * 2
    save(tmp_path, ["3.png"], (16, 16))
    with pytest.raises(ValueError, match=r"3.png must have the shape of 1.png, .* 12 x 16, received 16 x 16"):
        ImageFolderReader(tmp_path)
    for options in ({"height": 8, "width": 8}, {"crop": "square"}):
        assert len({frame.shape for frame in ImageFolderReader(tmp_path, **options)}) == 1


def test_refuses_folders_without_good_pictures(tmp_path):
    with pytest.raises(ValueError, match="must have pictures in it .*, received none"):
        ImageFolderReader(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be an existing folder"):
        ImageFolderReader(tmp_path / "missing")
    save(tmp_path, ["a.png"])
    with pytest.raises(NotADirectoryError, match="must be a folder, received a file"):
        ImageFolderReader(tmp_path / "a.png")
    with pytest.raises(ValueError, match="max_pixels"):
        ImageFolderReader(tmp_path, max_pixels=12 * 16 - 1)
    content = (tmp_path / "a.png").read_bytes()
    for name, broken, message in (
        ("b.png", content[: len(content) // 2], "must be a complete picture"),
        ("b.png", b"", "must be a complete picture"),
        ("b.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be a complete picture"),
        (
            "b.bmp",
            struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 9000, 9000, 1, 24, 0, 0, 0, 0, 0, 0),
            "8192",
        ),
        (
            "b.bmp",
            struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0),
            "exceeds limit",
        ),
        (
            "b.bmp",
            struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 8, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
            "b.bmp",
        ),
    ):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=message) as error:
            list(ImageFolderReader(tmp_path, height=4, width=4))
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
        (tmp_path / name).unlink()
