"""The network that sees the last frames alone."""

import pytest
import torch
from playing import play

from torchrsm.baselines.lstm import LSTM, LSTMConfig
from torchrsm.baselines.sequence_model import Window
from torchrsm.baselines.window_network import WindowNetwork, WindowNetworkConfig

BATCH, TIME = 3, 6
SHAPE = (BATCH, 2, 3, 4)


def model(**settings):
    torch.manual_seed(0)
    sizes = {"channels": 2, "height": 3, "width": 4, "hidden_units": (6, 5), "context": 3}
    return WindowNetwork(WindowNetworkConfig(**{**sizes, **settings}))


def window(symbols=None, starts=()):
    torch.manual_seed(1)
    frames, marks = torch.rand(TIME, *SHAPE), torch.zeros(TIME, BATCH, dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks, symbols)


def test_it_sees_so_many_frames_and_no_more():
    network, frames = model(), torch.rand(7, *SHAPE)
    predictions, _ = play(network, frames)
    changed = frames.clone()
    changed[2] = 0
    others, _ = play(network, changed)
    differs = [not torch.equal(a, b) for a, b in zip(predictions, others, strict=True)]
    assert differs == [False, False, False, True, True, True, False]


def test_it_learns_what_it_predicts():
    network, shown = model(symbols=4), window(torch.randint(0, 4, (TIME, BATCH)), starts=[(3, 1)])
    lesson = network.learn(shown, network.initial_state(SHAPE))
    state, fresh = network.initial_state(SHAPE), network.initial_state(SHAPE)
    errors, surprises = [], []
    for time in range(TIME):
        start = shown.starts[time].view(-1, 1)
        state = type(state)(
            torch.where(start.view(-1, 1, 1, 1, 1), fresh.frames, state.frames),
            torch.where(start, fresh.known, state.known),
        )
        prediction = network.predict(state)
        torch.testing.assert_close(prediction.frame, lesson.frames[time])
        scored = ~shown.starts[time]
        errors += (prediction.frame - shown.frames[time]).square().mean((1, 2, 3))[scored].tolist()
        surprises += (-prediction.symbols.gather(1, shown.symbols[time][:, None])[:, 0])[scored].tolist()
        state = network.observe(shown.frames[time], prediction, state)
    expected = sum(errors) / len(errors) + sum(surprises) / len(surprises)
    assert lesson.losses[0].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(lesson.state.frames, state.frames)


@pytest.mark.parametrize("named", [LSTM, WindowNetwork])
def test_symbols_are_learned_beside_the_frames(named):
    torch.manual_seed(0)
    sizes = {"channels": 4, "height": 1, "width": 1, "hidden_units": (16,), "symbols": 4}
    network = (
        LSTM(LSTMConfig(**sizes, readout="linear"))
        if named is LSTM
        else WindowNetwork(WindowNetworkConfig(**sizes, context=2))
    )
    symbols = torch.arange(24).view(12, 2) // 2 % 4  # 0 1 2 3 0 1 ...
    frames = torch.eye(4)[symbols][..., None, None]
    starts = torch.zeros(12, 2, dtype=torch.bool)
    starts[0] = True
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    fresh = network.initial_state((2, 4, 1, 1))
    for _ in range(150):
        (loss,) = network.learn(Window(frames, starts, symbols), fresh).losses
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = network.initial_state((2, 4, 1, 1))
    for time, frame in enumerate(frames):
        prediction = network.eval().predict(state)
        if time > 2:
            assert prediction.symbols.argmax(1).tolist() == symbols[time].tolist()
            assert prediction.symbols.exp().sum(1).tolist() == pytest.approx([1, 1])
        state = network.observe(frame, prediction, state)


def test_without_symbols_frames_alone_are_learned():
    network = model(symbols=4)
    with_symbols, without = (
        network.learn(window(symbols), network.initial_state(SHAPE)).losses[0]
        for symbols in (torch.zeros(TIME, BATCH, dtype=torch.int64), None)
    )
    assert with_symbols > without > 0
    assert model().predict(network.initial_state(SHAPE)).symbols is None
