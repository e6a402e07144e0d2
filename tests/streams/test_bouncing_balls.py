import hashlib
import math

import numpy as np
import pytest
import torch
from bouncing_balls_oracle import render, simulate

from torchrsm.streams import (
    BouncingBalls,
    bouncing_ball_sequences,
    check_stream,
    render_balls,
    simulate_balls,
)

SEED = 7


@pytest.fixture(scope="module")
def many():
    """Two hundred sequences of the published world."""
    return bouncing_ball_sequences(200, seed=SEED)


def squared_error(predicted, frames):
    """Squared error summed over the pixels of a frame, one per frame."""
    return ((predicted - frames) ** 2).sum((-3, -2, -1))


# --- The world, against an independent simulator and its laws ---------------------------------------------------------


@pytest.mark.parametrize(
    ("balls", "radius", "resolution"), [(3, 1.2, 30), (1, 0.7, 17), (6, 1.0, 8), (2, 2.5, 40)], ids=str
)
def test_agrees_with_the_oracle(balls, radius, resolution):
    # Balls are chaotic: a rounding error grows about a hundredfold in fifty frames.
    made = bouncing_ball_sequences(4, seed=SEED, balls=balls, radius=radius, resolution=resolution, sequence_length=30)
    for frames, positions, velocities in zip(*made, strict=True):
        expected_positions, expected_velocities = simulate(positions[0], velocities[0], 30, radius)
        np.testing.assert_allclose(positions, expected_positions, rtol=0, atol=1e-12)
        np.testing.assert_allclose(velocities, expected_velocities, rtol=0, atol=1e-12)
        expected_frames = [render(p, radius, resolution) for p in expected_positions]
        np.testing.assert_allclose(frames[:, 0], expected_frames, rtol=0, atol=1e-6)


def test_agrees_with_the_oracle_when_three_balls_touch_at_once_in_a_corner():
    positions = [[[1.1, 1.15], [3.2, 1.3], [2.0, 3.1]]]
    velocities = [[[-0.2, -0.1], [-0.3, 0.0], [-0.1, -0.3]]]
    ours = simulate_balls(np.array(positions), np.array(velocities), 20, radius=1.2)
    for mine, expected in zip(ours, simulate(positions[0], velocities[0], 20, 1.2), strict=True):
        np.testing.assert_allclose(mine[0], expected, rtol=0, atol=1e-12)


def test_energy_is_constant(many):
    energy = (many.velocities**2).sum((2, 3))
    assert (energy - 0.25).abs().max() < 1e-12


def test_starts_are_inside_and_apart(many):
    start = many.positions[:, 0]
    assert start.min() >= 2
    assert start.max() <= 10 - 1.2
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (start[:, i] - start[:, j]).norm(dim=1).min() >= 2.4


def test_start_positions_are_uniform_and_velocities_isotropic():
    alone = bouncing_ball_sequences(4000, seed=SEED, balls=1, resolution=4, sequence_length=2)
    where = (alone.positions[:, 0, 0] - 2) / (8.8 - 2)
    angle = torch.atan2(alone.velocities[:, 0, 0, 1], alone.velocities[:, 0, 0, 0]) / (2 * math.pi) + 0.5
    for sample in (where[:, 0], where[:, 1], angle):
        gap = (sample.sort().values - torch.linspace(0, 1, len(sample), dtype=sample.dtype)).abs().max()
        assert gap < 1.95 / math.sqrt(len(sample))  # Kolmogorov-Smirnov, one in a thousand


def test_the_velocity_of_each_ball_is_that_of_normals_scaled_together(many):
    # A share of the energy of one in n squared normals is Beta(1/2, (n - 1)/2): mean 1/6 and variance 5/144 for n = 6.
    share = (many.velocities[:, 0] ** 2).flatten(1) / 0.25
    assert torch.allclose(share.mean(0), torch.full((6,), 1 / 6, dtype=share.dtype), atol=0.04)
    assert share.var().item() == pytest.approx(5 / 144, rel=0.15)


def test_balls_stay_in_the_box(many):
    outside = (many.positions < 1.2 - 0.5) | (many.positions > 10 - 1.2 + 0.5)
    assert not outside.any()  # never deeper in a wall than a frame's move
    assert ((many.positions < 1.2) | (many.positions > 8.8)).any()  # a wall is soft: positions are not clamped


def test_velocities_are_those_before_the_move(many):
    moved = many.positions[:, 1:] - many.positions[:, :-1]
    free = (many.velocities[:, 1:] == many.velocities[:, :-1]).all(-1)
    assert 0.5 < free.double().mean() < 1
    assert (moved - many.velocities[:, :-1])[free].abs().max() < 1e-12


# --- The scale of the errors (docs/science/protocol.md) ---------------------------------------------------------------


