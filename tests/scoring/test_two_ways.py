"""Draws where a ball may turn left or right."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchrsm.scoring.two_ways import evaluate_two_ways
from torchrsm.streams import crossings, kicked_ball_sequences, two_way_ball_sequences


def world(sequences=12, **settings):
    return two_way_ball_sequences(sequences, seed=3, resolution=20, speed=2.0, sequence_length=40, **settings)


def test_one_of_both_futures_is_the_frame_that_came():
    sequences = world()
    turns = crossings(sequences)
    assert len(turns.time) > 20
    assert 0.2 < turns.turned_left.double().mean() < 0.8
    came = sequences.frames[turns.sequence, turns.time]
    left = turns.turned_left.view(-1, 1, 1, 1)
    assert torch.equal(came, torch.where(left, turns.left, turns.right))
    assert ((turns.left - turns.right).square().sum((1, 2, 3)) > 1).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_left_is_left(share):
    turns = crossings(world(left_share=share))
    assert (turns.turned_left == bool(share)).all()


def test_the_ball_is_seen_beyond_the_mark_in_the_frame_before():
    sequences = world()
    x = sequences.positions[..., 0, 0]
    for sequence, time in zip(*crossings(sequences)[:2], strict=True):
        assert (x[sequence, time - 1] < 5) != (x[sequence, time - 2] < 5)


def test_a_turn_to_the_left_is_to_the_left_of_the_flight():
    sequences = world(left_share=1.0)
    turns = crossings(sequences)
    flew = sequences.positions[turns.sequence, turns.time - 1] - sequences.positions[turns.sequence, turns.time - 2]
    to_left = sequences.velocities[turns.sequence, turns.time - 1]
    # Rows are counted downwards: left of (1, 0) is (0, -1).
    assert (flew[:, 0, 0] * to_left[:, 0, 1] < 0).all()


def test_several_balls_are_refused():
    with pytest.raises(ValueError, match="sequences must be of one ball each; got 3"):
        crossings(kicked_ball_sequences(1, resolution=8))


class Told(NamedTuple):
    frame: Tensor
    samples: Tensor | None = None


class Oracle(nn.Module):
    """Knows both futures, and draws the left one with a given chance, a black frame with another."""

    def __init__(self, sequences, left, nothing=0.0):
        super().__init__()
        self.turns, self.frames = crossings(sequences), sequences.frames
        self.left, self.nothing = left, nothing

    def initial_state(self, shape):
        return 0

    def predict(self, time, samples=0, generator=None):
        here = self.turns.time == time
        frame = torch.zeros(self.frames.shape[0], *self.frames.shape[2:])
        if not samples:
            frame[self.turns.sequence[here]] = self.turns.left[here]
            return Told(frame)
        draws = []
        for _ in range(samples):
            draw = frame.clone()
            for row, left, right in zip(
                self.turns.sequence[here], self.turns.left[here], self.turns.right[here], strict=True
            ):
                chance = torch.rand(2, generator=generator)
                if chance[0] >= self.nothing:
                    draw[row] = left if chance[1] < self.left else right
            draws.append(draw)
        return Told(frame, torch.stack(draws))

    def observe(self, frame, prediction, time):
        return time + 1


def test_shares_are_counted():
    sequences = world()
    scores = evaluate_two_ways(Oracle(sequences, 0.25, 0.5), sequences, samples=60)
    assert scores.left == pytest.approx(0.25, abs=0.04)
    assert scores.neither == pytest.approx(0.5, abs=0.04)
    turns = crossings(sequences)
    assert scores.crossings == len(turns.time)
    assert scores.left_truth == turns.turned_left.double().mean().item()
    assert scores == evaluate_two_ways(Oracle(sequences, 0.25, 0.5), sequences, samples=60)
    assert scores != evaluate_two_ways(Oracle(sequences, 0.25, 0.5), sequences, samples=60, seed=1)


def test_a_predicted_frame_counts_where_nothing_is_drawn():
    sequences = world()
    scores = evaluate_two_ways(Oracle(sequences, 0.25), sequences, samples=0)
    assert scores.left == 1
    assert scores.neither == 0


def test_what_is_out_of_range_is_refused():
    sequences = world(2)
    model = Oracle(sequences, 0.5)
    with pytest.raises(ValueError, match="samples must be >= 0; got -1"):
        evaluate_two_ways(model, sequences, samples=-1)
    with pytest.raises(ValueError, match="batch_size must be >= 1; got 0"):
        evaluate_two_ways(model, sequences, batch_size=0)
    standing = two_way_ball_sequences(1, seed=0, resolution=8, sequence_length=2)
    with pytest.raises(ValueError, match="a ball must cross the mark in one of the sequences"):
        evaluate_two_ways(model, standing)
