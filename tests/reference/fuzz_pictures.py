"""Read pictures and animations that are damaged at random: each is read or refused, in little time and memory."""

import functools
import io

import numpy as np
from PIL import Image

from torchrsm.streams import AnimationReader, ImageFolderReader
from torchrsm.streams.picture_file import PictureFile, picture_kind

MOST_PIXELS = 2**18


def pictures(folder):
    """Return a call that reads a picture or an animation that may be damaged."""

    def call(random):
        path = folder / f"a{random.choice(['.png', '.tif', '.GIF', ''])}"
        path.write_bytes(_damaged(random, whole_files()))
        try:
            return _read(random, path)
        finally:
            path.unlink()

    return call


def _read(random, path):
    white = random.choice(np.array([None, None, None, 4095, 1.5], object))
    options = {"channels": int(random.choice([1, 3])), "max_pixels": MOST_PIXELS, "white": white}
    if random.random() < 0.3:
        options |= {"height": int(random.integers(1, 20)), "crop": random.choice(["square", None])}
    kind = picture_kind(path)
    if kind is None:
        return "no picture"
    if kind == "animation":
        rate = 20 if random.random() < 0.3 else None
        reader = AnimationReader(path, frames_per_second=rate, **options)
    else:
        reader = ImageFolderReader(path.parent, **options)
    for number, frame in enumerate(reader):
        assert frame.dtype == np.uint8
        assert frame.shape == reader.frame_shape
        if number > 20:
            break
    if kind == "picture":
        with PictureFile(path, white) as file:
            assert file.pixels(0).shape[:2] == file.size(0)
    return "read"


@functools.cache
def whole_files():
    """Return small files of every kind."""
    random = np.random.default_rng(0)
    grey = Image.fromarray(random.integers(0, 256, (9, 12), dtype=np.uint8))
    colour = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    alpha = Image.fromarray(random.integers(0, 256, (9, 12, 4), dtype=np.uint8))
    deep = Image.fromarray(random.integers(0, 65536, (9, 12), dtype=np.uint16))
    floating = Image.fromarray(random.random((9, 12), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        *((image, {"format": "PNG", "exif": exif}) for image in (grey, colour, alpha, deep, colour.quantize(9))),
        *((grey.convert("1"), {"format": form}) for form in ("PNG", "BMP", "TIFF", "GIF")),
        *((image, {"format": "JPEG", "exif": exif}) for image in (grey, colour, colour.convert("CMYK"))),
        *((image, {"format": "BMP"}) for image in (grey, colour, alpha)),
        *((image, {"format": "WEBP", "lossless": bool(i)}) for i, image in enumerate((colour, alpha))),
        *((image, {"format": "TIFF", "exif": exif}) for image in (grey, colour, alpha, deep, floating)),
        *(
            (deep, {"format": "TIFF", "compression": packed})
            for packed in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
        ),
        (colour, {"format": "TIFF", "compression": "jpeg"}),
        (colour.quantize(9), {"format": "GIF"}),
    ]
    series = [Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(4)]
    kinds += [(series[0], {"format": form, "save_all": True, "append_images": series[1:]})
              for form in ("PNG", "GIF", "WEBP", "TIFF")]  # fmt: skip
    files = []
    for image, options in kinds:
        content = io.BytesIO()
        image.save(content, **options)
        files.append(content.getvalue())
    return files


def _damaged(random, files):
    """Return one of the files: cut, changed, joined with another, or as it is."""
    content = bytearray(files[random.integers(len(files))])
    choice = random.integers(7)
    if choice == 0:
        return content[: random.integers(len(content) + 1)]
    if choice in (1, 2, 3):
        # Two of three times the changes are near the beginning or the end, where the headers are.
        near = (0, len(content)) if choice == 1 else (0, min(100, len(content)))
        if choice == 3:
            near = (max(0, len(content) - 250), len(content))
        for place in random.integers(*near, size=random.integers(1, 9)):
            content[place] = random.integers(256) if random.random() < 0.5 else content[place] ^ 1 << random.integers(8)
    elif choice == 4:
        other = files[random.integers(len(files))]
        content[random.integers(len(content)) :] = other[random.integers(len(other)) :]
    elif choice == 5:
        place = random.integers(len(content))
        content[place : place + random.integers(0, 20)] = random.bytes(random.integers(0, 20))
    return content
