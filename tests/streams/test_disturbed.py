"""Disturbed frames: what each disturbance does, how often, and that a sequence is always disturbed alike."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from torchrsm.streams import (
    BouncingBalls,
    DisturbanceConfig,
    Disturbed,
    bouncing_ball_sequences,
    check_stream,
    disturbed_sequences,
    expected_noisy,
)

SMALL = {"resolution": 12, "sequence_length": 9}
EVERY = DisturbanceConfig(noise=(0.1, 0.3), flicker=(0.3, 0.6), blackout=(2, 3), blackout_from=4, bar=(2, 4))
CASES = {
    "noise": DisturbanceConfig(noise=(0.2,)),
    "flicker": DisturbanceConfig(flicker=(0.4,)),
    "blackout": DisturbanceConfig(blackout=(3,), blackout_from=4),
    "bar": DisturbanceConfig(bar=(4,)),
    "all": EVERY,
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def config(request):
    return request.param


def test_they_are_streams(config):
    check_stream(Disturbed(BouncingBalls(4, seed=3, **SMALL), config, seed=1), 40)


def test_a_part_is_played_as_in_the_whole(config):
    whole, divided = (Disturbed(BouncingBalls(5, seed=3, **SMALL), config, seed=1) for _ in range(2))
    for _ in range(3):
        next(whole), next(divided)
    part = divided.part(1, 3)
    for _ in range(12):
        expected, played = next(whole), next(part)
        for mine, theirs in zip(played, expected, strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs[1:4])


def test_whole_sequences_are_those_of_the_stream(config):
    stream = Disturbed(BouncingBalls(3, seed=3, dephased=False, **SMALL), config, seed=1)
    played = [next(stream) for _ in range(9)]
    shown = disturbed_sequences(bouncing_ball_sequences(3, seed=3, **SMALL).frames, config, seed=1)
    assert torch.equal(torch.stack([batch.frames for batch in played], 1), shown.frames)
    assert (shown.seen is None) == (played[0].seen is None) == (not config.hides)
    if shown.seen is not None:
        assert torch.equal(torch.stack([batch.seen for batch in played], 1), shown.seen)


def test_another_seed_is_another_chance():
    frames = bouncing_ball_sequences(3, seed=3, **SMALL).frames
    one, again, other = (disturbed_sequences(frames, EVERY, seed) for seed in (1, 1, 2))
    assert torch.equal(one.frames, again.frames)
    assert not torch.equal(one.frames, other.frames)
    assert not torch.equal(one.seen, other.seen)


def test_noise_has_its_deviation_and_is_cut():
    grey = torch.full((20, 10, 1, 16, 16), 0.5)
    noisy = disturbed_sequences(grey, DisturbanceConfig(noise=(0.1,))).frames
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    assert noisy.mean() == pytest.approx(0.5, abs=0.002)
    assert (noisy[0, 0] - noisy[0, 1]).std() == pytest.approx(0.1 * math.sqrt(2), rel=0.1)  # each frame anew
    black = disturbed_sequences(torch.zeros(4, 4, 1, 16, 16), DisturbanceConfig(noise=(0.1,))).frames
    assert black.min() == 0
    assert (black == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert disturbed_sequences(grey, DisturbanceConfig(noise=(0.1,))).seen is None


@pytest.mark.parametrize("deviation", [0.1, 0.4])
def test_what_can_be_known_of_a_noisy_frame_is_its_mean(deviation):
    levels = torch.linspace(0, 1, 11)
    generator = np.random.default_rng(0)
    draws = generator.normal(levels.double().numpy(), deviation, (400_000, 11)).clip(0, 1).mean(0)
    assert expected_noisy(levels, deviation).tolist() == pytest.approx(draws.tolist(), abs=2e-3)
    assert expected_noisy(torch.tensor([0.5]), deviation).item() == pytest.approx(0.5, abs=1e-6)


def test_flicker_hides_whole_frames_as_often_as_said():
    frames = torch.ones(50, 40, 1, 4, 4)
    shown = disturbed_sequences(frames, DisturbanceConfig(flicker=(0.3,)))
    hidden = ~shown.seen.flatten(2).any(2)
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(hidden, ~shown.seen.flatten(2).all(2))
    assert torch.equal(shown.frames.flatten(2).sum(2) == 0, hidden)


def test_a_blackout_begins_where_it_is_said_to_and_lasts_as_long():
    shown = disturbed_sequences(torch.ones(3, 12, 1, 4, 4), DisturbanceConfig(blackout=(3,), blackout_from=5))
    hidden = [time for time in range(12) if not shown.seen[0, time].any()]
    assert hidden == [4, 5, 6]  # the frames 5, 6 and 7
    assert (shown.seen == shown.seen[:1]).all()


def test_a_bar_covers_the_middle():
    shown = disturbed_sequences(torch.ones(1, 2, 3, 4, 10), DisturbanceConfig(bar=(4,)))
    assert shown.seen.shape == (1, 2, 1, 4, 10)
    assert [column for column in range(10) if not shown.seen[0, 0, 0, 0, column]] == [3, 4, 5, 6]
    assert (shown.frames.sum((0, 1, 2, 3)) == 0).tolist() == [3 <= column <= 6 for column in range(10)]


def test_each_sequence_draws_one_of_several_values():
    lengths = disturbed_sequences(torch.ones(60, 12, 1, 2, 2), DisturbanceConfig(blackout=(1, 4), blackout_from=2))
    hidden = (~lengths.seen.flatten(2).any(2)).sum(1)
    assert set(hidden.tolist()) == {1, 4}
    assert 15 < (hidden == 1).sum() < 45
    bars = disturbed_sequences(torch.ones(60, 3, 1, 2, 9), DisturbanceConfig(bar=(1, 3)))
    widths = (~bars.seen).sum(-1)[:, :, 0, 0]
    assert set(widths.flatten().tolist()) == {1, 3}
    assert (widths == widths[:, :1]).all()  # the same for the whole sequence


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": (0.0,)}, "noise"),
        ({"flicker": (1.0,)}, "flicker"),
        ({"blackout": (0,)}, "blackout"),
        ({"bar": (-1,)}, "bar"),
        ({"blackout_from": 7}, "there is no blackout"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DisturbanceConfig(**settings)


def test_a_bar_as_wide_as_the_frames_is_refused():
    with pytest.raises(ValueError, match="bar must be narrower than the frames, which have 12 columns; got 12"):
        Disturbed(BouncingBalls(2, **SMALL), DisturbanceConfig(bar=(4, 12)))


def test_a_position_of_another_disturbance_is_refused():
    stream = Disturbed(BouncingBalls(2, **SMALL), CASES["noise"])
    with pytest.raises(ValueError, match="noise must be"):
        stream.load_state_dict(Disturbed(BouncingBalls(2, **SMALL), CASES["flicker"]).state_dict())
    with pytest.raises(ValueError, match="times must be 2 numbers; got"):
        stream.load_state_dict({**stream.state_dict(), "times": [1]})
    with pytest.raises(ValueError, match="disturbed must be a position"):
        stream.load_state_dict({**stream.state_dict(), "disturbed": None})
