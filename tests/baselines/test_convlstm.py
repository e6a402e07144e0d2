import pytest
import torch
from lessons import teach
from playing import play
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from torchrsm.baselines.convlstm import ConvLSTM, ConvLSTMConfig, ConvLSTMLayer, ConvLSTMStack, at_rest
from torchrsm.baselines.lstm import UNSEEN, Memory
from torchrsm.baselines.sequence_model import Window
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.predictor import rollout
from torchrsm.streams import StreamBatch

BATCH, TIME = 3, 6
SHAPE = (BATCH, 2, 6, 4)
PUBLISHED = {"hidden_channels": (3, 2), "kernel_sizes": (5, 3)}
WIDE = {
    "hidden_channels": (5, 4),
    "kernel_sizes": (3, 3),
    "patch": 2,
    "readout_kernel_size": 3,
    "residual": True,
    "forget_bias": 1.0,
}
KINDS = pytest.mark.parametrize("settings", [PUBLISHED, WIDE], ids=["published", "wide"])


def model(settings, shape=SHAPE):
    torch.manual_seed(0)
    return ConvLSTM(ConvLSTMConfig(channels=shape[1], height=shape[2], width=shape[3], **settings))


def window(time=TIME, starts=(), shape=SHAPE):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    torch.manual_seed(1)
    frames, marks = torch.rand(time, *shape), torch.zeros(time, shape[0], dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


# --- The layer --------------------------------------------------------------------------------------------------------


def test_the_network_has_the_published_layers():
    shapes = {name: tuple(value.shape) for name, value in ConvLSTM().named_parameters()}
    assert shapes == {
        "stack.layers.0.from_below.weight": (40, 1, 7, 7),
        "stack.layers.0.from_below.bias": (40,),
        "stack.layers.0.from_itself.weight": (40, 10, 7, 7),
        "stack.layers.1.from_below.weight": (40, 10, 5, 5),
        "stack.layers.1.from_below.bias": (40,),
        "stack.layers.1.from_itself.weight": (40, 10, 5, 5),
        "stack.layers.2.from_below.weight": (40, 10, 3, 3),
        "stack.layers.2.from_below.bias": (40,),
        "stack.layers.2.from_itself.weight": (40, 10, 3, 3),
        "stack.layers.3.from_below.weight": (4, 10, 3, 3),
        "stack.layers.3.from_below.bias": (4,),
        "stack.layers.3.from_itself.weight": (4, 1, 3, 3),
    }


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_on_a_single_pixel_it_is_the_cell_of_torch(size):
    """Of a larger kernel a single pixel sees the middle alone."""
    torch.manual_seed(0)
    layer, cell = ConvLSTMLayer(4, 3, size), nn.LSTMCell(4, 3)
    middle = size // 2
    cell.weight_ih.copy_(layer.from_below.weight[:, :, middle, middle])
    cell.weight_hh.copy_(layer.from_itself.weight[:, :, middle, middle])
    cell.bias_ih.copy_(layer.from_below.bias)
    cell.bias_hh.zero_()
    inputs, reference = torch.randn(5, BATCH, 4), (torch.randn(BATCH, 3), torch.randn(BATCH, 3))
    memory = Memory(*(part[..., None, None] for part in reference))
    starts = torch.zeros(5, BATCH, dtype=torch.bool)
    for step, x in zip(layer(inputs.flatten(0, 1)[..., None, None], memory, starts), inputs, strict=True):
        reference = cell(x, reference)
        for ours, theirs in zip(step, reference, strict=True):
            torch.testing.assert_close(ours[..., 0, 0], theirs)


@torch.no_grad()
def test_a_stack_is_one_convolution_a_layer_and_step():
    """Written again step by step, over the input and the layer's output together, in double precision."""
    torch.manual_seed(0)
    stack, inputs = ConvLSTMStack(2, (3, 4), (5, 3)), torch.randn(TIME, BATCH, 2, 6, 4)
    memories = [[torch.zeros(BATCH, n, 6, 4).double()] * 2 for n in (3, 4)]
    tops, steps = stack(inputs.flatten(0, 1), stack.empty(BATCH, 6, 4), torch.zeros(TIME, BATCH, dtype=torch.bool))
    for time, value in enumerate(inputs.double()):
        for number, layer in enumerate(stack.layers):
            hidden, cell = memories[number]
            weight = torch.cat((layer.from_below.weight, layer.from_itself.weight), 1).double()
            gates = F.conv2d(torch.cat((value, hidden), 1), weight, layer.from_below.bias.double(), padding="same")
            write, keep, content, read = gates.unflatten(1, (4, -1)).unbind(1)
            cell = keep.sigmoid() * cell + write.sigmoid() * content.tanh()
            value = read.sigmoid() * cell.tanh()
            memories[number] = [value, cell]
            torch.testing.assert_close(steps[time][number].hidden.double(), value, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(steps[time][number].cell.double(), cell, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tops.unflatten(0, (TIME, -1))[time].double(), value, rtol=1e-4, atol=1e-6)


def test_weights_begin_as_those_of_one_convolution():
    torch.manual_seed(0)
    layer, one = ConvLSTMLayer(8, 16, 3), nn.Conv2d(24, 64, 3)
    bound = one.weight.abs().max().item()
    for weight in (layer.from_below.weight, layer.from_itself.weight):
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert weight.std().item() == pytest.approx(one.weight.std().item(), rel=0.05)


def test_the_bias_of_the_forget_gates_is_that_of_the_settings():
    bias = ConvLSTMLayer(2, 3, 3, forget_bias=1.0).from_below.bias
    assert (bias[3:6] == 1).all()
    assert (bias[[0, 1, 2, 6, 7, 8, 9, 10, 11]].abs() < 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "shift"),
    [({"hidden_channels": (4, 1), "kernel_sizes": (3, 3)}, (3, -2)), (WIDE, (2, -4))],
    ids=["published", "wide"],
)
def test_what_moves_is_predicted_moved_far_from_the_walls(settings, shift):
    shape = (2, 1, 44, 44)
    predictor, (frames, starts, _) = model(settings, shape), window(4, shape=shape)
    moved = frames.roll(shift, (-2, -1))
    here, there = (play(predictor, f, starts)[0].roll(by, (-2, -1)) for f, by in ((frames, shift), (moved, (0, 0))))
    torch.testing.assert_close(here[..., 20:24, 20:24], there[..., 20:24, 20:24], rtol=0, atol=1e-5)
    assert (here[1:] - there[1:]).abs().max() > 0.01  # at the walls


@torch.no_grad()
def test_a_wall_is_no_black_pixel():
    """A black frame tells the middle from the edge."""
    predictor = model({"hidden_channels": (4, 1), "kernel_sizes": (3, 3)}, (1, 1, 20, 20))
    frame, _ = play(predictor, torch.zeros(2, 1, 1, 20, 20), torch.zeros(2, 1, dtype=torch.bool))
    middle = frame[1, 0, 0, 8:12, 8:12]
    torch.testing.assert_close(middle, middle[:1, :1].expand(4, 4))
    assert (frame[1, 0, 0, 0] - middle[0, 0]).abs().max() > 1e-3


# --- The predictor ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_the_residual_adds_is_the_last_frame():
    predictor, (frames, starts, _) = model(WIDE), window()
    predictor.readout.weight.zero_()
    predictor.readout.bias.zero_()
    predicted, _ = play(predictor, frames, starts)
    torch.testing.assert_close(predicted[1:], frames[:-1].clamp(0.02, 0.98))
    assert (predicted[0] == UNSEEN).all()


@torch.no_grad()
@KINDS
def test_a_prediction_depends_on_the_frames_before_and_on_no_other(settings):
    predictor, (frames, starts, _) = model(settings), window()
    changed = frames.clone()
    changed[3] = torch.rand(SHAPE)
    before, _ = play(predictor, frames, starts)
    after, _ = play(predictor, changed, starts)
    assert torch.equal(before[:4], after[:4])
    assert all((before[time] != after[time]).any() for time in (4, 5))


@torch.no_grad()
def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="frames of 2 x 6 x 4; got 1 x 6 x 4"):
        model(WIDE).initial_state((1, 1, 6, 4))


