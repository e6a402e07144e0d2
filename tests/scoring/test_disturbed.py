"""Scores of what was not all seen."""

import numpy as np
import pytest
import torch
from torch import nn

from torchrsm.baselines.sequence_model import Predicted
from torchrsm.scoring.disturbed import FIRST, NEAR, score_disturbed
from torchrsm.streams import DisturbanceConfig, bouncing_ball_sequences, disturbed_sequences, expected_noisy
from torchrsm.streams.settings import BouncingBallsConfig
from torchrsm.systems import load

LENGTH = 30


def sequences(count=4, **settings):
    return bouncing_ball_sequences(count, seed=5, sequence_length=LENGTH, **settings)


class Tells(nn.Module):
    """Predicts given frames ``[n, t, c, h, w]``, whatever it sees; remembers what it was shown."""

    def __init__(self, frames):
        super().__init__()
        self.frames, self.heard = frames, []

    def initial_state(self, shape):
        return (torch.zeros(shape[0], dtype=torch.int64),)

    def predict(self, state):
        return Predicted(self.frames[:, int(state[0][0])])

    def observe(self, frame, prediction, state):
        self.heard.append(frame)
        return (state[0] + 1,)


def test_who_knows_the_truth_has_no_error():
    true = sequences()
    for disturbance in (
        DisturbanceConfig(noise=(0.2,)),
        DisturbanceConfig(flicker=(0.5,)),
        DisturbanceConfig(blackout=(3,), blackout_from=15),
        DisturbanceConfig(bar=(6,)),
    ):
        truth = expected_noisy(true.frames, 0.2) if disturbance.noise else true.frames
        scores = score_disturbed(Tells(truth), true, disturbance)
        assert scores.error.mean == 0
        for part in (scores.after_gap, scores.near_bar, scores.behind_bar):
            assert part is None or part.mean == 0
        assert (
            (scores.after_gap is None)
            == (scores.gap_distance is None)
            == (not disturbance.flicker and not disturbance.blackout)
        )
        assert (scores.near_bar is None) == (not disturbance.bar)
        if scores.gap_distance is not None:
            assert scores.gap_distance < 0.01


def test_the_error_is_that_of_the_scored_frames_and_pixels():
    true = sequences()
    wrong = true.frames.clone()
    wrong[:, :FIRST] = 0.5  # not scored
    wrong[:, FIRST:, 0, 3, 4] += 0.25
    disturbance = DisturbanceConfig(noise=(0.1,))
    offset = expected_noisy(true.frames, 0.1) - true.frames
    assert score_disturbed(Tells(wrong + offset), true, disturbance).error.mean == pytest.approx(0.0625, rel=1e-4)


def test_the_frame_after_a_gap_is_scored_apart():
    true = sequences()
    disturbance = DisturbanceConfig(blackout=(4,), blackout_from=16)  # frames 16 to 19, so 20 is the first after
    wrong = true.frames.clone()
    wrong[:, 19, 0, 0, 0] += 0.5
    scores = score_disturbed(Tells(wrong), true, disturbance)
    assert scores.after_gap.mean == pytest.approx(0.25)
    assert scores.error.mean == pytest.approx(0.25 / (LENGTH - FIRST))


def test_the_distance_of_balls_is_in_pixels():
    true = sequences()
    moved = bouncing_ball_sequences(4, seed=5, sequence_length=LENGTH)
    # All frames one pixel to the right.
    frames = torch.roll(moved.frames, 1, -1)
    scores = score_disturbed(Tells(frames), true, DisturbanceConfig(blackout=(4,), blackout_from=16))
    assert scores.gap_distance == pytest.approx(1, abs=0.1)
    nothing = score_disturbed(Tells(torch.zeros_like(frames)), true, DisturbanceConfig(blackout=(4,), blackout_from=16))
    assert nothing.gap_distance == np.inf


def test_a_bar_divides_the_pixels():
    true = sequences()
    disturbance = DisturbanceConfig(bar=(6,))  # columns 12 to 17
    for column, error, near, behind in (
        (0, 1, 0, 0),
        (11, 1, 1, 0),
        (12 - NEAR, 1, 1, 0),
        (17 + NEAR + 1, 1, 0, 0),
        (14, 0, 0, 1),
    ):
        wrong = true.frames.clone()
        wrong[..., 2, column] += 1
        scores = score_disturbed(Tells(wrong), true, disturbance)
        assert [scores.error.mean, scores.near_bar.mean, scores.behind_bar.mean] == pytest.approx([error, near, behind])


def test_it_is_shown_what_is_left_and_its_own():
    true, disturbance = sequences(), DisturbanceConfig(flicker=(0.5,))
    model = Tells(torch.full_like(true.frames, 0.125))
    score_disturbed(model, true, disturbance)
    shown, seen = disturbed_sequences(true.frames, disturbance)
    expected = torch.where(seen, shown, 0.125)
    assert torch.equal(torch.stack(model.heard, 1), expected)


def test_other_worlds_are_measured_by_their_own_pixels():
    world = BouncingBallsConfig(balls=2, radius=1.5, resolution=20, sequence_length=LENGTH)
    true = sequences(balls=2, radius=1.5, resolution=20)
    scores = score_disturbed(Tells(true.frames), true, DisturbanceConfig(flicker=(0.3,)), world)
    assert scores.gap_distance < 0.05


def test_what_does_not_fit_is_refused():
    true = sequences()
    with pytest.raises(ValueError, match=r"disturbance.bar must be one value; got \(2, 3\)"):
        score_disturbed(load("copy-last"), true, DisturbanceConfig(bar=(2, 3)))
    short = bouncing_ball_sequences(2, sequence_length=FIRST)
    with pytest.raises(ValueError, match=f"sequences must have > {FIRST} frames; got {FIRST}"):
        score_disturbed(load("copy-last"), short, DisturbanceConfig(noise=(0.1,)))


def test_the_frame_before_scores_what_the_protocol_says():
    true = bouncing_ball_sequences(20, seed=7)
    assert score_disturbed(load("copy-last"), true, DisturbanceConfig(noise=(0.2,))).error.mean == pytest.approx(
        23.3, abs=1.5
    )
