import pytest
import torch

from torchrsm.streams import ArrayStream, BouncingBalls, check_stream
from torchrsm.streams.share import Share, share_of


def balls():
    return BouncingBalls(6, resolution=10, sequence_length=7, seed=3, first_sequence=5)


def array():
    return ArrayStream(torch.rand(6, 9, 8, 8, generator=torch.Generator().manual_seed(0)), 6)


@pytest.mark.parametrize("make", [balls, array])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_parts_side_by_side_are_the_whole(make, ranks):
    whole, parts = make(), [share_of(make(), rank, ranks) for rank in range(ranks)]
    assert {part.batch_size for part in parts} == {6 // ranks}
    assert {part.frame_shape for part in parts} == {whole.frame_shape}
    for _ in range(9):
        expected, played = next(whole), [next(part) for part in parts]
        for name in ("frames", "starts", "index"):
            assert torch.equal(torch.cat([getattr(batch, name) for batch in played]), getattr(expected, name))
        assert all(part.state_dict() == whole.state_dict() for part in parts)
    position = whole.state_dict()
    again = share_of(make(), ranks - 1, ranks)
    again.load_state_dict(position)
    assert torch.equal(next(again).frames, next(whole).frames[-6 // ranks :])


@pytest.mark.parametrize("part", [balls().part(2, 3), Share(array(), 1, 4)])
def test_a_part_is_a_stream(part):
    check_stream(part, steps=9)


def test_a_part_of_a_part_and_of_a_stream_that_was_played():
    whole = balls()
    for _ in range(5):
        next(whole)
    part = whole.part(2, 4).part(1, 2)
    assert torch.equal(next(part).frames, next(whole).frames[3:5])


def test_streams_that_cannot_be_shared_out():
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of ranks, 4; got 6"):
        share_of(balls(), 0, 4)
    for first, count in ((-1, 2), (0, 0), (5, 2)):
        with pytest.raises(ValueError, match=rf"a part must be among the elements 0..5; got {count} from {first}"):
            balls().part(first, count)
        with pytest.raises(ValueError, match="a part must be among the elements"):
            Share(array(), first, count)
