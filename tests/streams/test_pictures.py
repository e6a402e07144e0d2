import itertools
import os
import struct
import zlib

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from torchrsm.streams import AnimationReader, ImageFolderReader, VideoReader
from torchrsm.streams.picture_file import PictureFile, picture_files, picture_kind


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
    with pytest.raises(ValueError, match=r"3.png must have the shape of 1.png, .* 12 x 16; got 16 x 16"):
        ImageFolderReader(tmp_path)
    for options in ({"height": 8, "width": 8}, {"crop": "square"}):
        assert len({frame.shape for frame in ImageFolderReader(tmp_path, **options)}) == 1


def test_refuses_folders_without_good_pictures(tmp_path):
    with pytest.raises(ValueError, match="must have pictures in it .*; got none"):
        ImageFolderReader(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be an existing folder"):
        ImageFolderReader(tmp_path / "missing")
    save(tmp_path, ["a.png"])
    with pytest.raises(NotADirectoryError, match="must be a folder; got a file"):
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


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one(path, **options):
    """Return the frame of the only picture of a folder."""
    (frame,) = ImageFolderReader(path.parent, **options)
    return frame


# --- Orientation ------------------------------------------------------------------------------------------------------

# What a viewer does with the stored pixels; source: EXIF 2.3, tag 0x0112.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.tif", "colour.png", "deep.png", "deep.tif", "float.tif"]
)
def test_pictures_are_turned_as_their_orientation_says(tmp_path, orientation, name):
    stored = noise(8, 12) if name != "colour.png" else noise(8, 12, 3)
    if name == "a.jpg":
        stored = np.kron(stored[:2, :3], np.ones((8, 8), np.uint8))  # blocks survive JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    if name == "float.tif":
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / name, stored / np.float32(255), extratags=tags)
    else:
        image = Image.fromarray(stored * np.uint16(257) if name.startswith("deep") else stored)
        image.save(tmp_path / name, exif=exif, **{"lossless": True} if name == "a.webp" else {})
    expected = UPRIGHT[orientation](stored)
    channels = 3 if name == "colour.png" else 1
    reader = ImageFolderReader(tmp_path, channels=channels)
    assert reader.frame_shape == (channels, *expected.shape[:2])
    (frame,) = reader
    expected = expected.transpose(2, 0, 1) if channels == 3 else expected[None]
    assert np.abs(frame.astype(int) - expected).max() <= (6 if name == "a.jpg" else 0)


def test_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = noise(8, 12)
    Image.fromarray(stored).save(tmp_path / "a.png")
    data = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    reader = ImageFolderReader(tmp_path)
    assert reader.frame_shape == (1, 12, 8)
    assert np.array_equal(next(iter(reader))[0], np.rot90(stored, -1))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_are_turned_too(tmp_path, suffix):
    frames = noise(3, 8, 12)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":  # each page has its own
        with tifffile.TiffWriter(path) as writer:
            for frame in frames:
                writer.write(frame, extratags=[(274, "H", 1, 8, True)], metadata=None, contiguous=False)
    else:
        exif = Image.Exif()
        exif[0x0112] = 8
        images = [Image.fromarray(frame) for frame in frames]
        lossless = {"lossless": True} if suffix == "webp" else {}
        images[0].save(path, save_all=True, append_images=images[1:], exif=exif, **lossless)
    reader = AnimationReader(path)
    assert reader.frame_shape == (1, 12, 8)
    assert np.array_equal(np.stack(list(reader))[:, 0], np.rot90(frames, axes=(1, 2)))


# --- Kinds of pixels --------------------------------------------------------------------------------------------------


