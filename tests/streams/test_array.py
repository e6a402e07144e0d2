import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

import torchrsm.streams.array as array_module
from torchrsm.streams import ArrayStream, check_stream, load_frames, open_frames
from torchrsm.streams.array import ArrayReader
from torchrsm.streams.array_file import is_array_path
from torchrsm.streams.framing import Framing


def video(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# --- load_frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.save, np.savez, lambda path, array: np.savez(path, frames=array, labels=[1])])
@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 3, 2, 4, 5)])
def test_loads_what_was_saved(tmp_path, save, shape):
    array = video(*shape)
    path = tmp_path / ("video.npy" if save is np.save else "video.npz")
    save(path, array)
    for source in (path, str(path), array, torch.from_numpy(array)):
        frames = load_frames(source)
        assert frames.dtype == torch.float32
        assert np.array_equal(frames.numpy(), array if len(shape) == 5 else array[:, :, None])


def test_bytes_are_scaled():
    array = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    frames = load_frames(array)
    assert torch.equal(frames, (torch.arange(256) / 255).view(1, 1, 1, 16, 16))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_and_orders_are_converted(dtype):
    array = np.asfortranarray(video(2, 4, 4, 5).astype(dtype))[:, ::-1]
    assert np.array_equal(load_frames(array)[:, :, 0].numpy(), array.astype(np.float32))


def test_frames_are_a_copy():
    array = video(1, 2, 3, 4)
    frames = load_frames(array)
    array[:] = 0
    assert frames.min() > 0


def with_value(value):
    array = video(2, 4, 4, 5).astype(np.float64) * 0.5 + 0.25
    array[1, 2, 0, 3] = value
    return array


PLACE = "sequence 1, time 2, channel 0, row 0, column 3"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (video(4, 5), r"frames must have 3 to 5 axes, .*; got shape \[4, 5\]"),
        (video(2, 0, 4, 5), r"frames must not be empty; got shape \[2, 0, 4, 5\]"),
        (np.zeros((1, 2, 4, 4), dtype=np.int64), "floating-point in 0..1 or uint8 or bool; got int64"),
        (with_value(np.nan), f"frames must be finite; got nan at {PLACE}"),
        (with_value(-np.inf), f"frames must be finite; got -inf at {PLACE}"),
        (with_value(1.5), f"within 0..1; got minimum 0.25.*, maximum 1.5, first 1.5 at {PLACE}"),
        (with_value(-0.5), f"within 0..1; got minimum -0.5, maximum 0.7.*, first -0.5 at {PLACE}"),
    ],
    ids=["dimensions", "empty", "type", "nan", "infinity", "above", "below"],
)
def test_refuses_bad_frames(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        load_frames(array)
    np.save(tmp_path / "video.npy", array)
    with pytest.raises(ValueError, match=message.replace("frames", "video.npy")):
        load_frames(tmp_path / "video.npy")


def broken_files(folder):
    """Yield paths of files that are not arrays, each with a part of the message."""
    yield folder / "missing.npy", "got nothing at that path"
    yield folder, "got a folder"
    array = video(4, 5, 8, 8)
    for name, save in (("a.npy", np.save), ("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(folder / name, array)
        content = (folder / name).read_bytes()
        for size in (0, 3, 60, len(content) // 2, len(content) - 1):
            path = folder / f"{size}-{name}"
            path.write_bytes(content[:size])
            yield path, "must be a complete .npy or .npz file"
    text = folder / "text.npy"
    text.write_text("no array at all")
    yield text, "must be a complete .npy or .npz file"
    np.savez(folder / "two.npz", first=array, second=array)
    yield folder / "two.npz", r"must hold one array, or one named 'frames'; got \['first', 'second'\]"


def test_refuses_broken_files(tmp_path):
    for path, message in broken_files(tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            load_frames(path)
        assert str(path) in str(error.value)


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_never_unpickles(tmp_path):
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap()))
    objects = np.empty((1, 1, 1, 1), dtype=object)
    objects[0, 0, 0, 0] = Trap()
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", frames=objects)
    for name in ("plain.npy", "objects.npy", "objects.npz"):
        with pytest.raises(ValueError, match="without pickled objects"):
            load_frames(tmp_path / name)
    assert not Trap.sprung


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.float16, np.float32, np.float64, np.longdouble, ">f2", ">f4", ">f8"]
)
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_every_type_and_order_ends_in_the_same_frames(tmp_path, dtype, order):
    mask = np.random.default_rng(0).random((2, 4, 5, 6)) < 0.5
    array = (mask * 255).astype(np.uint8) if dtype is np.uint8 else mask.astype(dtype)
    array = np.asfortranarray(array) if order == "F" else array.repeat(2, 3)[..., ::2] if order == "strided" else array
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", array)
    for source in (array, tmp_path / "a.npy", tmp_path / "a.npz"):
        frames = load_frames(source)
        assert np.array_equal(frames[:, :, 0].numpy(), mask)
        assert frames.is_contiguous()


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.ones((2, 4, 5, 6), np.int64), "got int64 with values 1..1: convert masks to bool"),
        (np.full((2, 4, 5, 6), 200, np.int32), "got int32 with values 200..200: convert to uint8 if 255 is white"),
        (
            np.full((2, 4, 5, 6), 4000, np.uint16),
            "got uint16 with values 4000..4000: divide by the value of white",
        ),
        (np.full((2, 4, 5, 6), -1, np.int8), "got int8 with values -1..-1: divide by the value of white"),
        (np.full((2, 4, 5, 6), 200.0), "maximum 200, .*; divide by 255 if 255 is white"),
        (np.full((2, 4, 5, 6), 4000.0), "maximum 4000, .*; divide by the value of white"),
        (np.zeros((2, 4, 5, 6), complex), "got complex128"),
        (np.zeros((2, 4, 5, 6), "datetime64[s]"), "got datetime64"),
        (np.full((2, 4, 5, 6), "a"), "got <U1"),
        (np.zeros((2, 4, 5, 6), [("red", "u1"), ("green", "u1")]), r"got \[\('red'|without pickled objects"),
    ],
)
def test_refuses_other_types_and_says_what_to_do(tmp_path, array, hint):
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy"):
        with pytest.raises(ValueError, match=hint):
            load_frames(source)


