import numpy as np
import pytest
import torch
from lessons import teach
from pydantic import ValidationError

from torchrsm.baselines.predrnn import (
    LayerMemory,
    PredRNN,
    PredRNNConfig,
    SpatiotemporalLSTM,
    decoupling,
)
from torchrsm.baselines.sequence_model import Window
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.predictor import rollout
from torchrsm.streams import BouncingBalls

SHAPE = (3, 1, 12, 12)


def model(**settings):
    torch.manual_seed(0)
    return PredRNN(PredRNNConfig(**{"height": 12, "width": 12, "hidden_channels": 6, "layers": 3, **settings})).eval()


def window(time=7, shape=SHAPE):
    torch.manual_seed(1)
    starts = torch.zeros(time, shape[0], dtype=torch.bool)
    starts[0] = starts[4, 1] = True
    return Window(torch.rand(time, *shape), starts)


def step_by_step(predictor, frames):
    state, predicted = predictor.initial_state(tuple(frames.shape[1:])), []
    with torch.no_grad():
        for frame in frames:
            prediction = predictor.predict(state)
            predicted.append(prediction.frame)
            state = predictor.observe(frame, prediction, state)
    return torch.stack(predicted), state


# --- The contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"patch": 3, "kernel_size": 5}, {"layers": 1, "residual": False}])
def test_frames_have_their_shape_and_are_in_range(settings):
    predictor = model(**settings)
    dream, _ = rollout(predictor, step_by_step(predictor, window().frames)[1], 20)
    assert dream.shape == (3, 20, 1, 12, 12)
    assert dream.isfinite().all()
    assert 0 <= dream.min() <= dream.max() <= 1


def test_the_future_changes_nothing():
    frames = window().frames
    before, _ = step_by_step(model(), frames)
    frames[4:] = 1 - frames[4:]
    after, _ = step_by_step(model(), frames)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5], after[5])


def test_learning_sees_what_predicting_sees():
    predictor, (frames, starts, _) = model(), window()
    lesson = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
    whole, state = step_by_step(predictor, frames)
    assert torch.allclose(lesson.frames[:, [0, 2]], whole[:, [0, 2]], atol=1e-6)
    assert torch.equal(lesson.scored, ~starts)
    assert torch.allclose(lesson.state.shared[[0, 2]], state.shared[[0, 2]], atol=1e-6)
    fresh, _ = step_by_step(predictor, frames[4:, 1:2])
    assert torch.allclose(lesson.frames[4:, 1:2], fresh, atol=1e-6)


def test_windows_that_follow_each_other_are_one():
    predictor, (frames, starts, _) = model(), window()
    whole = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
    first = predictor.learn(Window(frames[:3], starts[:3]), predictor.initial_state(SHAPE))
    second = predictor.learn(Window(frames[3:], starts[3:]), first.state)
    assert torch.allclose(torch.cat((first.frames, second.frames)), whole.frames, atol=1e-6)
    assert not any(part.requires_grad for part in (*first.state.layers[0], first.state.shared))


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_gradient_reaches_every_weight(weight):
    predictor = model(decoupling_weight=weight)
    (loss,) = predictor.learn(window(), predictor.initial_state(SHAPE)).losses
    loss.backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_it_learns():
    torch.manual_seed(0)
    predictor = PredRNN(PredRNNConfig(height=12, width=12, hidden_channels=8, residual=False))
    stream = BouncingBalls(4, resolution=12, balls=1, radius=2.0, sequence_length=20)
    config = SequenceLearningConfig(learning_rates=(1e-2,), window=5, gradient_norm=1.0)
    learner = SequenceLearner(predictor, config, (4, 1, 12, 12))
    learner.begin("sequence", 1)
    errors = [teach(learner, stream, 0.5).frame_squared_error for _ in range(60)]
    assert sum(errors[-10:]) < 0.5 * sum(errors[:10])


def test_at_first_it_repeats_the_last_frame_where_the_readout_is_a_difference():
    predictor, frames = model(), window().frames
    with torch.no_grad():
        predictor.readout.weight.zero_()
        predictor.readout.bias.zero_()
    predicted, _ = step_by_step(predictor, frames.clamp(0.1, 0.9))
    assert torch.allclose(predicted[1:], frames.clamp(0.1, 0.9)[:-1], atol=1e-5)


# --- The layer --------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(layer, x, h, c, m):
    """The equations of a layer for one place and kernels of 1 x 1, in the paper's order."""
    weights = {name: value.detach().double().numpy().squeeze((2, 3)) for name, value in kernels(layer)}
    n = layer.channels
    wx, wh, wm = (np.split(weights[name], size) for name, size in (("x", 7), ("h", 4), ("m", 3)))
    bias = np.split(layer.from_below.bias.detach().double().numpy(), 7)
    i, f, g = (wx[k] @ x + wh[k] @ h + bias[k] for k in range(3))
    c = sigmoid(f + layer.forget_bias) * c + sigmoid(i) * np.tanh(g)
    i, f, g = (wx[3 + k] @ x + wm[k] @ m + bias[3 + k] for k in range(3))
    m = sigmoid(f + layer.forget_bias) * m + sigmoid(i) * np.tanh(g)
    o = sigmoid(wx[6] @ x + wh[3] @ h + weights["o"][:, :n] @ c + weights["o"][:, n:] @ m + bias[6])
    return o * np.tanh(weights["1x1"] @ np.concatenate((c, m))), c, m


