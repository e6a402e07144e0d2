"""Balls whose future is not certain: how often chance acts, what it does, and that nothing else changes."""

import math

import numpy as np
import pytest
import torch

from torchrsm.streams import (
    BouncingBalls,
    KickedBalls,
    TwoWayBalls,
    bouncing_ball_sequences,
    check_stream,
    kicked_ball_sequences,
    two_way_ball_sequences,
)

SMALL = {"resolution": 12, "sequence_length": 9}


@pytest.mark.parametrize("make", [KickedBalls, TwoWayBalls])
def test_they_are_streams(make):
    check_stream(make(4, seed=3, **SMALL))


def turned(velocities):
    """Angles, -pi to pi, by which each velocity of ``[..., time, balls, 2]`` is turned to be the next one."""
    x, y = velocities[..., 0], velocities[..., 1]
    across = x[..., :-1, :] * y[..., 1:, :] - y[..., :-1, :] * x[..., 1:, :]
    along = x[..., :-1, :] * x[..., 1:, :] + y[..., :-1, :] * y[..., 1:, :]
    return torch.atan2(across, along)


def in_the_open(positions, radius, margin=1.0):
    """Where a ball met neither a wall nor, as there is no other, a ball between two frames."""
    inside = ((positions > radius + margin) & (positions < 10 - radius - margin)).all(-1)
    return inside[..., 1:, :] & inside[..., :-1, :]


def test_kicks_are_as_many_and_as_large_as_they_are_said_to_be():
    world = kicked_ball_sequences(400, seed=1, balls=1, kick_rate=0.2, kick_size=0.5, resolution=4)
    angle, free = turned(world.velocities), in_the_open(world.positions, 1.2)
    angles = angle[free]
    kicked = angles.abs() > 1e-9
    assert len(angles) > 5000
    assert kicked.double().mean() == pytest.approx(0.2, abs=0.015)
    half = (angles[kicked] / 2).tan()
    assert half.abs().max() <= 0.5 + 1e-9
    where = np.sort(half.numpy() + 0.5)
    assert np.abs(where - np.linspace(0, 1, len(where))).max() < 1.95 / math.sqrt(len(where))  # Kolmogorov-Smirnov


def test_no_kick_changes_the_energy():
    world = kicked_ball_sequences(20, seed=1, kick_rate=0.3, resolution=4)
    energy = world.velocities.square().sum((-1, -2))
    torch.testing.assert_close(energy, torch.full_like(energy, 0.25), rtol=1e-9, atol=0)


def test_without_kicks_it_is_the_plain_world():
    plain = bouncing_ball_sequences(3, seed=5)
    for mine, theirs in zip(kicked_ball_sequences(3, seed=5, kick_rate=0.0), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_a_kick_acts_from_the_next_frame_on():
    """Up to the first kick the world is the plain one, the frame at which its velocity changes included."""
    plain = bouncing_ball_sequences(40, seed=5, balls=1)
    kicked = kicked_ball_sequences(40, seed=5, balls=1, kick_rate=0.05)
    differ = (plain.velocities != kicked.velocities).any(-1).any(-1)
    assert differ[:, 1:].any(1).double().mean() > 0.9
    assert not differ[:, 0].any()
    for number in range(40):
        first = int(differ[number].int().argmax()) if differ[number].any() else 99
        assert torch.equal(plain.frames[number, : first + 1], kicked.frames[number, : first + 1])


def test_balls_turn_at_the_mark_alone_and_each_way_as_often_as_said():
    world = two_way_ball_sequences(300, seed=2, left_share=0.3, radius=0.8, resolution=4)
    x = world.positions[..., 0]
    crossed = (x[:, 1:] < 5) != (x[:, :-1] < 5)
    angle, free = turned(world.velocities), in_the_open(world.positions, 0.8)
    assert angle[free & ~crossed].abs().max() < 1e-9
    at_mark = angle[free & crossed]
    assert len(at_mark) > 1000
    torch.testing.assert_close(at_mark.abs(), torch.full_like(at_mark, math.pi / 2), rtol=0, atol=1e-9)
    # Rows are counted downwards: a turn from x to -y, which is to the left, has a negative angle.
    assert (at_mark < 0).double().mean() == pytest.approx(0.3, abs=0.04)


def test_left_is_left_in_the_picture():
    """A ball that flies to the right and turns left flies up."""
    world = two_way_ball_sequences(60, seed=2, left_share=1.0, radius=0.8)
    x, to_the_right = world.positions[..., 0], world.velocities[..., 0] > 0.4
    crossed = (x[:, 1:] >= 5) & (x[:, :-1] < 5) & to_the_right[:, :-1]
    sequence, time, _ = crossed.nonzero(as_tuple=True)
    assert (world.velocities[sequence, time + 1, 0, 1] < -0.4).all()
    keep = time < 95
    keep &= (world.velocities[sequence, (time + 4).clamp(max=99), 0, 1] < -0.4) & (x[sequence, time + 1, 0] < 9)
    assert keep.sum() > 3
    rows = torch.arange(30.0).view(30, 1)
    light = world.frames[sequence[keep], :, 0] * (world.frames[sequence[keep], :, 0] > 0.5)
    centre = (light * rows).sum((-1, -2)) / light.sum((-1, -2))
    at = torch.arange(len(light))
    assert (centre[at, time[keep] + 4] < centre[at, time[keep] + 1] - 2).all()


@pytest.mark.parametrize(("resolution", "columns"), [(30, [14, 15]), (31, [15])])
def test_the_mark_is_seen_and_balls_cover_it(resolution, columns):
    frames = two_way_ball_sequences(2, seed=0, resolution=resolution).frames
    plain = bouncing_ball_sequences(2, seed=0, balls=1, resolution=resolution).frames[:, 0]
    expected = plain.clone()
    expected[..., columns] = expected[..., columns].clamp(min=0.3)
    assert torch.equal(frames[:, 0], expected)
    others = [column for column in range(resolution) if column not in columns]
    assert (frames[..., others].amin((0, 1, 2, 3)) == 0).all()
    assert (frames[..., columns] >= 0.3).all()
    assert (frames[..., columns] > 0.9).any()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (KickedBalls, {"kick_rate": 1.1}, r"kick_rate must be in 0\.\.1; got 1\.1"),
        (KickedBalls, {"kick_rate": math.nan}, r"kick_rate must be in 0\.\.1; got nan"),
        (KickedBalls, {"kick_size": 0.0}, r"kick_size must be a number above 0; got 0\.0"),
        (KickedBalls, {"kick_size": math.inf}, r"kick_size must be a number above 0; got inf"),
        (TwoWayBalls, {"left_share": -0.1}, r"left_share must be in 0\.\.1; got -0\.1"),
        (TwoWayBalls, {"balls": 0}, r"balls must be"),
    ],
)
def test_what_is_out_of_range_is_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(2, **settings)


def test_a_saved_position_is_of_the_same_chances():
    stream = KickedBalls(2, kick_rate=0.1, **SMALL)
    with pytest.raises(ValueError, match="kick_rate"):
        KickedBalls(2, kick_rate=0.2, **SMALL).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="stream"):
        BouncingBalls(2, **SMALL).load_state_dict(stream.state_dict())