def test_scale_of_errors(many):
    frames = many.frames
    assert squared_error(0, frames).mean().item() == pytest.approx(93.2, abs=0.5)
    assert squared_error(frames.mean((0, 1)), frames).mean().item() == pytest.approx(74.8, abs=0.5)
    assert frames.sum((2, 3, 4)).mean().item() == pytest.approx(110.7, abs=0.3)
    by_sequence = squared_error(frames[:, :-1], frames[:, 1:]).mean(1)
    assert by_sequence.mean().item() == pytest.approx(11.85, abs=0.1)
    assert by_sequence.std().item() == pytest.approx(0.28, abs=0.06)
    assert 141 < squared_error(frames, frames.roll(1, 0)).mean().item() < 153


def test_scale_of_the_error_of_constant_velocity(many):
    x = many.positions
    extrapolated = render_balls(2 * x[:, 1:-1] - x[:, :-2])
    assert squared_error(extrapolated, many.frames[:, 2:]).mean().item() == pytest.approx(2.05, abs=0.1)
    moved = render_balls(x + many.velocities)[:, :-1]  # the true velocity misses only the bounces of the frame itself
    assert squared_error(moved, many.frames[:, 1:]).mean().item() == pytest.approx(0.39, abs=0.04)


# --- Rendering --------------------------------------------------------------------------------------------------------


def test_columns_are_x_and_rows_are_y():
    frame = render_balls(np.array([[8.0, 2.0]]))[0]
    assert divmod(int(frame.argmax()), 30) in {(5, 23), (5, 24), (6, 23), (6, 24)}


def test_frames_are_in_range_and_have_no_denormals(many):
    assert many.frames.min() == 0
    assert many.frames.max() == 1
    assert many.frames[many.frames > 0].min() >= 1e-30 * (1 - 1e-6)


def test_balls_beyond_the_frame_are_cut_off():
    frames = render_balls(np.array([[[-0.5, 5.0]], [[10.5, 10.5]], [[50.0, -50.0]]]))
    assert frames.shape == (3, 1, 30, 30)
    assert frames[0, 0, :, 0].max() > 0.9
    assert frames[1, 0, -1, -1] > 0.8
    assert frames[2].sum() == 0


def test_overlapping_light_is_clipped():
    assert render_balls(np.array([[5.0, 5.0], [5.5, 5.0]])).max() == 1


# --- Sequences do not depend on the way they are asked for ------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_sequence_is_the_same_in_a_batch_of_any_size(batch_size):
    length = 5
    stream = BouncingBalls(batch_size, sequence_length=length, seed=SEED, dephased=False)
    rounds = -(-6 // batch_size)
    played = [next(stream) for _ in range(rounds * length)]
    frames = (
        torch.stack([batch.frames for batch in played]).unflatten(0, (rounds, length)).transpose(1, 2).flatten(0, 1)
    )
    numbers = torch.stack([batch.index for batch in played[::length]]).flatten()
    assert numbers.tolist() == list(range(rounds * batch_size))
    expected = bouncing_ball_sequences(6, seed=SEED, sequence_length=length)
    assert torch.equal(frames[:6], expected.frames)


def test_chosen_sequences_are_those_of_the_count():
    all_of_them = bouncing_ball_sequences(6, seed=SEED, sequence_length=10)
    chosen = bouncing_ball_sequences([4, 1], seed=SEED, sequence_length=10)
    for some, every in zip(chosen, all_of_them, strict=True):
        assert torch.equal(some, every[[4, 1]])


def test_a_longer_sequence_begins_like_a_shorter_one():
    short = bouncing_ball_sequences(2, seed=SEED, sequence_length=10)
    long = bouncing_ball_sequences(2, seed=SEED, sequence_length=20)
    assert torch.equal(short.frames, long.frames[:, :10])


def test_dephased_elements_play_their_sequences_from_the_middle():
    stream = BouncingBalls(7, sequence_length=5, seed=SEED, first_sequence=20)
    expected = bouncing_ball_sequences(range(20, 50), seed=SEED, sequence_length=5).frames
    for step in range(12):
        batch = next(stream)
        for element in range(7):
            sequence, time = divmod(step + element % 5, 5)
            assert batch.index[element] == 20 + element + 7 * sequence
            assert batch.starts[element] == (time == 0 or step == 0)
            assert torch.equal(batch.frames[element], expected[element + 7 * sequence, time])


def test_no_sequence_is_played_twice():
    stream = BouncingBalls(8, sequence_length=3, resolution=4, seed=SEED)
    batches = [next(stream) for _ in range(60)]
    begun = torch.cat([batch.index[batch.starts] for batch in batches])
    assert len(begun) == len(begun.unique()) > 150
    starts = bouncing_ball_sequences(500, seed=SEED, resolution=4, sequence_length=2).positions[:, 0].flatten(1)
    assert len(starts.unique(dim=0)) == 500


def test_seeds_are_different_worlds():
    first, second = (bouncing_ball_sequences(3, seed=seed, sequence_length=2).positions for seed in (0, 1))
    assert (first - second).abs().amin((1, 2, 3)).min() > 0
    bouncing_ball_sequences(1, seed=2**63 - 1, sequence_length=2)


def test_golden_positions():
    positions = bouncing_ball_sequences(3, seed=1, sequence_length=50).positions.numpy()
    digest = hashlib.sha256(np.rint(positions * 1e6).astype("<i8").tobytes()).hexdigest()
    assert digest == "21b8b930bf957dd690b057bf3492806f39c34ab60e1d6467b971e1fc18f5ae5c"


# --- The stream contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 7, "sequence_length": 5, "first_sequence": 3},
        {"batch_size": 3, "balls": 5, "radius": 0.8, "resolution": 11, "dephased": False},
    ],
    ids=str,
)
def test_keeps_the_contract(settings):
    check_stream(BouncingBalls(seed=SEED, **settings))


