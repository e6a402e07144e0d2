import pickle

import numpy as np
import pytest
import torch

from torchrsm.streams import ArrayStream, check_stream, load_frames


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
        (video(4, 5), r"frames must have 3 to 5 axes, .*; received shape \[4, 5\]"),
        (video(2, 0, 4, 5), r"frames must not be empty, received shape \[2, 0, 4, 5\]"),
        (np.zeros((1, 2, 4, 4), dtype=np.int64), "floating-point in 0..1 or uint8 or bool, received int64"),
        (with_value(np.nan), f"frames must be finite, received nan at {PLACE}"),
        (with_value(-np.inf), f"frames must be finite, received -inf at {PLACE}"),
        (with_value(1.5), f"within 0..1, received minimum 0.25.*, maximum 1.5, first 1.5 at {PLACE}"),
        (with_value(-0.5), f"within 0..1, received minimum -0.5, maximum 0.7.*, first -0.5 at {PLACE}"),
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
    yield folder / "missing.npy", "received nothing at that path"
    yield folder, "received a folder"
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
    yield folder / "two.npz", r"must hold one array, or one named 'frames', received \['first', 'second'\]"


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
    with pytest.raises(ValueError, match="saved position: batch_size must be 1 as in this stream, received 2"):
        stream.load_state_dict(ArrayStream(video(2, 4, 4, 5), 2).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, received 0"),
        ({"dephased": 1}, "dephased must be True or False, received 1"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ArrayStream(video(1, 2, 3, 4), **settings)
