"""Read arrays and files of arrays that are made at random, most of them wrong: each is read rightly or refused."""

import io

import numpy as np
import torch

from torchrsm.streams import load_frames, open_frames

SIZES = (0, 1, 1, 2, 3, 3, 4, 5, 7, 16)
TYPES = (
    "u1",
    "f4",
    "u1",
    "f4",
    "?",
    "f2",
    "f8",
    ">f4",
    "g",
    "i1",
    "u2",
    "i8",
    ">u4",
    "c8",
    "O",
    "U3",
    "S2",
    "M8[s]",
    "V5",
)
RECORD = np.dtype([("red", "u1"), ("green", "f4")])


def arrays(folder):
    """Return a call that reads a random array, from memory or from a file that may be damaged."""

    def call(random):
        array = _array(random)
        layout = _layout(random, array.ndim)
        if random.random() < 0.4:
            return _read_memory(random, array, layout)
        return _read_file(random, array, layout, folder)

    return call


def _read_memory(random, array, layout):
    source = array
    choice = random.integers(6)
    if choice == 0 and array.size < 500:
        source = array.tolist()
    elif choice == 1 and array.dtype.kind in "fub" and array.dtype.isnative and array.dtype.char in "?Befd":
        source = torch.from_numpy(array.copy())
        source = source.bfloat16() if random.random() < 0.3 else source.requires_grad_(source.is_floating_point())
    elif choice == 2:
        source = np.asfortranarray(array)
    elif choice == 3 and array.ndim:
        source = array[::-1]
    elif choice == 4:
        source = random.choice(np.array([None, 5, "", b"x", {}, [], [[1], [1, 2]], object], object))
    frames = load_frames(source, layout=layout)
    _check(frames.numpy())
    return "read"


def _read_file(random, array, layout, folder):
    content = io.BytesIO()
    packed = random.integers(4)
    with np.errstate(all="ignore"):
        if packed == 0:
            np.savez(content, frames=array)
        elif packed == 1:
            np.savez_compressed(content, a=array, **{"b": np.arange(3)} if random.random() < 0.3 else {})
        else:
            np.save(content, array)
    path = folder / random.choice(["a.npy", "a.npz", "a", "a.NPY"])
    path.write_bytes(_damaged(random, content.getvalue()))
    source = f"{path}:a" if random.random() < 0.2 else path
    if random.random() < 0.5:
        _check(load_frames(source, layout=layout).numpy())
    else:
        frames = open_frames(source, layout)
        sequence = int(random.integers(frames.shape[0]))
        first, last = sorted(int(time) for time in random.integers(frames.shape[1] + 1, size=2))
        _check(frames.read(sequence, first, last)[None])
        steps = frames.read_bytes(sequence, first, last)
        assert steps.dtype == np.uint8
        assert steps.shape == (last - first, *frames.shape[2:])
    return "read"


def _check(frames):
    assert frames.dtype == np.float32
    assert frames.ndim == 5
    assert frames.size == 0 or (frames.min() >= 0 and frames.max() <= 1)


def _array(random):
    dimensions = int(random.choice([0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6]))
    sizes = SIZES if random.random() < 0.2 else SIZES[1:]
    shape = [int(random.choice(sizes)) for _ in range(dimensions)]
    kind = TYPES[random.integers(len(TYPES) if random.random() < 0.5 else 4)]
    dtype = RECORD if kind == "V5" else np.dtype(kind)
    array = random.random(shape)
    if random.random() < 0.2:
        array = (array - 0.5) * 10.0 ** random.integers(-2, 60)
    if random.random() < 0.1 and array.size:
        array.flat[random.integers(array.size)] = random.choice([np.nan, np.inf, -np.inf, -0.0, 1.0000001])
    if dtype.kind in "iu":
        array = np.clip(np.nan_to_num(array, posinf=9, neginf=-9) * 255, -100, 255)
    if dtype.kind in "OSUMV":
        return np.zeros(shape, dtype)
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(dtype)


def _layout(random, dimensions):
    choice = random.random()
    if choice < 0.5:
        return None
    if choice < 0.9:
        others = [str(letter) for letter in random.permutation(list("ntc"))][: max(0, dimensions - 2)]
        return "".join(str(letter) for letter in random.permutation(["h", "w", *others]))
    return random.choice(np.array(["", "hw", "nthwx", 5, "NTHW", b"thw", "tthw", ("t", "h", "w")], object))


def _damaged(random, content):
    """Return bytes cut, changed, filled up or left as they are."""
    content = bytearray(content)
    choice = random.integers(6)
    if choice == 0:
        return content[: random.integers(len(content) + 1)]
    if choice in (1, 2):
        # Half of the changes are in the header, where most is decided.
        end = len(content) if choice == 1 else min(128, len(content))
        for place in random.integers(end, size=random.integers(1, 9)):
            content[place] = random.integers(256) if random.random() < 0.5 else content[place] ^ 1 << random.integers(8)
    elif choice == 3:
        place = random.integers(len(content))
        content[place:place] = random.bytes(random.integers(1, 50))
    return content
