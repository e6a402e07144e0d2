import math

import numpy as np
import pytest
import torch

from torchrsm.streams import BouncingBalls, VariedBalls, bouncing_ball_sequences, check_stream

SEED = 7
SMALL = {"resolution": 12, "sequence_length": 6}


def worlds(stream, sequences):
    """Number, radius and speed of the balls of the first sequences, as they are placed."""
    positions, velocities, radii = stream._place(np.arange(sequences))
    counts = (positions[..., 0] < 10).sum(1)
    return counts, radii, np.sqrt((velocities**2).sum((1, 2))) / 0.5


def test_each_sequence_draws_its_world_from_the_whole_ranges():
    stream = VariedBalls(1, balls=(2, 6), radius=(0.7, 1.5), speed=(0.5, 2.0), seed=SEED)
    counts, radii, speeds = worlds(stream, 4000)
    assert np.bincount(counts, minlength=7)[2:].min() > 4000 / 5 * 0.85
    assert set(counts) == {2, 3, 4, 5, 6}
    for drawn, low, high in ((radii, 0.7, 1.5), (speeds, 0.5, 2.0)):
        where = np.sort((drawn - low) / (high - low))
        assert where[0] >= -1e-12
        assert where[-1] <= 1 + 1e-12
        assert np.abs(where - np.linspace(0, 1, 4000)).max() < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov
    drawn = np.stack([counts, radii, speeds])
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.06  # one is drawn without a look at the others


def test_a_range_of_one_world_is_that_world():
    one = VariedBalls(3, balls=(3, 3), radius=(1.2, 1.2), speed=(1.0, 1.0), seed=SEED)
    plain = BouncingBalls(3, seed=SEED)
    for _ in range(120):
        for mine, theirs in zip(next(one)[:3], next(plain)[:3], strict=True):
            assert torch.equal(mine, theirs)


def test_a_sequence_of_a_mixture_is_one_of_its_own_world():
    stream = VariedBalls(4, seed=SEED, sequence_length=12, dephased=False)
    counts, radii, speeds = worlds(stream, 4)
    played = torch.stack([next(stream).frames for _ in range(12)], 1)
    for number in range(4):
        world = {"balls": int(counts[number]), "radius": float(radii[number]), "sequence_length": 12}
        alone = bouncing_ball_sequences([number], seed=SEED, speed=float(speeds[number]), **world)
        torch.testing.assert_close(played[number], alone.frames[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("balls", "radius"), [((6, 6), 1.5), ((2, 2), 2.8), ((4, 4), 1.99), ((9, 9), 1.32)], ids=str)
def test_the_fullest_worlds_have_all_their_balls(balls, radius):
    stream = VariedBalls(1, balls=balls, radius=(radius, radius), seed=SEED)
    positions, _, _ = stream._place(np.arange(300))
    apart = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1) + 100 * np.eye(balls[1])
    assert positions.min() >= radius
    assert positions.max() <= 10 - radius
    assert apart.min() >= 2 * radius - 1e-12


def test_balls_without_a_place_are_left_out(monkeypatch):
    monkeypatch.setattr("torchrsm.streams.varied_balls.LARGEST_SHARE", 1.0)
    stream = VariedBalls(1, balls=(3, 3), radius=(3.0, 3.0), seed=SEED)  # two at most, in opposite corners
    counts, _, speeds = worlds(stream, 5)
    assert ((counts == 1) | (counts == 2)).all()
    assert speeds.min() >= 0.5
    assert next(stream).frames.max() > 0.9


def test_no_sequence_is_played_twice_and_seeds_differ():
    first, second = (worlds(VariedBalls(1, seed=seed), 500)[1] for seed in (0, 1))
    assert len(np.unique(first)) == 500
    assert not np.isin(first, second).any()


@pytest.mark.parametrize("settings", [{}, {"batch_size": 5, "dephased": False, "first_sequence": 9}], ids=str)
def test_keeps_the_contract(settings):
    check_stream(VariedBalls(**{"batch_size": 7, "seed": SEED, **SMALL, **settings}), 20)


def test_a_part_is_played_as_in_the_whole():
    whole, divided = VariedBalls(5, seed=SEED, **SMALL), VariedBalls(5, seed=SEED, **SMALL)
    part = divided.part(1, 3)
    for _ in range(15):
        for mine, theirs in zip(next(part)[:3], next(whole)[:3], strict=True):
            assert torch.equal(mine, theirs[1:4])
    assert part.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balls": (0, 3)}, "balls must be an integer of at least 1; got 0"),
        ({"balls": (4, 3)}, "balls must be the smallest and the largest, in this order; got 4 and 3"),
        ({"balls": 3}, "balls must be two numbers, the smallest and the largest; got 3"),
        ({"radius": (0.7, 5.0)}, "radius must be a number above 0 and below 5; got 5.0"),
        ({"radius": (0.7, math.nan)}, "radius must be a number above 0 and below 5; got nan"),
        ({"speed": (0, 1)}, "speed must be a number above 0 and at most 10; got 0"),
        ({"speed": (2.0, 1.0)}, "speed must be the smallest and the largest, in this order; got 2 and 1"),
        (
            {"balls": (2, 8)},
            "the most balls of the largest radius must cover at most 50% of the box; got 57% with 8 balls",
        ),
    ],
    ids=str,
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        VariedBalls(1, **settings)


def test_refuses_the_position_of_other_worlds():
    position = VariedBalls(2, seed=SEED).state_dict()
    with pytest.raises(ValueError, match=r"radius must be \[0.7, 1.4\] as in this stream; got \[0.7, 1.5\]"):
        VariedBalls(2, seed=SEED, radius=(0.7, 1.4)).load_state_dict(position)
