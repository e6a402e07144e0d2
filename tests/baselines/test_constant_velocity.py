import pytest
import torch
from playing import play
from pydantic import ValidationError

from torchrsm.baselines.constant_velocity import ConstantVelocity, ConstantVelocityConfig
from torchrsm.baselines.sequence_model import Window
from torchrsm.predictor import restart
from torchrsm.streams import bouncing_ball_sequences
from torchrsm.streams.bouncing_balls import render_balls

START = torch.tensor([[3.5, 4.0], [7.0, 5.0], [4.5, 7.0]], dtype=torch.float64)  # [balls, 2] world units
VELOCITY = torch.tensor([[-0.2, -0.1], [0.15, -0.25], [0.1, 0.2]], dtype=torch.float64)  # a frame; they part


def flight(frames, start=START, velocity=VELOCITY):
    """Positions of balls without walls, ``[frames, balls, 2]``."""
    return start + torch.arange(frames, dtype=torch.float64)[:, None, None] * velocity


def test_a_straight_flight_is_predicted():
    frames = render_balls(flight(6))[:, None]
    predicted, _ = play(ConstantVelocity(), frames)
    torch.testing.assert_close(predicted[2:], frames[2:], rtol=0, atol=0.01)
    assert (predicted[1] - frames[1]).square().sum() > 1


@pytest.mark.parametrize(("balls", "radius", "resolution"), [(3, 1.2, 30), (1, 2.0, 20), (5, 0.9, 36)])
def test_agrees_with_the_extrapolation_of_the_true_positions(balls, radius, resolution):
    world = {"balls": balls, "radius": radius, "resolution": resolution}
    truth = bouncing_ball_sequences(8, seed=3, sequence_length=30, **world)
    config = ConstantVelocityConfig(balls=balls, radius=radius, height=resolution, width=resolution)
    predicted, _ = play(ConstantVelocity(config), truth.frames.transpose(0, 1))
    after = 2 * truth.positions[:, 1:-1] - truth.positions[:, :-2]
    expected = render_balls(after, radius=radius, resolution=resolution).transpose(0, 1)
    error = (predicted[2:] - expected).square().sum((2, 3, 4))  # [t, b]
    assert error.median() < 1e-3
    assert (error > 0.01).float().mean() < 0.02  # crowded balls may be found less exactly


def test_nothing_seen_is_black():
    predictor = ConstantVelocity()
    assert torch.equal(predictor.predict(predictor.initial_state((2, 1, 30, 30))).frame, torch.zeros(2, 1, 30, 30))


def test_balls_seen_once_stay_where_they_are():
    frames = render_balls(flight(1))[:, None]
    predictor = ConstantVelocity()
    _, state = play(predictor, frames)
    torch.testing.assert_close(predictor.predict(state).frame, frames[0], rtol=0, atol=0.01)


def test_a_picture_without_the_balls_is_repeated_and_only_in_its_stream():
    straight = render_balls(flight(3))[:, None]
    lost = straight.clone()
    lost[1] = render_balls(flight(2)[1, :2])
    predictor = ConstantVelocity()
    _, state = play(predictor, torch.cat((straight[:2], lost[:2]), 1))
    frame = predictor.predict(state).frame
    torch.testing.assert_close(frame[0], straight[2, 0], rtol=0, atol=0.01)
    assert torch.equal(frame[1], lost[1, 0])


def test_balls_after_a_picture_without_them_stay_where_they_are():
    frames = render_balls(flight(3))[:, None]
    frames[1] = 1
    predictor = ConstantVelocity()
    _, state = play(predictor, frames)
    torch.testing.assert_close(predictor.predict(state).frame, frames[2], rtol=0, atol=0.01)


def test_only_the_last_two_frames_count():
    frames = render_balls(flight(4))[:, None]
    other = frames.clone()
    other[:2] = torch.rand(2, 1, 1, 30, 30)
    predictor = ConstantVelocity()
    first, second = (predictor.predict(play(predictor, seen)[1]).frame for seen in (frames, other))
    assert torch.equal(first, second)


def test_the_future_does_not_change_the_past():
    frames = bouncing_ball_sequences(2, seed=3, sequence_length=8).frames.transpose(0, 1).contiguous()
    other = frames.clone()
    other[5:] = frames[5:].flip(-1)
    predictor = ConstantVelocity()
    (predicted, _), (changed, _) = play(predictor, frames), play(predictor, other)
    assert torch.equal(predicted[:6], changed[:6])
    assert not torch.equal(predicted[6:], changed[6:])


def test_a_start_cuts_the_past():
    frames = render_balls(flight(2))[:, None].expand(-1, 2, -1, -1, -1)
    predictor = ConstantVelocity()
    fresh = predictor.initial_state((2, 1, 30, 30))
    _, state = play(predictor, frames[:1])
    state = restart(state, fresh, torch.tensor([True, False]))
    state = predictor.observe(frames[1], predictor.predict(state), state)
    frame = predictor.predict(state).frame
    torch.testing.assert_close(frame[0], frames[1, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(frame[1], render_balls(flight(3)[2]), rtol=0, atol=0.01)


def test_a_dream_flies_on_through_the_wall_and_then_stands_still():
    positions = flight(60)
    predictor = ConstantVelocity()
    _, state = play(predictor, render_balls(positions[:2])[:, None])
    dream, state = predictor.rollout(state, 58)
    torch.testing.assert_close(dream[0, :8], render_balls(positions[2:10]), rtol=0, atol=0.02)
    assert torch.equal(dream[0, -1], dream[0, -2])
    assert dream[0, -1].sum() > 0
    assert dream.min() >= 0
    assert dream.max() <= 1


def test_has_no_weights_and_a_window_teaches_nothing():
    frames = render_balls(flight(4))[:, None]
    predictor = ConstantVelocity()
    starts = torch.tensor([[True], [False], [False], [False]])
    lesson = predictor.learn(Window(frames, starts), predictor.initial_state((1, 1, 30, 30)))
    assert not list(predictor.parameters())
    assert torch.equal(lesson.frames, play(predictor, frames)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 3}, "channels must be 1"),
        ({"height": 20}, "height and width must be equal"),
        ({"height": 3, "width": 3}, "greater than or equal to 4"),
        ({"balls": 0}, "balls"),
        ({"radius": 5.0}, "radius"),
        ({"speed": 1.0}, "speed"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        ConstantVelocityConfig(**settings)


def test_refuses_frames_of_another_shape():
    with pytest.raises(ValueError, match="reads frames of 1 x 30 x 30; got 1 x 20 x 20"):
        ConstantVelocity().initial_state((2, 1, 20, 20))
