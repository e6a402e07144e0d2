"""The balls as an environment of Gymnasium."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from torchrsm import bouncing_ball_frames, load
from torchrsm.environments import NAME, BouncingBallsEnv
from torchrsm.streams import bouncing_ball_sequences, render_balls


def test_gymnasium_knows_it_and_finds_nothing_wrong():
    env = gymnasium.make(f"torchrsm.environments:{NAME}", render_mode="rgb_array", sequence_length=5)
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (30, 30, 3)


def test_an_episode_is_a_sequence_and_the_reward_its_error():
    env = BouncingBallsEnv(sequence_length=6)
    frame, info = env.reset(seed=3)
    frames, rewards = [frame], []
    for number in range(1, 6):
        frame, reward, ended, cut, info = env.step(frames[-1])
        assert (ended, cut) == (number == 5, False)
        assert info["frame_squared_error"] == -reward
        frames.append(frame)
        rewards.append(reward)
    changes = [((after.astype(float) - before) ** 2).sum() for before, after in zip(frames, frames[1:], strict=False)]
    assert np.allclose(rewards, np.negative(changes))
    drawn = render_balls(10 * info["positions"][None], resolution=30)
    assert np.allclose(frames[-1], drawn.numpy().reshape(1, 30, 30), atol=1e-6)
    with pytest.raises(RuntimeError, match="the episode has ended; call reset"):
        env.step(frame)


def test_a_seed_decides_the_sequences():
    envs = [BouncingBallsEnv(sequence_length=3) for _ in range(3)]
    firsts = [np.stack([env.reset(seed=seed)[0], env.reset()[0]]) for env, seed in zip(envs, (1, 1, 2), strict=True)]
    assert np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0], firsts[2])
    assert not np.array_equal(firsts[0][0], firsts[0][1])


def test_a_model_plays():
    model, env = load("balls"), BouncingBallsEnv(sequence_length=40)
    frame, _ = env.reset(seed=0)
    import torch

    state, total, ended = model.initial_state((1, 1, 30, 30)), 0.0, False
    with torch.no_grad():
        while not ended:
            state = model.observe(torch.from_numpy(frame)[None], model.predict(state), state)
            frame, reward, ended, _, _ = env.step(model.predict(state).frame[0].numpy())
            total -= reward
    assert 0 < total / 39 < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None"),
        ({"balls": 0}, "balls"),
        ({"radius": 9}, "radius"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BouncingBallsEnv(**settings)


def test_an_action_of_another_shape_is_refused_and_nothing_moves():
    env = BouncingBallsEnv(sequence_length=4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have the shape \(1, 30, 30\); got \(30, 30\)"):
        env.step(np.zeros((30, 30)))
    first = env.step(np.zeros((1, 30, 30)))[0]
    other = BouncingBallsEnv(sequence_length=4)
    other.reset(seed=0)
    assert np.array_equal(first, other.step(np.ones((1, 30, 30)))[0])


def test_sequences_are_those_of_the_stream():
    env = BouncingBallsEnv(balls=2, radius=1.5, resolution=24, sequence_length=4, speed=2.0)
    frame, _ = env.reset(seed=5)
    drawn = int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(5))).integers(2**31))
    settings = {"balls": 2, "radius": 1.5, "resolution": 24, "sequence_length": 4, "speed": 2.0}
    expected = bouncing_ball_sequences(1, seed=drawn, **settings).frames[0]
    assert np.array_equal(frame, expected[0].numpy())
    assert not np.array_equal(frame, bouncing_ball_frames("test", 1)[0, 0].numpy())