def test_tensors_of_every_kind_are_read():
    frames = torch.rand(2, 4, 1, 5, 6)
    assert torch.equal(load_frames(frames.clone().requires_grad_()), frames)
    assert torch.equal(load_frames(frames.bfloat16()), frames.bfloat16().float())
    assert torch.equal(load_frames(frames.to(torch.float8_e4m3fn)), frames.to(torch.float8_e4m3fn).float())
    assert torch.equal(load_frames(frames.double().transpose(3, 4)), frames.transpose(3, 4))
    assert torch.equal(load_frames((frames > 0.5).to_sparse()), (frames > 0.5).float())
    assert torch.equal(load_frames((frames * 255).byte()), (frames * 255).byte() / 255)
    assert torch.equal(load_frames([*frames.requires_grad_()]), frames)  # a list of tensors
    assert torch.equal(load_frames(frames.tolist()), frames)


@pytest.mark.parametrize(
    "source",
    [
        None,
        7,
        {"frames": 1},
        {1, 2},
        object(),
        lambda: 0,
        [[1, 2], [3]],
        [torch.zeros(2), torch.zeros(3)],
        [],
        b"a.npy",
    ],
)
def test_refuses_what_is_no_array(source):
    with pytest.raises(ValueError, match="frames must"):
        load_frames(source)


def test_refuses_tensors_without_values_and_arrays_with_holes():
    with pytest.raises(ValueError, match="frames must be a path, an array, a tensor or a nested list"):
        load_frames(torch.zeros(2, 4, 5, 6, device="meta"))
    with pytest.raises(ValueError, match="some values are masked"):
        load_frames(np.ma.masked_less(video(2, 4, 5, 6), 0.5))


