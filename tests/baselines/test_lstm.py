import pytest
import torch
from playing import play
from pydantic import ValidationError
from torch import nn

from torchrsm.baselines.lstm import LSTM, UNSEEN, LSTMConfig, Memory, inputs_of, remember
from torchrsm.baselines.sequence_model import Window
from torchrsm.predictor import rollout

BATCH, TIME = 3, 7
SHAPE = (BATCH, 2, 3, 4)
READOUTS = pytest.mark.parametrize("readout", ["cell", "linear"])


def model(**settings):
    torch.manual_seed(0)
    sizes = {"channels": 2, "height": 3, "width": 4, "hidden_units": (6, 5)}
    return LSTM(LSTMConfig(**{**sizes, **settings}))


def window(time=TIME, starts=()):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    torch.manual_seed(1)
    frames, marks = torch.rand(time, *SHAPE), torch.zeros(time, BATCH, dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


# --- The predictor ----------------------------------------------------------------------------------------------------


def test_the_network_has_the_published_layers():
    with torch.device("meta"):
        network = LSTM()
    assert [(layer.input_size, layer.hidden_size) for layer in network.layers] == [
        (900, 2048),
        (2048, 1024),
        (1024, 1024),
        (1024, 1024),
        (1024, 900),
    ]
    assert network.readout is None


@torch.no_grad()
@READOUTS
def test_it_is_the_lstm_of_torch_on_frames_in_minus_one_to_one(readout):
    predictor, (frames, starts, _) = model(readout=readout), window()
    seen = torch.cat((torch.full((1, BATCH, 24), 0.0), 2 * frames[:-1].flatten(2) - 1))
    for layer in predictor.layers:
        reference = nn.LSTM(layer.input_size, layer.hidden_size)
        reference.load_state_dict({f"{name}_l0": value for name, value in layer.state_dict().items()})
        seen, _ = reference(seen)
    expected = (seen + 1) / 2 if readout == "cell" else torch.sigmoid(predictor.readout(seen))
    predicted, _ = play(predictor, frames, starts)
    torch.testing.assert_close(predicted.flatten(2), expected)


@torch.no_grad()
def test_a_step_is_that_of_torch():
    torch.manual_seed(0)
    cell, x, before = nn.LSTMCell(4, 3), torch.randn(5, 4), Memory(torch.randn(5, 3), torch.randn(5, 3))
    gates = x @ cell.weight_ih.T + cell.bias_ih + before.hidden @ cell.weight_hh.T + cell.bias_hh
    for ours, reference in zip(remember(gates, before.cell), cell(x, tuple(before)), strict=True):
        torch.testing.assert_close(ours, reference)


@torch.no_grad()
@READOUTS
def test_a_prediction_depends_on_the_frames_before_and_on_no_other(readout):
    predictor, (frames, starts, _) = model(readout=readout), window()
    changed = frames.clone()
    changed[4] = torch.rand(SHAPE)
    before, _ = play(predictor, frames, starts)
    after, _ = play(predictor, changed, starts)
    assert torch.equal(before[:5], after[:5])
    assert all((before[time] != after[time]).any() for time in (5, 6))


@torch.no_grad()
def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="frames of 2 x 3 x 4; got 2 x 4 x 3"):
        model().initial_state((1, 2, 4, 3))


@torch.no_grad()
@READOUTS
def test_dreams_are_frames(readout):
    predictor, (frames, starts, _) = model(readout=readout), window()
    _, state = play(predictor, frames, starts)
    dream, _ = rollout(predictor, state, 5)
    assert dream.shape == (BATCH, 5, *SHAPE[1:])
    assert ((dream >= 0) & (dream <= 1)).all()
    assert torch.equal(dream[:, 0], predictor.predict(state).frame)


# --- Learning ---------------------------------------------------------------------------------------------------------


def test_the_frame_before_is_unseen_where_a_sequence_starts():
    frames, starts, _ = window(starts=[(3, 1)])
    before = inputs_of(Window(frames, starts), torch.zeros(SHAPE))
    assert (before[0] == UNSEEN).all()
    assert (before[3, 1] == UNSEEN).all()
    assert torch.equal(before[3, 0], frames[2, 0])
    assert torch.equal(before[5], frames[4])


@READOUTS
def test_a_window_is_learnt_from_as_it_is_played(readout):
    predictor, whole = model(readout=readout), window(starts=[(3, 1), (5, 0), (5, 2)])
    predicted, after = play(predictor, *whole[:2])
    state, parts = predictor.initial_state(SHAPE), []
    for part in (slice(0, 4), slice(4, TIME)):
        lesson = predictor.learn(Window(whole.frames[part], whole.starts[part]), state)
        state = lesson.state
        parts.append(lesson.frames)
        assert torch.equal(lesson.scored, ~whole.starts[part])
    torch.testing.assert_close(torch.cat(parts), predicted.detach())
    torch.testing.assert_close(state.frame, after.frame)
    for layer, reference in zip(state.layers, after.layers, strict=True):
        torch.testing.assert_close(layer.hidden, reference.hidden.detach())
        torch.testing.assert_close(layer.cell, reference.cell.detach())
        assert not layer.cell.requires_grad


def test_the_loss_is_the_error_of_a_pixel_that_could_be_predicted():
    predictor, whole = model(), window(starts=[(3, 1)])
    lesson = predictor.learn(whole, predictor.initial_state(SHAPE))
    errors = [
        (lesson.frames[time, stream] - whole.frames[time, stream]).square().mean()
        for time in range(1, TIME)
        for stream in range(BATCH)
        if (time, stream) != (3, 1)
    ]
    assert lesson.losses[0].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


@torch.no_grad()
def test_a_stream_that_starts_in_mid_window_knows_nothing_from_before():
    predictor, (frames, starts, _) = model(), window(starts=[(3, 1)])
    other = frames.clone()
    other[:3, 1] = torch.rand(3, *SHAPE[1:])
    state = predictor.initial_state(SHAPE)
    first, second = (predictor.learn(Window(f, starts), state).frames for f in (frames, other))
    assert torch.equal(first[3:], second[3:])
    assert not torch.equal(first[1:3, 1], second[1:3, 1])


@READOUTS
def test_the_gradient_reaches_every_weight(readout):
    predictor = model(readout=readout)
    (weights,) = predictor.weight_groups()
    loss = predictor.learn(window(), predictor.initial_state(SHAPE)).losses[0]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, weights))


@READOUTS
def test_it_learns_a_cycle(readout):
    """Three pictures in turn: the error falls to a fourth of that of the best still picture."""
    torch.manual_seed(0)
    predictor = model(readout=readout, hidden_units=(24,))
    pictures = (torch.rand(3, 1, *SHAPE[1:]) > 0.5).float()
    frames = pictures[torch.arange(12) % 3].expand(-1, BATCH, -1, -1, -1)
    starts = torch.zeros(12, BATCH, dtype=torch.bool)
    starts[0] = True
    still = (pictures - pictures.mean(0)).square().mean()
    optimiser = torch.optim.Adam(predictor.parameters(), 0.02)
    for _ in range(60):
        loss = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE)).losses[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < still / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_units": ()}, "hidden_units\n.*at least 1 item"),
        ({"hidden_units": (3, 0)}, "hidden_units.1\n.*greater than 0"),
        ({"readout": "sigmoid"}, "readout\n.*'cell' or 'linear'"),
        ({"kind": "gru"}, "kind\n.*'lstm'"),
        ({"layers": 2}, "layers\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        LSTMConfig(**settings)
