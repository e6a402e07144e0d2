import pytest
import torch

from torchrsm.streams import BouncingBalls, MovingMNIST, Turns, check_stream
from torchrsm.streams.share import share_of
from torchrsm.streams.turns import frame_shapes


def balls(batch_size=3, resolution=8, **settings):
    return BouncingBalls(batch_size, resolution=resolution, sequence_length=5, **settings)


def turns():
    return Turns([balls(), balls(resolution=12, first_sequence=100), balls(resolution=10, first_sequence=200)])


def test_streams_take_turns_and_each_goes_on_where_it_was():
    stream, alone = turns(), balls(resolution=12, first_sequence=100)
    assert frame_shapes(stream) == ((1, 8, 8), (1, 12, 12), (1, 10, 10))
    assert frame_shapes(alone) == ((1, 12, 12),)
    sizes = []
    for _ in range(9):
        expected = stream.frame_shape
        batch = next(stream)
        assert tuple(batch.frames.shape[1:]) == expected
        sizes.append(batch.frames.shape[-1])
        if sizes[-1] == 12:
            for mine, theirs in zip(batch[:3], next(alone)[:3], strict=True):
                assert torch.equal(mine, theirs)
    assert sizes == [8, 12, 10] * 3


def test_keeps_the_contract():
    check_stream(turns(), 31)


def test_the_contract_finds_a_stream_that_does_not_start():
    class Sleepy(BouncingBalls):
        def __next__(self):
            return super().__next__()._replace(starts=torch.zeros(3, dtype=torch.bool))

    second = Sleepy(3, resolution=12, sequence_length=5, first_sequence=100)
    with pytest.raises(ValueError, match="batch 1: starts must be true on the first batch"):
        check_stream(Turns([balls(), second]), 4)


def test_shares_side_by_side_are_the_whole():
    whole, parts = turns(), [share_of(turns(), rank, 3) for rank in range(3)]
    for _ in range(12):
        batch, pieces = next(whole), [next(part) for part in parts]
        assert torch.equal(batch.frames, torch.cat([piece.frames for piece in pieces]))
        assert torch.equal(batch.index, torch.cat([piece.index for piece in pieces]))
    assert parts[1].state_dict() == whole.state_dict()
    mixed = share_of(Turns([balls(batch_size=4), MovingMNIST(4, resolution=28, sequence_length=5)]), 1, 2)
    assert [tuple(next(mixed).frames.shape) for _ in range(2)] == [(2, 1, 8, 8), (2, 1, 28, 28)]


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        (list, "streams must be 1 or more; got none"),
        (lambda: [balls(), balls(seed=1)], r"streams must have frames of different shapes; got \(1, 8, 8\), \(1, 8"),
        (lambda: [balls(), balls(2, 12)], "streams must have one batch_size; got 3, 2"),
    ],
)
def test_refuses_streams_that_cannot_take_turns(streams, message):
    with pytest.raises(ValueError, match=message):
        Turns(streams())


def test_a_foreign_position_is_refused_and_changes_nothing():
    stream = turns()
    for _ in range(4):
        next(stream)
    before = stream.state_dict()
    one, two, three = before["streams"]
    for changes, message in (
        ({"streams": [one, two]}, "number of streams must be 3 as in this stream; got 2"),
        ({"streams": [two, two, three]}, "resolution must be 8 as in this stream; got 12"),
        ({"streams": [{**one, "step": 0}, two, one]}, "resolution must be 10 as in this stream; got 8"),
        ({"turn": 3}, r"turn must be an integer in 0\.\.2; got 3"),
        ({"stream": "BouncingBalls"}, "stream must be 'Turns' as in this stream; got 'BouncingBalls'"),
        ({"colour": 1}, r"unknown entries \['colour'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.load_state_dict({**before, **changes})
        assert stream.state_dict() == before
