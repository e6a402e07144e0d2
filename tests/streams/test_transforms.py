import numpy as np
import pytest
import torch

from torchrsm.streams import ArrayStream, BouncingBalls, Pad, check_stream


def array_stream(batch_size=2):
    return ArrayStream(np.random.default_rng(0).random((3, 4, 5, 6)), batch_size)


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_pad_keeps_the_contract(margin):
    check_stream(Pad(array_stream(), margin), 30)
    check_stream(Pad(Pad(BouncingBalls(3, sequence_length=10, resolution=8), margin), 1, value=1), 30)


def test_pad_puts_a_wall_around_the_frames():
    plain, padded = array_stream(), Pad(array_stream(), 2)
    assert (padded.batch_size, padded.frame_shape) == (2, (1, 9, 10))
    for _ in range(6):
        inside, batch = next(plain), next(padded)
        assert torch.equal(batch.frames[:, :, 2:-2, 2:-2], inside.frames)
        assert torch.equal(batch.starts, inside.starts)
        assert torch.equal(batch.index, inside.index)
        wall = torch.ones(9, 10, dtype=torch.bool)
        wall[2:-2, 2:-2] = False
        assert (batch.frames[:, :, wall] == 0.5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 3}, "margin must be 2 as in this stream; got 3"),
        ({"value": 1.0}, "value must be 0.5 as in this stream; got 1.0"),
        ({"padded": {"stream": "Pad"}}, "stream must be 'ArrayStream' as in this stream; got 'Pad'"),
        ({"padded": None}, "padded must be a position; got None"),
        ({"step": 3}, r"unknown entries \['step'\]"),
    ],
)
def test_pad_refuses_a_foreign_position(changes, message):
    stream = Pad(array_stream(), 2)
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict({**stream.state_dict(), **changes})


@pytest.mark.parametrize(
    ("margin", "value", "message"),
    [
        (-1, 0.5, r"margin must be an integer in 0\.\.4096; got -1"),
        (1.5, 0.5, r"margin must be an integer in 0\.\.4096; got 1.5"),
        (1, 1.5, r"value must be a number in 0\.\.1; got 1.5"),
        (1, float("nan"), r"value must be a number in 0\.\.1; got nan"),
    ],
)
def test_pad_refuses_bad_settings(margin, value, message):
    with pytest.raises(ValueError, match=message):
        Pad(array_stream(), margin, value)


@pytest.mark.parametrize("stream", [None, 5, "balls", torch.zeros(2, 1, 4, 4), [1, 2]])
def test_pad_refuses_what_is_no_stream(stream):
    with pytest.raises(ValueError, match="stream must be a stream of frames; got"):
        Pad(stream, 1)


def test_pad_refuses_borders_beyond_all_pictures():
    with pytest.raises(ValueError, match=r"margin must be an integer in 0\.\.4096; got 4097"):
        Pad(array_stream(), 4097)
    for value in (None, "0.5", True, -0.1, 10**400):
        with pytest.raises(ValueError, match=r"value must be a number in 0\.\.1; got"):
            Pad(array_stream(), 1, value)
    assert next(Pad(array_stream(), 1, np.float32(0.25))).frames[0, 0, 0, 0] == 0.25


@pytest.mark.parametrize("position", [None, 5, "Pad", []])
def test_pad_refuses_what_is_no_position(position):
    with pytest.raises(ValueError, match="saved position: must be a mapping; got"):
        Pad(array_stream(), 2).load_state_dict(position)