@torch.no_grad()
@KINDS
def test_dreams_are_frames(settings):
    predictor, (frames, starts, _) = model(settings), window()
    _, state = play(predictor, frames, starts)
    dream, _ = rollout(predictor, state, 5)
    assert dream.shape == (BATCH, 5, *SHAPE[1:])
    assert ((dream >= 0) & (dream <= 1)).all()
    assert torch.equal(dream[:, 0], predictor.predict(state).frame)


# --- Learning ---------------------------------------------------------------------------------------------------------


@KINDS
def test_a_window_is_learnt_from_as_it_is_played(settings):
    predictor, whole = model(settings), window(starts=[(2, 1), (4, 0), (4, 2)])
    predicted, after = play(predictor, *whole[:2])
    state, parts = predictor.initial_state(SHAPE), []
    for part in (slice(0, 3), slice(3, TIME)):
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


@KINDS
def test_the_loss_is_the_error_of_a_pixel_that_could_be_predicted(settings):
    predictor, whole = model(settings), window(starts=[(2, 1)])
    lesson = predictor.learn(whole, predictor.initial_state(SHAPE))
    errors = [
        (lesson.frames[time, stream] - whole.frames[time, stream]).square().mean()
        for time in range(1, TIME)
        for stream in range(BATCH)
        if (time, stream) != (2, 1)
    ]
    assert lesson.losses[0].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


