"""Plays frames to a predictor as anyone does: predict, then observe."""

import torch

from torchrsm.predictor import restart


def play(predictor, frames, starts=None):
    """The predictions of ``[time, b, c, h, w]`` frames, made one by one, and the state after them.

    Where ``starts``, ``[time, b]`` bool, says so, a stream begins anew; without it each begins once.
    """
    fresh = state = predictor.initial_state(tuple(frames.shape[1:]))
    predicted = []
    for step, frame in enumerate(frames):
        state = state if starts is None else restart(state, fresh, starts[step])
        prediction = predictor.predict(state)
        predicted.append(prediction.frame)
        state = predictor.observe(frame, prediction, state)
    return torch.stack(predicted), state