def test_continues_in_another_process_where_it_was():
    stream = BouncingBalls(5, sequence_length=10, seed=SEED)
    for _ in range(33):
        next(stream)
    fresh = BouncingBalls(5, sequence_length=10, seed=SEED)
    fresh.load_state_dict(stream.state_dict())
    for _ in range(25):
        for mine, theirs in zip(next(fresh)[:3], next(stream)[:3], strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "seed must be 7 as in this stream; got 8"),
        ({"radius": 1.1}, "radius must be 1.2 as in this stream; got 1.1"),
        ({"stream": "Pad"}, "stream must be 'BouncingBalls' as in this stream; got 'Pad'"),
        ({"step": -1}, "step must be an integer in 0.*; got -1"),
        ({"step": None}, "step must be an integer in 0.*; got None"),
        ({"colour": 1}, r"unknown entries \['colour'\]"),
    ],
)
def test_refuses_a_foreign_position(changes, message):
    stream = BouncingBalls(2, seed=SEED)
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict({**stream.state_dict(), **changes})
    with pytest.raises(ValueError, match="stream must be 'BouncingBalls' as in this stream; got nothing"):
        stream.load_state_dict({})


# --- Bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1; got 2.0"),
        ({"balls": 0}, "balls must be an integer of at least 1; got 0"),
        ({"balls": True}, "balls must be an integer of at least 1; got True"),
        ({"radius": 0}, "radius must be a number above 0 and below 5; got 0"),
        ({"radius": 5.0}, "radius must be a number above 0 and below 5; got 5.0"),
        ({"radius": math.nan}, "radius must be a number above 0 and below 5; got nan"),
        ({"radius": "1"}, "radius must be a number above 0 and below 5; got '1'"),
        ({"resolution": 3}, "resolution must be an integer of at least 4; got 3"),
        ({"sequence_length": 1}, "sequence_length must be an integer of at least 2; got 1"),
        ({"seed": -1}, r"seed must be an integer in 0\.\.9223372036854775807; got -1"),
        ({"seed": 2**63}, "seed must be an integer in .*; got 9223372036854775808"),
        ({"dephased": "no"}, "dephased must be True or False; got 'no'"),
        ({"first_sequence": -1}, "first_sequence must be an integer in 0.*; got -1"),
        ({"balls": 2, "radius": 3.2}, "the balls do not fit: 2 balls of radius 3.2 touched in each of 12000"),
        ({"balls": 14}, "the balls do not fit: 14 balls of radius 1.2"),
    ],
    ids=str,
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BouncingBalls(**settings)


@pytest.mark.parametrize("settings", [{"balls": 9}, {"balls": 40, "radius": 0.5}, {"balls": 2, "radius": 2.6}], ids=str)
def test_places_crowds(settings):
    made = bouncing_ball_sequences(3, **settings, resolution=4, sequence_length=2)
    start, radius = made.positions[:, 0], settings.get("radius", 1.2)
    apart = torch.cdist(start, start) + 10 * torch.eye(start.shape[1], dtype=start.dtype)
    assert apart.min() >= 2 * radius - 1e-12
    assert start.min() >= radius
    assert start.max() <= 10 - radius


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bouncing_ball_sequences(0), "sequences must be an integer of at least 1; got 0"),
        (lambda: bouncing_ball_sequences([]), "at least one number; got none"),
        (
            lambda: bouncing_ball_sequences([1, -2]),
            "sequences: each number must be an integer in 0.*; got -2",
        ),
        (lambda: bouncing_ball_sequences(1, radius=6), "radius must be a number above 0 and below 5; got 6"),
        (lambda: simulate_balls(np.zeros((1, 2, 2)), np.zeros((1, 3, 2)), 5), r"got \[1, 2, 2\] and \[1, 3, 2\]"),
        (
            lambda: simulate_balls(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), 0),
            "frames must be an integer of at least 1",
        ),
        (lambda: simulate_balls(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), 5, radius=5), "below 5; got 5"),
        (lambda: render_balls(np.zeros((1, 2)), radius=0), "radius must be a number above 0 and below 5; got 0"),
        (lambda: render_balls(np.zeros(3)), r"positions must be \[..., balls, 2\]; got \[3\]"),
        (lambda: render_balls(np.full((1, 2), np.inf)), "positions must be finite"),
        (
            lambda: render_balls(np.zeros((1, 2)), resolution=2),
            "resolution must be an integer of at least 4; got 2",
        ),
    ],
)
def test_functions_refuse_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