@torch.no_grad()
@KINDS
def test_a_stream_that_starts_in_mid_window_knows_nothing_from_before(settings):
    predictor, (frames, starts, _) = model(settings), window(starts=[(3, 1)])
    other = frames.clone()
    other[:3, 1] = torch.rand(3, *SHAPE[1:])
    state = predictor.initial_state(SHAPE)
    first, second = (predictor.learn(Window(f, starts), state).frames for f in (frames, other))
    assert torch.equal(first[3:], second[3:])
    assert not torch.equal(first[1:3, 1], second[1:3, 1])


@KINDS
def test_the_gradient_reaches_every_weight(settings):
    predictor = model(settings)
    (weights,) = predictor.weight_groups()
    loss = predictor.learn(window(), predictor.initial_state(SHAPE)).losses[0]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, weights))


@KINDS
def test_a_state_from_a_checkpoint_gives_the_same_bits(settings):
    shape = (2, 2, 12, 12)
    predictor = model({**settings, "hidden_channels": (16, settings["hidden_channels"][-1])}, shape)
    whole = window(shape=shape)
    state = predictor.learn(whole, predictor.initial_state(shape)).state
    read = type(state)(state.frame, tuple(Memory(*(torch.tensor(p.tolist()) for p in m)) for m in state.layers))
    for ours, theirs in zip(state.layers, read.layers, strict=True):
        assert [part.stride() for part in ours] == [part.stride() for part in theirs]
    assert torch.equal(*(predictor.learn(whole, s).losses[0] for s in (state, read)))


def test_a_memory_at_rest_is_plain():
    part = torch.rand(2, 3, 4, 5, requires_grad=True).contiguous(memory_format=torch.channels_last)
    ((hidden, cell),) = at_rest((Memory(part, part),))
    assert torch.equal(hidden, part)
    assert hidden.is_contiguous()
    assert not cell.requires_grad


@KINDS
def test_an_update_is_that_of_plain_adam(settings):
    """The fused optimiser reads a gradient in the order in which it lies in memory, whatever its strides."""
    whole = window()
    batches = [
        StreamBatch(frames, starts, torch.zeros(BATCH, dtype=torch.int64))
        for frames, starts in zip(whole.frames, whole.starts, strict=True)
    ]
    predictor, reference = model(settings), model(settings)
    learner = SequenceLearner(predictor, SequenceLearningConfig(window=TIME, learning_rates=(0.01,)), SHAPE)
    teach(learner, iter(batches), 0.5)
    loss = reference.learn(whole, reference.initial_state(SHAPE)).losses[0]
    loss.backward()
    torch.optim.Adam(reference.parameters(), 0.01, foreach=False).step()
    for ours, theirs in zip(predictor.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@KINDS
def test_it_learns_what_moves(settings):
    """A bar that moves by a column a frame; the error falls to a fifth of that of a bar that stays."""
    torch.manual_seed(0)
    channels = (12, 12 if "patch" in settings else 2)
    predictor = model({**settings, "hidden_channels": channels}, (2, 2, 8, 8))
    bar = torch.zeros(2, 2, 8, 8)
    bar[..., :2] = 1
    frames = torch.stack([bar.roll(time, -1) for time in range(9)])
    starts = torch.zeros(9, 2, dtype=torch.bool)
    starts[0] = True
    optimiser = torch.optim.Adam(predictor.parameters(), 0.01)
    for _ in range(50):
        loss = predictor.learn(Window(frames, starts), predictor.initial_state((2, 2, 8, 8))).losses[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < (frames[1:] - frames[:-1]).square().mean() / 5


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_channels": (10, 0, 10, 1)}, "hidden_channels.1\n.*greater than 0"),
        ({"hidden_channels": (10, 1)}, "one entry a layer; got 2 and 4"),
        ({"kernel_sizes": (7, 5, 4, 3)}, "kernel sizes must be odd; got .7, 5, 4, 3."),
        ({"hidden_channels": (10, 10, 10, 2)}, "must be 1, the channels of a folded frame.*got 2"),
        ({"patch": 2}, "must be 4, the channels of a folded frame.*got 1"),
        ({"patch": 4, "readout_kernel_size": 3}, "patch must divide height 30 and width 30; got 4"),
        ({"readout_kernel_size": 2}, "readout_kernel_size must be odd; got 2"),
        ({"residual": True}, "residual needs a readout_kernel_size"),
        ({"forget_bias": float("inf")}, "forget_bias\n.*finite"),
        ({"kind": "lstm"}, "kind\n.*'convlstm'"),
        ({"width_": 2}, "width_\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        ConvLSTMConfig(**settings)