def test_alpha_lies_on_black():
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 4), dtype=np.uint8)
    expected = array[..., :3] / 255 * (array[..., 3:] / 255)
    frames = load_frames(array)
    assert frames.shape == (1, 3, 3, 8, 9)
    assert np.allclose(frames[0].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert load_frames(np.zeros((2, 3, 4, 8, 9))).shape == (2, 3, 4, 8, 9)  # channels in front are channels


def test_large_arrays_are_checked_and_read_in_parts(monkeypatch):
    monkeypatch.setattr(array_module, "_BLOCK_BYTES", 100)
    array = video(3, 5, 4, 6)
    assert np.array_equal(load_frames(array)[:, :, 0].numpy(), array)
    array[2, 4, 1, 5] = np.inf
    with pytest.raises(ValueError, match="got inf at sequence 2, time 4, channel 0, row 1, column 5"):
        load_frames(array)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_name_chooses_an_array_of_several(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, first=video(2, 4, 5, 6), second=np.zeros((1, 4, 5, 6)))
    with pytest.raises(ValueError, match=r"got \['first', 'second'\]: choose one by its name, such as .*npz:first"):
        load_frames(path)
    assert load_frames(f"{path}:second").shape[0] == 1
    assert open_frames(f"{path}:first").shape[0] == 2
    with pytest.raises(ValueError, match=r"must hold an array named 'third'; got \['first', 'second'\]"):
        load_frames(f"{path}:third")
    path.rename(tmp_path / "two.npz:second")  # a file of this name comes first
    with pytest.raises(ValueError, match="must hold one array"):
        load_frames(tmp_path / "two.npz:second")


def test_arrays_are_known_by_their_content(tmp_path):
    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        save(tmp_path / name, video(2, 4, 5, 6))
        (tmp_path / name).rename(tmp_path / "frames")
        assert is_array_path(tmp_path / "frames")
        assert load_frames(tmp_path / "frames").shape == (2, 4, 1, 5, 6)
    (tmp_path / "text").write_text("no array")
    assert not is_array_path(tmp_path / "text")
    assert not is_array_path(tmp_path)
    assert not is_array_path(tmp_path / "missing")
    assert is_array_path(tmp_path / "missing.NPY")
    assert is_array_path("a.npz:frames")


def test_no_message_quotes_an_option_of_another_library(tmp_path):
    objects = np.empty(3, object)
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", objects)
    (tmp_path / "long.npy").write_bytes(b"\x93NUMPY\x02\0" + (20_000).to_bytes(4, "little") + b"{" + b" " * 19_999)
    np.save(tmp_path / "zeros.npy", np.zeros(0))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=path.name) as error:
            load_frames(path)
        assert "allow_pickle" not in str(error.value)
        assert "max_header_size" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 5, 6), np.uint8))
    content = (tmp_path / "a.npy").read_bytes().replace(b"(1, 4, 5, 6), } ", b"(1, 9999999999999, 5, 6), } ")[:-12]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="its header tells of 299999999999970 bytes of values"):
        load_frames(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", content)
    with pytest.raises(ValueError, match="its header tells of 299999999999970 bytes of values"):
        load_frames(tmp_path / "bomb.npz")


def test_a_changed_byte_in_a_packed_file_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", video(2, 4, 5, 6))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="or is damaged"):
        load_frames(tmp_path / "a.npz")


# --- Parts of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("layout", ["nthw", "tnhw", "nthwc", "wthcn"])
def test_parts_of_a_file_are_those_of_the_whole(tmp_path, suffix, layout):
    stored = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 7, 3)[: len(layout)], dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    np.save(path, stored) if suffix == ".npy" else np.savez_compressed(path, frames=stored)
    whole = load_frames(path, layout=layout)
    frames = open_frames(path, layout)
    assert frames.shape == tuple(whole.shape)
    assert frames.dtype == np.uint8
    for sequence in range(frames.shape[0]):
        assert np.array_equal(frames.read(sequence), whole[sequence].numpy())
        assert np.array_equal(frames.read(sequence, 1, 3), whole[sequence, 1:3].numpy())
        assert np.array_equal(frames.read_bytes(sequence, 2), (whole[sequence, 2:] * 255).round().byte().numpy())
    assert len(frames.read(0, 2, 2)) == 0
    frames.read_bytes(0)[:] = 0  # the caller's to change
    assert np.array_equal(frames.read(0), whole[0].numpy())


def test_floating_point_and_alpha_become_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 256).reshape(1, 1, 16, 16))
    assert np.array_equal(open_frames(tmp_path / "a.npy").read_bytes(0).ravel(), np.arange(256))
    np.save(tmp_path / "b.npy", np.full((5, 16, 16, 4), [200, 100, 255, 51], np.uint8))
    frames = open_frames(tmp_path / "b.npy")
    assert frames.shape == (1, 5, 3, 16, 16)
    assert frames.read_bytes(0)[0, :, 0, 0].tolist() == [40, 20, 51]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2,), r"sequence must be an integer in 0\.\.1; got 2"),
        ((-1,), r"sequence must be an integer in 0\.\.1; got -1"),
        ((0, 5), r"first must be an integer in 0\.\.4; got 5"),
        ((0, 3, 2), r"last must be an integer in 3\.\.4; got 2"),
        ((0, 0, 5), r"last must be an integer in 0\.\.4; got 5"),
        ((0.0,), "sequence must be an integer"),
    ],
)
def test_refuses_parts_that_are_not_there(tmp_path, arguments, message):
    np.save(tmp_path / "a.npy", video(2, 4, 5, 6))
    with pytest.raises(ValueError, match=message):
        open_frames(tmp_path / "a.npy").read(*arguments)