def kernels(layer):
    names = {"from_below": "x", "from_itself": "h", "from_shared": "m", "output_gate": "o", "merge": "1x1"}
    return [(short, getattr(layer, name).weight) for name, short in names.items()]


def some_layer(below=4, channels=5, kernel_size=1, forget_bias=1.0):
    torch.manual_seed(2)
    layer = SpatiotemporalLSTM(below, channels, kernel_size, forget_bias)
    torch.manual_seed(3)
    x, h, c, m = (torch.randn(1, size, 1, 1) for size in (below, channels, channels, channels))
    return layer, x, LayerMemory(h, c), m


@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_a_layer_is_what_the_paper_says(forget_bias):
    layer, x, memory, shared = some_layer(forget_bias=forget_bias)
    (hidden, cell), after, _ = layer(x, memory, shared)
    given = [value.double().numpy().reshape(-1) for value in (x, *memory, shared)]
    for got, expected in zip((hidden, cell, after), oracle(layer, *given), strict=True):
        np.testing.assert_allclose(got.detach().numpy().reshape(-1), expected, atol=1e-6)


def test_without_the_shared_memory_a_layer_is_an_lstm():
    """The output gate no longer looks at the memories, and the output is that of the cells alone."""
    layer, x, memory, _ = some_layer(forget_bias=0.0)
    n = layer.channels
    with torch.no_grad():
        layer.output_gate.weight.zero_()
        layer.merge.weight.copy_(torch.cat((torch.eye(n), torch.zeros(n, n)), 1)[..., None, None])
    reference = torch.nn.LSTMCell(4, n)
    order = (0, 1, 2, 6)  # write, keep, content, read
    with torch.no_grad():
        reference.weight_ih.copy_(torch.cat([layer.from_below.weight.squeeze().split(n)[k] for k in order]))
        reference.weight_hh.copy_(layer.from_itself.weight.squeeze())
        reference.bias_ih.copy_(torch.cat([layer.from_below.bias.split(n)[k] for k in order]))
        reference.bias_hh.zero_()
    (hidden, cell), _, _ = layer(x, memory, torch.randn(1, n, 1, 1))
    expected = reference(x.flatten(1), tuple(part.flatten(1) for part in memory))
    torch.testing.assert_close((hidden.flatten(1), cell.flatten(1)), expected)


def test_what_is_written_is_what_is_added():
    layer, x, memory, shared = some_layer()
    (_, cell), after, written = layer(x, memory, shared)
    empty = LayerMemory(memory.hidden, torch.zeros_like(memory.cell))
    torch.testing.assert_close(layer(x, empty, shared)[0].cell, written.cell)
    assert not torch.allclose(cell, written.cell)
    assert written.shared.shape == after.shape


# --- The shared memory goes up, and from the top back to the bottom ---------------------------------------------------


def test_the_lowest_layer_hears_the_highest_of_the_step_before():
    predictor, frames = model(), window().frames
    _, state = step_by_step(predictor, frames)
    changed = state._replace(shared=state.shared + 1)
    with torch.no_grad():
        before, after = (predictor.predict(one).memory for one in (state, changed))
    layers_before, layers_after = before[0], after[0]
    assert torch.equal(layers_before[0].cell, layers_after[0].cell)  # its own cells do not hear it
    assert not torch.equal(layers_before[0].hidden, layers_after[0].hidden)
    assert not torch.equal(layers_before[1].hidden, layers_after[1].hidden)
    assert not torch.equal(before[1], after[1])


def test_the_cells_of_a_layer_stay_in_the_layer():
    predictor, frames = model(), window().frames
    _, state = step_by_step(predictor, frames)
    top = state.layers[-1]
    changed = state._replace(layers=(*state.layers[:-1], top._replace(cell=top.cell + 1)))
    with torch.no_grad():
        before, after = (predictor.predict(one).memory for one in (state, changed))
    for low, high in zip(before[0][:-1], after[0][:-1], strict=True):
        assert torch.equal(low.hidden, high.hidden)
    assert not torch.equal(before[0][-1].hidden, after[0][-1].hidden)
    assert torch.equal(before[1], after[1])  # nor does the shared memory hear the cells


# --- Decoupling -------------------------------------------------------------------------------------------------------


def test_decoupling_is_the_cosine():
    a = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 2, 2)
    assert decoupling(a, 3 * a).item() == pytest.approx(1)
    assert decoupling(a, -a).item() == pytest.approx(1)
    assert decoupling(a, a.flip(-1)).item() == pytest.approx(0)
    assert decoupling(a, torch.ones_like(a)).item() == pytest.approx(0.5)


def test_decoupling_adds_to_the_loss_and_changes_no_prediction():
    plain, apart = model(), model(decoupling_weight=0.5)
    apart.load_state_dict(plain.state_dict(), strict=False)
    lessons = [one.learn(window(), one.initial_state(SHAPE)) for one in (plain, apart)]
    assert torch.equal(lessons[0].frames, lessons[1].frames)
    difference = lessons[1].losses[0] - lessons[0].losses[0]
    assert 0 < difference.item() <= 0.5


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd; got 4"),
        ({"patch": 5}, "patch must divide height 12 and width 12; got 5"),
        ({"layers": 0}, "greater than 0"),
        ({"hidden_channels": 0}, "greater than 0"),
        ({"decoupling_weight": -1}, "greater than or equal to 0"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        model(**settings)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="this model reads frames of 1 x 12 x 12; got 1 x 14 x 12"):
        model().initial_state((2, 1, 14, 12))