def png(path, depth, colour, rows, *chunks):
    """Write a PNG of any depth; ``rows`` are bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = len(rows), chunks[0]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*one) for one in chunks[1:]), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6


def test_png_of_every_depth(tmp_path):
    path = tmp_path / "a.png"
    png(path, 1, GREY, [b"\x50"], 4)
    assert one(path)[0].tolist() == [[0, 255, 0, 255]]
    png(path, 2, GREY, [b"\x1b"], 4)
    assert one(path)[0].tolist() == [[0, 85, 170, 255]]
    png(path, 4, GREY, [b"\x0f\x1e"], 4)
    assert one(path)[0].tolist() == [[0, 255, 17, 238]]
    png(path, 16, GREY, [bytes.fromhex("0000 ffff 8000 1234")], 4)
    assert one(path)[0].tolist() == [[0, 255, 0x80, 0x12]]
    png(path, 16, COLOUR, [bytes.fromhex("ff00 8001 00ff  1234 5678 9abc")], 2)
    assert one(path, channels=3)[:, 0].T.tolist() == [[0xFF, 0x80, 0], [0x12, 0x56, 0x9A]]
    png(path, 16, GREY_ALPHA, [bytes.fromhex("ff00 ffff  ff00 0000")], 2)
    assert one(path)[0].tolist() == [[0xFF, 0]]
    png(path, 16, COLOUR_ALPHA, [bytes.fromhex("ff00 8000 4000 ffff  ff00 ff00 ff00 0000")], 2)
    assert one(path, channels=3)[:, 0].T.tolist() == [[0xFF, 0x80, 0x40], [0, 0, 0]]


def test_a_colour_of_a_png_that_is_transparent_is_black(tmp_path):
    path = tmp_path / "a.png"
    png(path, 8, GREY, [bytes([200, 100])], 2, (b"tRNS", b"\0\xc8"))
    assert one(path)[0].tolist() == [[0, 100]]
    png(path, 1, GREY, [b"\x40"], 2, (b"tRNS", b"\0\1"))
    assert one(path)[0].tolist() == [[0, 0]]
    png(path, 16, GREY, [bytes.fromhex("c812 c813")], 2, (b"tRNS", b"\xc8\x12"))
    assert one(path)[0].tolist() == [[0, 200]]
    png(path, 8, COLOUR, [bytes([9, 8, 7, 9, 8, 6])], 2, (b"tRNS", b"\0\x09\0\x08\0\x07"))
    assert one(path, channels=3)[:, 0].T.tolist() == [[0, 0, 0], [9, 8, 6]]
    png(path, 8, 3, [bytes([0, 1])], 2, (b"PLTE", bytes([200, 0, 0, 0, 100, 0])), (b"tRNS", b"\x33\xff"))
    assert one(path, channels=3)[:, 0].T.tolist() == [[40, 0, 0], [0, 100, 0]]
    png(path, 16, COLOUR, [bytes(6)], 1, (b"tRNS", bytes(6)))
    with pytest.raises(
        ValueError, match=r"a\.png must be .*: colours of 16 bits are not read when one of them is transp"
    ):
        one(path)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("packed", [None, "zlib"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_grey_tiff_of_every_depth(tmp_path, byte_order, packed, negative, dtype):
    """Right values, or a refusal of what cannot be read rightly; the writer is another library than the reader."""
    expected = noise(9, 13)
    stored = 255 - expected if negative else expected
    array = {"u1": stored, "u2": stored * np.uint16(257), "f4": stored / np.float32(255)}[dtype]
    ink = "miniswhite" if negative else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=byte_order, compression=packed, photometric=ink)
    if byte_order == ">" and dtype == "f4" and packed:
        with pytest.raises(ValueError, match="big-endian pixels of 32 bits are not read when packed"):
            one(tmp_path / "a.tif")
    elif byte_order == ">" and dtype == "u2" and negative:
        with pytest.raises(ValueError, match="TIFF of pixels that are not read"):
            one(tmp_path / "a.tif")
    else:
        assert np.array_equal(one(tmp_path / "a.tif")[0], expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), "TIFF of pixels that are not read; read are grey of"),
        (np.zeros((4, 5), np.float16), "TIFF of pixels that are not read"),
        (np.zeros((4, 5), np.uint64), "TIFF of pixels that are not read"),
        (np.zeros((4, 5, 3), np.float32), "TIFF of pixels that are not read"),
        (np.full((4, 5), -3, np.int8), "pixels must be 0 or more; got signed ones of 8 bits"),
        (np.full((4, 5), 7, np.uint32), r"nothing tells which value is white; got 7\.\.7: say which .* \(white\)"),
        (np.full((4, 5), 7, np.int16), "nothing tells which value is white"),
        (np.full((4, 5), 1.5, np.float32), r"pixels must be within 0\.\.1; got 1\.5\.\.1\.5: say which value is"),
        (np.full((4, 5), np.nan, np.float32), "pixels must be finite"),
    ],
)
def test_refuses_a_tiff_of_other_pixels(tmp_path, array, message):
    colours = {"photometric": "rgb"} if array.ndim == 3 else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **colours)
    with pytest.raises(ValueError, match=rf"a\.tif must be a complete picture .*{message}"):
        one(tmp_path / "a.tif")


def test_colours_of_a_tiff(tmp_path):
    path = tmp_path / "a.tif"
    expected = noise(9, 13, 3)
    for planes in ("contig", "separate"):
        array = expected if planes == "contig" else expected.transpose(2, 0, 1)
        tifffile.imwrite(path, array, photometric="rgb", planarconfig=planes)
        assert np.array_equal(one(path, channels=3), expected.transpose(2, 0, 1))
    for order in "<>":
        tifffile.imwrite(path, expected * np.uint16(257), photometric="rgb", byteorder=order)
        assert np.array_equal(one(path, channels=3), expected.transpose(2, 0, 1))
    tifffile.imwrite(path, (expected * np.uint16(257)).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    with pytest.raises(ValueError, match="colours of 16 bits are not read when each is stored by itself"):
        one(path)
    tifffile.imwrite(path, expected, photometric="cielab")
    with pytest.raises(ValueError, match="pixels are CIE Lab"):
        one(path)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected", "name"),
    [
        ("LA", (200, 51), [40, 40, 40], "a.png"),
        ("LA", (200, 51), [40, 40, 40], "a.tif"),
        ("RGBA", (200, 100, 50, 51), [40, 20, 10], "a.tif"),
        ("RGBA", (200, 100, 50, 51), [40, 20, 10], "a.webp"),
        ("RGBA", (200, 100, 50, 0), [0, 0, 0], "a.gif"),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0], "a.tif"),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0], "a.jpg"),
        ("YCbCr", (76, 85, 255), [254, 0, 0], "a.jpg"),
        ("1", 1, [255, 255, 255], "a.bmp"),
        ("RGBA", (200, 100, 50, 255), [200, 100, 50], "a.bmp"),
    ],
)
def test_colours_of_every_kind(tmp_path, mode, pixel, expected, name):
    lossless = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.new(mode, (16, 16), pixel).save(tmp_path / name, **lossless)
    frame = one(tmp_path / name, channels=3)
    assert np.abs(frame[:, 5, 5].astype(int) - expected).max() <= 2


def test_a_tiff_in_ycbcr_is_read_or_refused(tmp_path):
    Image.new("YCbCr", (16, 16), (76, 85, 255)).save(tmp_path / "a.tif")
    if int(PIL.__version__.partition(".")[0]) < 13:  # which finds its own file cut short
        with pytest.raises(ValueError, match=r"a\.tif must be a complete picture"):
            one(tmp_path / "a.tif", channels=3)
        return
    frame = one(tmp_path / "a.tif", channels=3)
    assert np.abs(frame[:, 5, 5].astype(int) - [254, 0, 0]).max() <= 2


# --- Which value is white ---------------------------------------------------------------------------------------------


def test_a_tiff_of_12_bits_has_its_own_white(tmp_path):
    values = [0, 4095, 2048, 15, 16, 4080]
    packed = bytes.fromhex("000fff 80000f 010ff0")  # two values in three bytes
    tags = [(256, 6), (257, 1), (258, 12), (259, 1), (262, 1), (273, 134), (277, 1), (278, 1), (279, len(packed))]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags)
    (tmp_path / "a.tif").write_bytes((content + bytes(4)).ljust(134, b"\0") + packed)
    assert one(tmp_path / "a.tif")[0, 0].tolist() == [value >> 4 for value in values]


def test_12_bits_in_16_are_refused_until_white_is_told(tmp_path):
    stored = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
    for name, number in itertools.product(("png", "tif"), range(3)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        Image.fromarray(stored // (number + 1)).save(folder / f"{number}.{name}")
        if number < 2:
            continue
        with pytest.raises(
            ValueError, match=r"0\.\w+ has pixels of 16 bits, all below 4096, .* white=4095 .* white=65535"
        ):
            ImageFolderReader(folder)
        for white, shift in ((4095, 4), (65535, 8)):  # one white for all, whatever each has for its largest
            frames = list(ImageFolderReader(folder, white=white))
            for divisor, frame in enumerate(frames, start=1):
                assert np.array_equal(frame[0], stored // divisor >> shift)
        Image.fromarray(np.full((6, 8), 5000, np.uint16)).save(folder / f"9.{name}")
        assert len(list(ImageFolderReader(folder))) == 4  # one bright picture tells that the others are dark
        with pytest.raises(ValueError, match=r"9\.\w+ must be .* within 0\.\.4095; got 5000"):
            list(ImageFolderReader(folder, white=4095))


def test_a_black_picture_of_16_bits_is_black(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    assert one(tmp_path / "a.png").max() == 0


def test_notes_about_the_largest_value_are_no_white(tmp_path):
    """``MaxSampleValue`` is of one picture, and ``sBIT`` of pixels that are scaled already."""
    array = np.full((4, 5), 0x8000, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(281, "H", 1, 0x8000, True)])
    assert one(tmp_path / "a.tif").max() == 0x80
    (tmp_path / "a.tif").unlink()
    png(tmp_path / "a.png", 16, GREY, [b"\x80\x08"], 1, (b"sBIT", b"\x0c"))
    assert one(tmp_path / "a.png").max() == 0x80


@pytest.mark.parametrize(
    ("array", "white"),
    [
        (np.arange(256, dtype=np.uint32).reshape(16, 16) << 24, 2**32 - 1),
        (np.arange(256, dtype=np.int32).reshape(16, 16), 255),
        (np.arange(256, dtype=np.int16).reshape(16, 16) * 4, 1023),
        (np.arange(256, dtype=np.float32).reshape(16, 16), 255),
        (np.arange(256, dtype=np.uint16).reshape(16, 16) * 2, 511.0),
    ],
)
def test_white_makes_pixels_of_any_depth_readable(tmp_path, array, white):
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert np.array_equal(one(tmp_path / "a.tif", white=white).ravel(), np.arange(256))


@pytest.mark.parametrize("white", [0, -1, float("nan"), float("inf"), "4095", True])
def test_refuses_what_is_no_white(tmp_path, white):
    Image.fromarray(noise(4, 5)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="white must be a number above 0, or None"):
        ImageFolderReader(tmp_path, white=white)


def test_white_is_refused_where_it_means_nothing(tmp_path):
    Image.fromarray(noise(4, 5)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="white is for grey of more than 8 bits; got 4095 for other pixels"):
        one(tmp_path / "a.png", white=4095)


# --- Animations -------------------------------------------------------------------------------------------------------


def animation(path, frames, **options):
    images = [Image.fromarray(frame) for frame in frames]
    if path.suffix == ".webp":
        options |= {"lossless": True}
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("suffix", ["gif", "png", "apng", "webp", "tif", "TIFF"])
def test_an_animation_is_a_clip(tmp_path, suffix):
    frames = np.stack([np.full((6, 8), 40 * number, np.uint8) for number in range(5)])
    frames[:, 2, 3] = 255
    options = {} if suffix.lower().startswith("tif") else {"duration": 50}
    path = animation(tmp_path / f"a.{suffix}", frames, **options)
    reader = AnimationReader(path)
    assert (reader.frame_shape, reader.frame_count) == ((1, 6, 8), 5)
    assert np.array_equal(np.stack(list(reader))[:, 0], frames)
    assert np.array_equal(np.stack(list(reader))[:, 0], frames)  # as often as one likes
    assert picture_kind(path) == "animation"
    if options:
        assert reader.frames_per_second == pytest.approx(20)
        assert reader.seconds == pytest.approx(0.25)
    else:
        assert reader.frames_per_second is reader.seconds is None
    whole = np.stack(list(AnimationReader(path, height=3, channels=3)))
    assert whole.shape == (5, 3, 3, 4)
    with pytest.raises(ValueError, match=r"max_pixels.*5 pictures of 6 x 8"):
        AnimationReader(path, max_pixels=5 * 48 - 1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_another_rate_drops_and_repeats_pictures(tmp_path, suffix):
    frames = np.stack([np.full((6, 8), 40 * number, np.uint8) for number in range(5)])
    path = animation(tmp_path / f"a.{suffix}", frames, duration=[100, 200, 100, 100, 300])
    for rate, expected in (
        (None, [0, 1, 2, 3, 4]),
        (10, [0, 1, 1, 2, 3, 4, 4, 4]),
        (5, [0, 1, 3, 4]),
        (2.5, [0, 3]),
        (1, [0]),
    ):
        reader = AnimationReader(path, frames_per_second=rate)
        assert [int(frame[0, 0, 0]) // 40 for frame in reader] == expected
        assert reader.frame_count == len(expected)
        assert reader.frames_per_second == pytest.approx(rate or 5 / 0.8)


def test_pictures_without_a_time_are_shown_for_a_tenth_of_a_second(tmp_path):
    frames = np.stack([np.full((6, 8), 40 * number, np.uint8) for number in range(4)])
    assert AnimationReader(animation(tmp_path / "a.gif", frames, duration=0)).seconds == pytest.approx(0.4)
    assert AnimationReader(animation(tmp_path / "b.gif", frames, duration=10)).seconds == pytest.approx(0.4)
    assert AnimationReader(animation(tmp_path / "c.gif", frames, duration=20)).seconds == pytest.approx(0.08)
    assert AnimationReader(animation(tmp_path / "d.gif", frames)).seconds == pytest.approx(0.4)


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_partial_pictures_are_laid_over_each_other_as_a_player_does(tmp_path, suffix, disposal):
    """A square that moves over a part of the picture, with holes; FFmpeg is the other opinion."""
    images = []
    for number in range(6):
        picture = np.zeros((12, 16, 4), np.uint8)
        picture[2:8, number : number + 6] = [60 * (number % 4), 200 - 30 * number, 90, 255]
        picture[4:6, number + 2 : number + 4, 3] = 0
        images.append(Image.fromarray(picture))
    path = tmp_path / f"a.{suffix}"
    settings = {"disposal": disposal} if suffix == "gif" else {"disposal": min(disposal, 2), "blend": disposal % 2}
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, optimize=False, **settings)
    if suffix == "png" and disposal == 3:  # which Pillow reads wrongly
        with pytest.raises(ValueError, match=r"a\.png must be .*blend over, dispose to previous"):
            AnimationReader(path)
        return
    frames = np.stack(list(AnimationReader(path, channels=3)))
    assert frames.std() > 10
    assert np.array_equal(frames, np.stack(list(VideoReader(path, channels=3))))


def test_the_first_picture_of_a_png_may_be_apart(tmp_path):
    frames = np.stack([np.full((6, 8), 40 * number, np.uint8) for number in range(4)])
    path = animation(tmp_path / "a.png", frames, default_image=True)
    assert [int(frame[0, 0, 0]) for frame in AnimationReader(path)] == [40, 80, 120]
    path = animation(tmp_path / "b.png", frames[:2], default_image=True)
    assert picture_kind(path) == "picture"


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", ">u2", ">f4"])
@pytest.mark.parametrize("big", [False, True])
def test_a_stack_of_any_depth_is_a_clip(tmp_path, dtype, big):
    expected = noise(7, 9, 13)
    array = {"u1": expected, "u2": expected * np.uint16(257), "f4": expected / np.float32(255)}[dtype[-2:]]
    order = ">" if ">" in dtype else "<"
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=order, bigtiff=big, photometric="minisblack")
    if big and order == ">":
        with pytest.raises(ValueError, match="TIFF of pixels that are not read"):
            AnimationReader(tmp_path / "a.tif")
        return
    assert np.array_equal(np.stack(list(AnimationReader(tmp_path / "a.tif")))[:, 0], expected)


def test_thumbnails_of_a_tiff_are_no_frames(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for kind, size in ((1, 4), (0, 8), (1, 2)):
            writer.write(np.full((size, size), 10 + kind, np.uint8), subfiletype=kind, metadata=None, contiguous=False)
    assert picture_kind(path) == "picture"
    assert one(path).shape == (1, 8, 8)
    assert one(path).max() == 10


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("TCYX", (3, 2, 8, 9), "got 2 channels, 1 depths and 3 times"),
        ("TZYX", (3, 2, 8, 9), "got 1 channels, 2 depths and 3 times"),
        ("CYX", (2, 8, 9), "got 2 channels"),
        ("TYX", (3, 8, 9), None),
        ("ZYX", (3, 8, 9), None),
    ],
)
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_and_depths_of_a_microscope_are_no_times(tmp_path, axes, shape, message, kind):
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, noise(*shape), metadata={"axes": axes}, photometric="minisblack", **{kind: True})
    if message is None:
        assert AnimationReader(path).frame_count == shape[0]
    else:
        with pytest.raises(ValueError, match=f"pages must be the times of a film; {message}"):
            AnimationReader(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: Image.fromarray(noise(6, 8)).save(path, "PNG"),
            "must be an animation or a film; got a single",
        ),
        (
            lambda path: Image.fromarray(noise(6, 8)).save(path, "GIF"),
            "must be an animation or a film; got a single",
        ),
        (lambda path: path.write_bytes(b"GIF89a"), "must be a complete picture"),
        (lambda path: path.write_text("no picture"), "must be a complete picture .*: it is none of these, or damaged"),
        (
            lambda path: tifffile.imwrite(path, np.ones((3, 4, 9)), photometric="minisblack"),
            "TIFF of pixels that are not read",
        ),
    ],
)
def test_refuses_what_is_no_animation(tmp_path, make, message):
    make(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        AnimationReader(tmp_path / "a")


def test_pages_of_several_sizes_are_no_film(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for size in (8, 8, 6):
            writer.write(np.zeros((size, 9), np.uint8), metadata=None, contiguous=False)
    with pytest.raises(ValueError, match=r"pictures of one size; got 8 x 9 first and 6 x 9 .* as number 2"):
        AnimationReader(tmp_path / "a.tif")


def test_refuses_a_rate_for_what_has_none_and_others(tmp_path):
    path = animation(tmp_path / "a.tif", noise(3, 4, 5))
    with pytest.raises(ValueError, match=r"frames_per_second must be None for a TIFF, which has no rate.*a\.tif"):
        AnimationReader(path, frames_per_second=10)
    for rate in (0, -1, 1001, float("nan"), "10", True):
        with pytest.raises(ValueError, match="frames_per_second must be a number"):
            AnimationReader(path, frames_per_second=rate)
    with pytest.raises(ValueError, match=r"a\.tif: crop must be inside"):
        AnimationReader(path, crop=(0, 0, 5, 5))


def test_dark_stacks_need_a_white_too(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.linspace(0, 4095, 3 * 4 * 5).astype(np.uint16).reshape(3, 4, 5), photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of 16 bits, all below 4096"):
        AnimationReader(path)
    assert np.stack(list(AnimationReader(path, white=4095))).max() == 255


# --- Kinds of files ---------------------------------------------------------------------------------------------------


def test_the_content_tells_what_a_file_is(tmp_path):
    for name, form in (("a", "PNG"), ("b.jpg", "PNG"), ("c.txt", "JPEG"), ("d.avi", "WEBP"), ("e.npy", "TIFF")):
        Image.fromarray(noise(6, 8)).save(tmp_path / name, form)
        assert picture_kind(tmp_path / name) == "picture"
    for name, content in (
        ("f.png", b"no picture"),
        ("g", b""),
        ("h.webp", b"RIFF\0\0\0\0AVI LIST"),
        ("i", b"\0\0\0 ftyp"),
    ):
        (tmp_path / name).write_bytes(content)
        assert picture_kind(tmp_path / name) is None
    (tmp_path / "j.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"j\.png must be a complete picture"):
        picture_kind(tmp_path / "j.png")


def test_a_jpeg_with_a_second_picture_inside_is_one_picture(tmp_path):
    """Phones and stereo cameras write such files."""
    images = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (50, 200)]
    images[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=images[1:])
    assert picture_kind(tmp_path / "a.jpg") == "picture"
    assert abs(int(one(tmp_path / "a.jpg").mean()) - 50) <= 1


def test_pictures_without_a_suffix_are_found(tmp_path):
    for number in (1, 2, 10):
        Image.fromarray(np.full((6, 8), number, np.uint8)).save(tmp_path / f"frame{number}", "PNG")
        Image.fromarray(np.full((6, 8), 100 + number, np.uint8)).save(tmp_path / f"scan.{number:03}", "TIFF")
    Image.fromarray(np.full((6, 8), 5, np.uint8)).save(tmp_path / "frame5.PNG")
    (tmp_path / "README").write_text("no picture")
    Image.fromarray(noise(6, 8)).save(tmp_path / ".hidden", "PNG")
    assert values(ImageFolderReader(tmp_path)) == [1, 2, 5, 10, 101, 102, 110]


def test_a_folder_of_pictures_and_animations_is_refused(tmp_path):
    Image.fromarray(noise(6, 8)).save(tmp_path / "a.png")
    for suffix in ("gif", "webp", "tif"):
        path = animation(tmp_path / f"b.{suffix}", noise(3, 6, 8))
        message = rf"must have single pictures in it; got the animation b\.{suffix} of 3"
        with pytest.raises(ValueError, match=message):
            ImageFolderReader(tmp_path)
        path.unlink()
    assert ImageFolderReader(tmp_path).frame_count == 1


def test_a_link_to_nothing_is_a_missing_frame(tmp_path):
    Image.fromarray(noise(6, 8)).save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"2\.png must be an existing file; got a link to nothing"):
        ImageFolderReader(tmp_path)


def test_a_name_of_any_bytes_works_and_can_be_told(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    for number in range(2):
        with open(os.path.join(folder, b"\xff%d\n.PNG" % number), "wb") as file:
            Image.fromarray(np.full((6, 8), 10 * number, np.uint8)).save(file, "PNG")
    reader = ImageFolderReader(os.fsdecode(folder))
    assert values(reader) == [0, 10]
    reader.paths[1].write_bytes(b"")
    with pytest.raises(ValueError, match="must be a complete picture") as error:
        ImageFolderReader(os.fsdecode(folder))
    str(error.value).encode("utf-8")
    assert r"caf\udce9/\udcff1\n.PNG must be" in str(error.value)


# --- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif"])
def test_a_cut_picture_is_refused_before_the_first_is_read(tmp_path, suffix):
    for number in range(5):
        Image.fromarray(noise(60, 80, seed=number)).save(tmp_path / f"{number}.{suffix}")
    path = tmp_path / f"3.{suffix}"
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=rf"3\.{suffix} must be a complete picture"):
            ImageFolderReader(tmp_path)
    path.write_bytes(content)
    assert ImageFolderReader(tmp_path).frame_count == 5


def test_whole_pictures_are_not_taken_for_cut_ones(tmp_path):
    """What follows a picture, and what some writers leave out, is no damage."""
    for number, suffix in enumerate(("png", "jpg", "gif", "tif", "webp", "bmp")):
        path = tmp_path / f"{number}.{suffix}"
        Image.fromarray(np.full((6, 8), 100, np.uint8)).save(path)
        path.write_bytes(path.read_bytes() + bytes(100_000))
    without_end = (tmp_path / "2.gif").read_bytes().rstrip(b"\0")[:-1]
    (tmp_path / "2.gif").write_bytes(without_end)
    assert all(abs(value - 100) <= 1 for value in values(ImageFolderReader(tmp_path)))


def test_damage_in_the_middle_of_a_folder_names_the_file(tmp_path):
    for number in range(5):
        Image.fromarray(noise(60, 80, seed=number)).save(tmp_path / f"{number}.png")
    content = bytearray((tmp_path / "3.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "3.png").write_bytes(content)
    frames = iter(ImageFolderReader(tmp_path))
    for _ in range(3):
        next(frames)
    with pytest.raises(ValueError, match=r"3\.png must be a complete picture"):
        next(frames)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_a_cut_animation_is_refused_before_the_first_frame(tmp_path, suffix):
    path = animation(tmp_path / f"a.{suffix}", noise(6, 30, 40))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    with pytest.raises(ValueError, match=rf"a\.{suffix}"):
        AnimationReader(path)


def test_files_are_closed(tmp_path):
    path = animation(tmp_path / "a.gif", noise(3, 6, 8))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    frames = iter(AnimationReader(path))
    next(frames)
    frames.close()
    with pytest.raises(ValueError, match="single pictures"):
        ImageFolderReader(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.gif"):
        PictureFile(path).pixels(2)
    assert picture_files(tmp_path) == [path]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the one that an error left to the collector