def test_values_are_checked_when_a_file_is_opened_and_when_it_has_changed(tmp_path):
    path = tmp_path / "a.npy"
    array = video(2, 4, 5, 6)
    np.save(path, array)
    frames = open_frames(path)
    array[1, 3, 0, 0] = np.nan
    np.save(path, array)
    with pytest.raises(ValueError, match="got nan at sequence 1, time 3, channel 0, row 0, column 0"):
        frames.read(1, 2)
    with pytest.raises(ValueError, match="got nan at sequence 1, time 3"):
        open_frames(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="ends too early"):
        frames.read(0)
    path.unlink()
    with pytest.raises(OSError, match=r"a\.npy"):
        frames.read(0)


def test_a_part_of_a_large_file_takes_little_memory(tmp_path):
    shape = (100, 80, 64, 64)  # 33 MB
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, shape).flush()
    tracemalloc.start()
    try:
        frames = open_frames(tmp_path / "a.npy")
        assert frames.read(3, 70).shape == (10, 1, 64, 64)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


def test_a_packed_file_that_does_not_fit_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(array_module, "_LARGEST_PACKED", 500)
    for suffix, save in ((".npy", np.save), (".npz", np.savez_compressed)):
        save(tmp_path / f"a{suffix}", np.zeros((2, 4, 8, 8), np.uint8))
    assert open_frames(tmp_path / "a.npy").shape == (2, 4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"a\.npz must unpack to at most 500 bytes, .*got 512: save it as \.npy"):
        open_frames(tmp_path / "a.npz")


def test_a_reader_frames_each_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    frames = open_frames(tmp_path / "a.npy")
    reader = ArrayReader(frames, 1, Framing(height=4, channels=3))
    assert (reader.frame_shape, reader.frame_count, reader.frames_per_second) == ((3, 4, 3), 5, None)
    expected = array[1].reshape(5, 4, 2, 3, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    assert np.abs(np.stack(list(reader)) - expected).max() <= 1
    whole = list(ArrayReader(frames, 0, Framing(channels=3)))
    assert np.array_equal(np.stack(whole), array[0].transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"a\.npy: crop must be inside"):
        ArrayReader(frames, 0, Framing(crop=(0, 0, 9, 9)))
    with pytest.raises(ValueError, match=r"sequence must be an integer in 0\.\.1"):
        ArrayReader(frames, 2, Framing())
    np.save(tmp_path / "b.npy", np.zeros((2, 5, 2, 8, 6), np.uint8))
    with pytest.raises(ValueError, match="frames of 1 or 3 channels; got 2"):
        ArrayReader(open_frames(tmp_path / "b.npy"), 0, Framing())


# --- ArrayStream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dephased", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_keeps_the_contract(batch_size, dephased):
    check_stream(ArrayStream(video(5, 7, 2, 4, 6), batch_size, dephased=dephased), 100)


def test_keeps_the_contract_with_one_short_sequence():
    check_stream(ArrayStream(video(1, 1, 4, 6)), 10)


def test_plays_the_sequences_in_order_for_ever():
    array = video(5, 2, 4, 6)
    stream = ArrayStream(array, 2)
    assert (stream.batch_size, stream.frame_shape) == (2, (1, 4, 6))
    indices = []
    for step in range(12):
        batch = next(stream)
        assert batch.starts.tolist() == [step % 2 == 0] * 2
        assert np.array_equal(batch.frames[:, 0].numpy(), array[batch.index, step % 2])
        indices.append(batch.index.tolist())
    assert indices[::2] == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]


def test_a_changed_batch_does_not_change_the_array():
    stream = ArrayStream(video(1, 1, 4, 6))
    next(stream).frames.zero_()
    assert next(stream).frames.min() > 0


def test_refuses_the_position_of_other_frames():
    stream, other = ArrayStream(video(2, 4, 4, 5)), ArrayStream(video(2, 4, 4, 5, seed=1))
    with pytest.raises(ValueError, match="saved position: frames_sha256 must be"):
        stream.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="saved position: batch_size must be 1 as in this stream; got 2"):
        stream.load_state_dict(ArrayStream(video(2, 4, 4, 5), 2).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"dephased": 1}, "dephased must be True or False; got 1"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ArrayStream(video(1, 2, 3, 4), **settings)


def test_a_layout_says_what_the_shape_does_not():
    array = video(4, 3, 5, 6)
    with pytest.raises(ValueError, match="layout"):
        ArrayStream(array)
    assert ArrayStream(array, layout="tchw").frame_shape == (3, 5, 6)
    assert ArrayStream(array, layout="nthw").frame_shape == (1, 5, 6)
